"""Twilio: messages of Media Streams, TwiML, signatures, and the REST API."""
