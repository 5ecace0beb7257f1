"""A simulated phone, with Twilio between it and the server."""
