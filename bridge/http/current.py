"""The application, the address and the peer of the current request."""

from __future__ import annotations

from typing import cast

from quart import current_app, request
from quart.wrappers.base import BaseRequestWebsocket

from bridge.http.proxies import RequestOrigin, request_origin
from bridge.service import Bridge


def current_bridge() -> Bridge:
    """Return the Bridge of the application that serves the current request."""
    return cast(Bridge, current_app.extensions["bridge"])


def peer_of(message: BaseRequestWebsocket) -> str:
    """Return the address at the other end of the connection; "" behind a socket file."""
    address = message.scope.get("client")
    return str(address[0]) if address else ""


def origin_of(message: BaseRequestWebsocket) -> RequestOrigin:
    """Return the client, the scheme and the host of a request, as trusted proxies report them."""
    trusted = current_bridge().settings_now().server.trusted_proxies
    return request_origin(peer_of(message), message.scheme, message.headers, trusted)


def client() -> str:
    """Return the client of the current request, for the log."""
    return origin_of(request).client
