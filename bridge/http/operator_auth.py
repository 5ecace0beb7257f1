"""Authorises requests to the control API, the console and the softphone.

A client is accepted if it sends the token: `BRIDGE_API_TOKEN`, or the one that the server made for
this run. Its address is no credential. A request through a proxy on this machine comes from a
loopback address, and nginx, stunnel or `ssh -R` add nothing that would tell it from a local one.

A page of another site is refused even with the token.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

import trio
from quart import Blueprint, Response, current_app, jsonify, request
from werkzeug.datastructures import Headers

from bridge.addresses import host_of
from bridge.http.current import current_bridge, origin_of, peer_of
from bridge.log import get_logger

log = get_logger(__name__)

# Failures of one address, per minute, that are answered with 401 and logged; a person mistypes a
# token a few times. The limit protects the log; the token's length protects the token.
FAILURES_PER_MINUTE: Final = 10
_MINUTE: Final = 60.0
_PEERS: Final = 1000

# The key of the application's Gate among its extensions.
GATE: Final = "bridge.operator_gate"


class NotAuthorised(Exception):
    """The request is refused: `status` is HTTP's, and the message says what would help.

    `is_news` is False for the repeated attempts of one client, which are not logged.
    """

    def __init__(self, status: int, message: str, *, is_news: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.is_news = is_news


class Gate:
    """Admits or refuses requests. Sans-I/O. One per application, which counts failures.

    `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def check(
        self,
        token: str,
        headers: Headers,
        peer: str,
        *,
        client: str = "",
        hosts: Sequence[str] = (),
    ) -> None:
        """Return if the request may pass. Raises NotAuthorised.

        `token` is the one to send, `peer` the address that the connection came from. `hosts` are
        this server's names besides the Host header, and `client` is the client's address, both as
        trusted proxies report them. They decide which pages are ours and whose failures are
        counted.
        """
        if _is_cross_site(headers, hosts):
            raise NotAuthorised(403, "a page of another site may not do this")
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        # Compared as bytes: compare_digest takes no text outside ASCII.
        same = hmac.compare_digest(given.strip().encode(errors="replace"), token.encode())
        if token and scheme.lower() == "bearer" and same:
            return
        if self._count_failure(client or peer) > FAILURES_PER_MINUTE:
            raise NotAuthorised(
                429, "too many requests without the right token; wait a minute", is_news=False
            )
        raise NotAuthorised(
            401,
            "send the header Authorization: Bearer, and BRIDGE_API_TOKEN's value; without that "
            "variable the server prints a token when it starts, in the console's address",
        )

    def _count_failure(self, peer: str) -> int:
        now = self._clock()
        began, count = self._failures.pop(peer, (now, 0))
        if now - began >= _MINUTE:
            began, count = now, 0
        self._failures[peer] = (began, count + 1)
        while len(self._failures) > _PEERS:
            self._failures.popitem(last=False)
        return count + 1


def protect(blueprint: Blueprint, *, what: str) -> None:
    """Refuse requests to `blueprint` that the Gate refuses, and keep its answers out of caches.

    `what` names the blueprint in the log.
    """

    @blueprint.before_request
    async def check() -> tuple[Response, int, dict[str, str]] | None:
        bridge = current_bridge()
        gate: Gate = current_app.extensions[GATE]
        origin = origin_of(request)
        hosts = [origin.host, host_of(bridge.settings_now().server.public_url)]
        try:
            gate.check(
                bridge.api_token,
                request.headers,
                peer_of(request),
                client=origin.client,
                hosts=[host for host in hosts if host],
            )
        except NotAuthorised as error:
            if error.is_news:
                log.warning(f"{what} refused", status=error.status, peer=origin.client)
            extra = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            return jsonify(error=str(error)), error.status, extra
        return None

    @blueprint.after_request
    async def forbid_caching(response: Response) -> Response:
        # Phone numbers, transcripts and tickets belong in no cache.
        response.headers["Cache-Control"] = "no-store"
        return response


def _is_cross_site(headers: Headers, hosts: Sequence[str]) -> bool:
    if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("Origin")
    if origin is None:
        return False
    try:
        page = urlsplit(origin).netloc.lower()
    except ValueError:
        return True
    return page not in {host.lower() for host in (headers.get("Host", ""), *hosts)}
