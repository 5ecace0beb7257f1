"""Authenticates Twilio: the signatures of webhooks and of the media socket's upgrade.

A request without a valid signature is answered 403 with an empty body. The reason is logged, at
most once in a few seconds, with the address that the signature was checked against: behind a proxy,
a wrong address is the usual cause.

A browser cannot sign as Twilio does. It opens the media socket with a softphone's ticket, which it
got from the control API, and from a page of this server.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, quote

from quart import Request, Websocket

from bridge.admission.ticket import BadTicket, Purpose
from bridge.config.settings import Settings
from bridge.http.current import current_bridge, origin_of
from bridge.http.proxies import is_same_origin, requested_url
from bridge.log import get_logger
from bridge.log_throttle import LogThrottle
from bridge.twilio.signature import is_signed

log = get_logger(__name__)

FORM_TYPE: Final = "application/x-www-form-urlencoded"

# Twilio sends some thirty, and a few more for each optional feature.
MAX_FIELDS: Final = 1000

# Scanners of the internet send a few requests a second; an operator who misconfigured a proxy reads
# the log within minutes.
SECONDS_BETWEEN_LINES: Final = 5.0

# The longest address in the log, in characters.
_SHOWN: Final = 300


class NotTwilio(Exception):
    """The request is not authenticated: the answer is 403 with an empty body."""


class TwilioAuth:
    """Checks that requests are Twilio's. One per application, which limits its log lines."""

    def __init__(self) -> None:
        self._throttle = LogThrottle(SECONDS_BETWEEN_LINES)

    async def check_webhook(self, request: Request, settings: Settings) -> None:
        """Return if this request is Twilio's. Raises NotTwilio, and what reading a body raises."""
        if not settings.twilio.validate_signatures:
            return
        url = requested_url(settings.server.public_url, origin_of(request), _target(request.scope))
        given = request.headers.get("X-Twilio-Signature", "")
        if not given:
            self._refuse("a webhook", url, given)  # without reading its body
        params: list[tuple[str, str]] = []
        content: bytes | None = None
        body = await request.get_data(cache=True, as_text=False, parse_form_data=False)
        if request.mimetype == FORM_TYPE:
            try:
                params = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
            except ValueError:
                content = body  # not a form that Twilio sends
        elif body:
            content = body
        if not is_signed(current_bridge().auth_tokens, given, url, params, body=content):
            self._refuse("a webhook", url, given)

    def check_socket(self, websocket: Websocket, settings: Settings) -> Purpose:
        """Return which ticket the media socket must show in its `start`: "phone" for Twilio's,
        "softphone" for a page's. Raises NotTwilio."""
        bridge, origin = current_bridge(), origin_of(websocket)
        public_url = settings.server.public_url
        url = requested_url(public_url, origin, _target(websocket.scope), websocket=True)
        page = websocket.headers.get("Origin")
        if page is not None and not is_same_origin(page, origin, public_url):
            self._refuse("a socket of another site's page", url.partition("?")[0], "")
        ticket = websocket.args.get("ticket")
        if ticket is not None and page is not None:
            try:
                bridge.entrance.read_ticket(ticket)
            except BadTicket as error:
                self._refuse(f"a softphone with {error}", url.partition("?")[0], "")
            return "softphone"
        if settings.twilio.validate_signatures:
            given = websocket.headers.get("X-Twilio-Signature", "")
            if not is_signed(bridge.auth_tokens, given, url):
                self._refuse("a media socket", url, given)
        return "phone"

    def _refuse(self, what: str, url: str, given: str) -> NoReturn:
        suppressed = self._throttle.due()
        if suppressed is not None:
            log.warning(
                f"refused {what}",
                signature="wrong" if given else "none",
                checked_against=_without_values(url)[:_SHOWN],
                others_since_the_last_line=suppressed,
            )
        raise NotTwilio


def _without_values(url: str) -> str:
    """Return an address for the log: the values of its query may be personal data."""
    address, mark, query = url.partition("?")
    names = [part.partition("=")[0] + "=…" for part in query.split("&")] if mark else []
    return address + mark + "&".join(names)


def _target(scope: Any) -> str:
    """Return the raw path and query: decoding and encoding them again could change them."""
    raw: bytes | None = scope.get("raw_path")
    path = raw.decode("latin-1") if raw is not None else quote(scope["path"])
    query: bytes = scope.get("query_string", b"")
    return path + (f"?{query.decode('latin-1')}" if query else "")
