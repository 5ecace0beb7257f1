"""A phone rings; a voice agent answers. `bridge:app` is the server's ASGI application."""

from bridge.web import app

__all__ = ["app"]
