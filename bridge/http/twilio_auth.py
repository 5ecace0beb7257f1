"""Authenticates Twilio: the signatures of webhooks and of the media socket's upgrade.

A request without a valid signature is answered 403 with an empty body. A webhook whose signature is
wrong is answered 401 first: Twilio sends the password of an address, with which it has signed, only
when it is asked to. The reason is logged with its remedy, at most once in a few seconds, with the
address that the signature was checked against: behind a proxy, a wrong address is the usual cause.

A browser cannot sign as Twilio does. It opens the media socket with a softphone's ticket, which it
got from the control API, and from a page of this server.
"""

from __future__ import annotations

import base64
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, quote

from quart import Request, Websocket
from werkzeug.datastructures import Headers

from bridge.admission.ticket import BadTicket, Purpose
from bridge.config.secrets import quoted_warning
from bridge.config.settings import Settings
from bridge.http.current import current_bridge, origin_of
from bridge.http.proxies import is_same_origin, requested_url
from bridge.log import get_logger
from bridge.log_throttle import LogThrottle
from bridge.twilio.signature import (
    SETTINGS_HEADER,
    Params,
    UnknownSigning,
    is_signed,
    signing,
)

log = get_logger(__name__)

FORM_TYPE: Final = "application/x-www-form-urlencoded"

# Twilio sends some thirty, and a few more for each optional feature.
MAX_FIELDS: Final = 1000

# Scanners of the internet send a few requests a second; an operator who misconfigured a proxy reads
# the log within minutes.
SECONDS_BETWEEN_LINES: Final = 5.0

# The longest address in the log, in characters.
_SHOWN: Final = 300

_UNSIGNED: Final = "if this was Twilio, have the proxy pass on the header X-Twilio-Signature"
_WRONG: Final = (
    "if this was Twilio, compare checked_against with the address in its console and set "
    "server.public_url, or set TWILIO_AUTH_TOKEN to the token of that number's account"
)
_PAGE: Final = "open the softphone at this server's own address, or set server.public_url"
_CALL_AGAIN: Final = "press Call again"


class NotTwilio(Exception):
    """The request is not authenticated. The answer has an empty body; its status is 403, or 401 to
    `ask_password`, in case that Twilio has signed an address with one."""

    def __init__(self, *, ask_password: bool = False) -> None:
        super().__init__()
        self.ask_password = ask_password


class TwilioAuth:
    """Checks that requests are Twilio's. One per application, which limits its log lines."""

    def __init__(self) -> None:
        self._throttle = LogThrottle(SECONDS_BETWEEN_LINES)

    async def check_webhook(self, request: Request, settings: Settings) -> None:
        """Return if this request is Twilio's. Raises NotTwilio, and what reading a body raises."""
        if not settings.twilio.validate_signatures:
            return
        url = requested_url(settings.server.public_url, origin_of(request), _target(request.scope))
        if not request.headers.get("X-Twilio-Signature"):
            self._refuse("a webhook", url, "none", _UNSIGNED)  # without reading its body
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
        self._check("a webhook", request.headers, url, params, content)

    def check_socket(self, websocket: Websocket, settings: Settings) -> Purpose:
        """Return which ticket the media socket must show in its `start`: "phone" for Twilio's,
        "softphone" for a page's. Raises NotTwilio."""
        bridge, origin = current_bridge(), origin_of(websocket)
        public_url = settings.server.public_url
        url = requested_url(public_url, origin, _target(websocket.scope), websocket=True)
        bare = url.partition("?")[0]
        page = websocket.headers.get("Origin")
        if page is not None and not is_same_origin(page, origin, public_url):
            self._refuse("a socket of another site's page", bare, "none", _PAGE)
        ticket = websocket.args.get("ticket")
        if ticket is not None and page is not None:
            try:
                bridge.entrance.read_ticket(ticket)
            except BadTicket as error:
                self._refuse(f"a softphone with {error}", bare, "none", _CALL_AGAIN)
            return "softphone"
        if settings.twilio.validate_signatures:
            self._check("a media socket", websocket.headers, url)
        return "phone"

    def _check(
        self,
        what: str,
        headers: Headers,
        url: str,
        params: Params = (),
        content: bytes | None = None,
    ) -> None:
        """Return if the request is signed. Raises NotTwilio."""
        secrets, given = current_bridge().secrets, headers.get("X-Twilio-Signature", "")
        if not given:
            self._refuse(what, url, "none", _UNSIGNED)
        try:
            keys, algorithm = signing(
                headers.get(SETTINGS_HEADER, ""),
                secrets.twilio_auth_tokens,
                secrets.twilio_signing_keys,
            )
        except UnknownSigning as error:
            self._refuse(what, url, "unknown key", str(error))
        for one in (url, *_with_user(url, headers)):
            if is_signed(keys, given, one, params, body=content, algorithm=algorithm):
                return
        remedy = "; ".join(map(quoted_warning, secrets.quoted)) or _WRONG
        ask = what == "a webhook" and "Authorization" not in headers
        self._refuse(what, url, "wrong", remedy, ask_password=ask)

    def _refuse(
        self, what: str, url: str, signature: str, remedy: str, *, ask_password: bool = False
    ) -> NoReturn:
        suppressed = self._throttle.due()
        if suppressed is not None:
            log.warning(
                f"refused {what}",
                signature=signature,
                checked_against=_without_values(url)[:_SHOWN],
                remedy=remedy,
                others_since_the_last_line=suppressed,
            )
        raise NotTwilio(ask_password=ask_password)


def _with_user(url: str, headers: Headers) -> list[str]:
    """Return `url` with the user name and password that the request brought, as Twilio signs an
    address of the form https://user:password@host/. It sends them in the Authorization header.

    Its first request has no such header; it repeats it when the answer is 401.
    https://www.twilio.com/docs/usage/security#http-authentication
    """
    scheme, _, given = headers.get("Authorization", "").partition(" ")
    try:
        user = base64.b64decode(given.strip()).decode() if scheme.lower() == "basic" else ""
    except ValueError:
        user = ""
    if not user:
        return []
    name, colon, password = user.partition(":")
    encoded = f"{quote(name, safe='')}{colon}{quote(password, safe='')}"
    # A user name alone, https://user@host/, comes with an empty password.
    users = dict.fromkeys((user, encoded, user.removesuffix(":"), encoded.removesuffix(":")))
    before, _, after = url.partition("://")
    return [f"{before}://{one}@{after}" for one in users]


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
