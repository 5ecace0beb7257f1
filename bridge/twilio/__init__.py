"""What Twilio says and hears. Messages, TwiML and signatures are pure."""
