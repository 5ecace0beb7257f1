"""The Deepgram Voice Agent: messages and settings (sans-I/O), and the session that carries them."""
