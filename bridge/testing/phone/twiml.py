"""TwiML as Twilio reads it: the answer to a voice webhook, as a list of verbs.

Only what a voice agent's server says is understood: `<Connect><Stream>`, and `<Say>`, `<Pause>`,
`<Redirect>`, `<Dial>`, `<Reject>`, `<Hangup>` at top level (twilio.com/docs/voice/twiml,
…/twiml/connect, …/twiml/stream). What Twilio refuses is refused here, under the number it has in
Twilio's debugger (twilio.com/docs/api/errors).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit
from xml.etree import ElementTree

INVALID_URL = 11100
TOO_LARGE = 11750
NOT_XML = 12100
SCHEMA = 12200
WRONG_CONTENT_TYPE = 12300
NOT_WSS = 31922
MALFORMED_STREAM_URL = 31923
WRONG_TRACK = 31941
INVALID_NUMBER = 13224
INVALID_CALLER_ID = 13214

MAX_TWIML_BYTES = 64 * 1024
MAX_PARAMETER_CHARACTERS = 500  # name and value together must stay below it

_CONTENT_TYPES = ("text/xml", "application/xml")
# twilio.com/docs/voice/twiml/dial, …/number, …/sip and …/client
_DIAL_ATTRIBUTES = {
    *("action", "answerOnBridge", "callerId", "hangupOnStar", "method", "record", "timeLimit"),
    *("timeout", "referUrl", "referMethod", "ringTone", "sequential"),
}
_CALLBACKS = {"statusCallback", "statusCallbackEvent", "statusCallbackMethod", "url", "method"}
_DIAL_NOUNS = {
    "Number": {"sendDigits", "byoc", *_CALLBACKS},
    "Sip": {"username", "password", *_CALLBACKS},
    "Client": _CALLBACKS,
}
_CONNECT_ATTRIBUTES = {"action", "method"}
_STREAM_ATTRIBUTES = {
    "connectorName",
    "name",
    "statusCallback",
    "statusCallbackMethod",
    "track",
    "url",
}


class TwimlError(Exception):
    """Twilio would reject this TwiML; `code` is the error its debugger would show."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Say:
    """Speak `text` to the caller, in `language`, with `voice` ("": Twilio's default)."""

    text: str
    language: str = "en-US"
    voice: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Keep the line open in silence for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the call."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Reject the call; the caller hears that the number is `reason` ("rejected", "busy")."""

    reason: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """Continue with the TwiML at the absolute `url`."""

    url: str
    method: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect the caller to `number`, "sip:…" or "client:…", which rings for `timeout` seconds.

    `caller_id` is the number that it shows ("": the caller's); `send_digits` are sent when it
    answers. When the second call is over, the absolute `action` is requested.
    """

    number: str
    caller_id: str = ""
    timeout: float = 30.0
    action: str | None = None
    method: str = "POST"
    send_digits: str = ""


@dataclass(frozen=True, slots=True)
class ConnectStream:
    """Connect the call to a websocket, both ways, until the server closes it."""

    url: str  # as Twilio would open (and sign) it
    parameters: tuple[tuple[str, str], ...]
    action: str | None  # absolute; requested when the server has closed the stream
    method: str


Verb = Say | Pause | Hangup | Reject | Redirect | Dial | ConnectStream


def read_twiml(body: bytes, content_type: str, url: str) -> list[Verb]:
    """Read the TwiML in `body`, which `url` answered with `content_type`.

    Relative addresses in it are resolved against `url`. Raises `TwimlError` for what Twilio
    refuses.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in _CONTENT_TYPES:
        raise TwimlError(WRONG_CONTENT_TYPE, f"Content-Type {content_type!r} is not text/xml")
    if len(body) > MAX_TWIML_BYTES:
        raise TwimlError(TOO_LARGE, f"{len(body)} bytes of TwiML are more than {MAX_TWIML_BYTES}")
    if b"<!DOCTYPE" in body:
        raise TwimlError(NOT_XML, "a DOCTYPE has no place in TwiML")
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - without a DOCTYPE no entities are defined
    except ElementTree.ParseError as error:
        raise TwimlError(NOT_XML, f"not XML: {error}") from None
    if root.tag != "Response":
        raise TwimlError(NOT_XML, f"the root is <{root.tag}>, not <Response>")
    return [_verb(element, url) for element in root]


def _verb(element: ElementTree.Element, url: str) -> Verb:
    text = "".join(element.itertext()).strip()
    match element.tag:
        case "Connect":
            return _connect(element, url)
        case "Say":
            _only(element, {"language", "voice", "loop"})
            return Say(text, element.get("language", "en-US"), element.get("voice", ""))
        case "Pause":
            return Pause(_seconds(element.get("length", "1")))
        case "Hangup":
            return Hangup()
        case "Reject":
            return Reject(element.get("reason", "rejected"))
        case "Redirect":
            return Redirect(_absolute(url, text), _method(element))
        case "Dial":
            return _dial(element, url)
    raise TwimlError(SCHEMA, f"<{element.tag}> is not a verb this phone knows")


def _dial(dial: ElementTree.Element, url: str) -> Dial:
    _only(dial, _DIAL_ATTRIBUTES)
    nouns = list(dial)
    if len(nouns) > 1:
        raise TwimlError(SCHEMA, "this phone knows <Dial> with one noun only")
    noun, text = "Number", (dial.text or "").strip()
    send_digits = ""
    if nouns:
        noun, text = nouns[0].tag, (nouns[0].text or "").strip()
        if noun not in _DIAL_NOUNS:
            raise TwimlError(SCHEMA, f"<Dial> may not hold <{noun}> here")
        _only(nouns[0], _DIAL_NOUNS[noun])
        send_digits = nouns[0].get("sendDigits", "")
    if not text:
        raise TwimlError(INVALID_NUMBER, "<Dial> has nobody to dial")
    action = dial.get("action")
    return Dial(
        f"client:{text}" if noun == "Client" else text,
        dial.get("callerId", ""),
        _seconds(dial.get("timeout", "30")),
        None if action is None else _absolute(url, action),
        _method(dial),
        send_digits,
    )


def _connect(connect: ElementTree.Element, url: str) -> ConnectStream:
    _only(connect, _CONNECT_ATTRIBUTES)
    nouns = list(connect)
    if len(nouns) != 1 or nouns[0].tag != "Stream":
        raise TwimlError(SCHEMA, "<Connect> must hold exactly one <Stream>")
    stream = nouns[0]
    _only(stream, _STREAM_ATTRIBUTES)
    if (track := stream.get("track", "inbound_track")) != "inbound_track":
        raise TwimlError(WRONG_TRACK, f"track {track!r}: <Connect> allows only inbound_track")
    parameters = []
    for parameter in stream:
        if parameter.tag != "Parameter":
            raise TwimlError(SCHEMA, f"<Stream> may not hold <{parameter.tag}>")
        _only(parameter, {"name", "value"})
        name, value = parameter.get("name"), parameter.get("value")
        if not name or value is None:
            raise TwimlError(SCHEMA, "<Parameter> needs a name and a value")
        if len(name) + len(value) >= MAX_PARAMETER_CHARACTERS:
            limit = MAX_PARAMETER_CHARACTERS
            raise TwimlError(SCHEMA, f"<Parameter name={name!r}> has {limit} characters or more")
        parameters.append((name, value))
    action = connect.get("action")
    return ConnectStream(
        _stream_url(url, stream.get("url", "")),
        tuple(parameters),
        None if action is None else _absolute(url, action),
        _method(connect),
    )


def _stream_url(base: str, given: str) -> str:
    """Return the websocket address of a `<Stream url>`, which may be relative to the TwiML's."""
    if not given:
        raise TwimlError(MALFORMED_STREAM_URL, "<Stream> has no url")
    if "?" in given:
        raise TwimlError(
            MALFORMED_STREAM_URL,
            f"<Stream url={given!r}>: Twilio drops a query string; use <Parameter>",
        )
    url = _joined(MALFORMED_STREAM_URL, base, given)
    if "://" not in given:
        url = url.replace("http", "ws", 1)
    parts = _split(MALFORMED_STREAM_URL, url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
        code = NOT_WSS if parts.hostname else MALFORMED_STREAM_URL
        raise TwimlError(code, f"<Stream url={given!r}> is not a wss:// address")
    return url


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect for a URL, and the Host header and request target to send."""

    host: str
    port: int
    tls: bool
    authority: str
    target: str


def address_of(url: str) -> Address:
    """Parse an http, https, ws or wss URL. Raises `TwimlError` (11100) if it is invalid."""
    parts = _split(INVALID_URL, url)
    printable = all("!" <= character <= "~" for character in url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname or not printable:
        raise TwimlError(INVALID_URL, f"{url!r} is not an http(s) or ws(s) address")
    tls = parts.scheme in ("https", "wss")
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    authority = parts.netloc.rpartition("@")[2]
    port = parts.port if parts.port is not None else (443 if tls else 80)
    return Address(parts.hostname, port, tls, authority, target)


def dialled_address(stream_url: str, base_url: str) -> tuple[Address, str | None]:
    """Return where a phone that called `base_url` opens `stream_url`; and a note if it differs.

    Twilio itself opens wss:// only. A server tried out on this machine has no certificate, so
    wss:// to the very host and port that was called over http:// is opened as ws://, and ws:// is
    allowed to that same place and to loopback. Raises `TwimlError` (31922) for any other ws://.
    """
    address = address_of(stream_url)
    base = address_of(base_url)
    same_place = not base.tls and base.authority.lower() == address.authority.lower()
    if same_place:
        plain = Address(base.host, base.port, False, base.authority, address.target)
        note = "no TLS: opened as ws://, as the call was placed over http://"
        return plain, note if address.tls else None
    if not address.tls and not _is_loopback(address.host):
        raise TwimlError(NOT_WSS, f"<Stream url={stream_url!r}>: Twilio opens wss:// only")
    return address, None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(base: str, given: str) -> str:
    url = _joined(INVALID_URL, base, given)
    address_of(url)
    return url


def _joined(code: int, base: str, given: str) -> str:
    try:
        return urljoin(base, given)
    except ValueError as error:
        raise TwimlError(code, f"{given!r} is not an address: {error}") from None


def _split(code: int, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise TwimlError(code, f"{url!r}: {error}") from None
    return parts


def _only(element: ElementTree.Element, known: set[str]) -> None:
    attributes: Mapping[str, str] = element.attrib
    if extra := attributes.keys() - known:
        raise TwimlError(SCHEMA, f"<{element.tag}> has no attribute {', '.join(sorted(extra))}")


def _method(element: ElementTree.Element) -> str:
    method = element.get("method", "POST").upper()
    if method not in ("GET", "POST"):
        raise TwimlError(SCHEMA, f"<{element.tag} method={method!r}> is neither GET nor POST")
    return method


def _seconds(length: str) -> float:
    if not length.isdecimal():
        raise TwimlError(SCHEMA, f"<Pause length={length!r}> is not a number of seconds")
    return float(length)
