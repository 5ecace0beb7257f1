"""The doors that only Twilio comes through: the webhooks, and the media socket's upgrade.

Whoever has no signature is answered 403 and nothing else. Why is in the log, now and then, with the
address that the signature was checked against: behind a proxy that is the first thing to look at.

A browser cannot sign as Twilio does. Its way to the media socket is a softphone's ticket, which
somebody who may use the control API got for it, and a page of our own that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, quote

from quart import Request, Websocket
from quart.wrappers.base import BaseRequestWebsocket

from bridge.admission.log_throttle import Seldom
from bridge.admission.ticket import BadTicket, Purpose
from bridge.config.settings import Settings
from bridge.http.proxies import Asked, asked, is_same_origin, requested_url
from bridge.log import get_logger
from bridge.twilio.signature import is_signed

log = get_logger(__name__)

FORM_TYPE: Final = "application/x-www-form-urlencoded"

# Twilio sends some thirty, and a few more for each feature that is switched on.
MAX_FIELDS: Final = 1000

# Whoever scans the internet knocks a few times a second; who misconfigured a proxy looks at once.
SECONDS_BETWEEN_LINES: Final = 5.0

_SHOWN: Final = 300


class Refused(Exception):
    """Not let in: the answer is 403, and says no more than that."""


class Doors:
    """Lets Twilio in, whose auth tokens are the `tokens`. One per application, for what it
    remembers of its log."""

    def __init__(self) -> None:
        self._seldom = Seldom(SECONDS_BETWEEN_LINES)

    async def check_webhook(
        self, request: Request, settings: Settings, tokens: Sequence[str]
    ) -> None:
        """Return if this request is Twilio's. Raises Refused, and what reading a body raises."""
        if not settings.twilio.validate_signatures:
            return
        url = requested_url(
            settings.server.public_url, asked_for(request, settings), _target(request.scope)
        )
        given = request.headers.get("X-Twilio-Signature", "")
        if not given:
            self._refuse("a webhook", url, given)  # whose body is nobody's trouble
        params: list[tuple[str, str]] = []
        content: bytes | None = None
        body = await request.get_data(cache=True, as_text=False, parse_form_data=False)
        if request.mimetype == FORM_TYPE:
            try:
                params = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
            except ValueError:
                content = body  # no form that Twilio would send
        elif body:
            content = body
        if not is_signed(tokens, given, url, params, body=content):
            self._refuse("a webhook", url, given)

    def check_socket(
        self,
        websocket: Websocket,
        settings: Settings,
        tokens: Sequence[str],
        read_ticket: Callable[[str], object],
    ) -> Purpose:
        """Return whose the socket is: Twilio's "phone", or a "softphone", whose ticket
        `read_ticket` takes or raises BadTicket for. Raises Refused."""
        here = asked_for(websocket, settings)
        url = requested_url(
            settings.server.public_url, here, _target(websocket.scope), websocket=True
        )
        origin = websocket.headers.get("Origin")
        if origin is not None and not is_same_origin(origin, here, settings.server.public_url):
            self._refuse("a socket of another site's page", url.partition("?")[0], "")
        ticket = websocket.args.get("ticket")
        if ticket is not None and origin is not None:
            try:
                read_ticket(ticket)
            except BadTicket as error:
                self._refuse(f"a softphone with {error}", url.partition("?")[0], "")
            return "softphone"
        if settings.twilio.validate_signatures:
            given = websocket.headers.get("X-Twilio-Signature", "")
            if not is_signed(tokens, given, url):
                self._refuse("a media socket", url, given)
        return "phone"

    def _refuse(self, what: str, url: str, given: str) -> NoReturn:
        unsaid = self._seldom.due()
        if unsaid is not None:
            log.warning(
                f"refused {what}",
                signature="wrong" if given else "none",
                checked_against=_without_values(url)[:_SHOWN],
                others_since_the_last_line=unsaid,
            )
        raise Refused


def _without_values(url: str) -> str:
    """An address for the log: what its query says may be about people."""
    address, mark, query = url.partition("?")
    names = [part.partition("=")[0] + "=…" for part in query.split("&")] if mark else []
    return address + mark + "&".join(names)


def asked_for(request: BaseRequestWebsocket, settings: Settings) -> Asked:
    """By whom and by which address this request was made, through the proxies that are trusted."""
    client: Any = request.scope.get("client")
    peer = str(client[0]) if client else ""
    return asked(peer, request.scheme, request.headers, settings.server.trusted_proxies)


def _target(scope: Any) -> str:
    """Path and query as they came: decoding them and encoding them again may change them."""
    raw: bytes | None = scope.get("raw_path")
    path = raw.decode("latin-1") if raw is not None else quote(scope["path"])
    query: bytes = scope.get("query_string", b"")
    return path + (f"?{query.decode('latin-1')}" if query else "")
