"""What the voice agent says and hears. Messages and settings are pure; the session does I/O."""
