"""A phone rings; a voice agent answers. `bridge.asgi:app` is the server's ASGI application."""

__version__ = "0.1.0"
