"""HTTP clients: httpx's, with remedies for two of its faults.

- An environment that httpx cannot use (a SOCKS proxy, an IPv6 address in NO_PROXY, a certificate
  file that is missing) makes its constructor raise; a server must start all the same.
- httpcore 1.0 leaks the socket of a TLS handshake that is cancelled or takes too long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from bridge.log import get_logger
from bridge.text import printable

log = get_logger(__name__)


def open_client(**options: Any) -> httpx.AsyncClient:
    """Return a client with httpx's `options`, with as much of the environment as can be used.

    What cannot be used is left out, with a warning that names the variables and the remedy.
    """
    reason: Exception
    try:
        return httpx.AsyncClient(**options)
    except OSError as error:  # ssl.SSLError is one
        if "verify" in options:
            raise
        reason, options = error, {**options, "verify": httpx.create_ssl_context(trust_env=False)}
        what, remedy = "SSL_CERT_FILE", "name a file of certificates in it, or unset it"
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        if not options.get("trust_env", True):
            raise
        reason, options = error, {**options, "trust_env": False}
        what = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY"
        remedy = (
            "write proxies as http://host:port, since SOCKS is not supported, and leave IPv6 "
            "addresses out of NO_PROXY"
        )
    log.warning(
        f"{what} cannot be used; connecting without",
        reason=printable(str(reason).splitlines()[0][:200]),
        remedy=remedy,
    )
    return open_client(**options)


@contextmanager
def sockets_closed_on_failure() -> Iterator[Callable[[str, dict[str, Any]], Awaitable[None]]]:
    """Close the sockets that one request has opened, if it fails or is cancelled.

    Pass what this yields as the request's extension `trace`. Sockets that are closed already stay
    closed. https://www.python-httpx.org/advanced/extensions/#trace
    """
    sockets: list[Any] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            sockets.append(info["return_value"].get_extra_info("socket"))

    try:
        yield trace
    except BaseException:
        for socket in sockets:
            socket.close()
        raise
