"""The webhook side of a simulated Twilio: signed form requests over plain HTTP/1.1.

twilio.com/docs/voice/twiml lists what a voice webhook is sent, twilio.com/docs/usage/security how
it is signed. The client is h11 over any Trio stream, so that the same code calls a server in
memory, on this machine, or behind TLS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlencode

import h11
import trio

from bridge.testing.phone.twiml import MAX_TWIML_BYTES, Address, TwimlError, address_of

Form = list[tuple[str, str]]
OpenStream = Callable[[str, int, bool], Awaitable[trio.abc.Stream]]

WEBHOOK_SECONDS = 15.0  # Twilio's own limit for a voice webhook
RETRIEVAL_FAILED = 11200

_RECEIVE_BYTES = 64 * 1024
_GEOGRAPHY = ("City", "State", "Zip", "Country")


class WebhookError(Exception):
    """The webhook returned no TwiML; `code` is the error Twilio's debugger would show."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class UnreachableError(WebhookError):
    """No connection to the server could be made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response: `body` is whole, at most 64 KiB."""

    status: int
    content_type: str
    body: bytes


async def open_network_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
    """Connect over TCP, with TLS and a verified certificate when `tls`. Raises `OSError`."""
    if not tls:
        return await trio.open_tcp_stream(host, port)
    stream = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        raise OSError(f"TLS: {error.__cause__ or error}") from error
    return stream


def sign(url: str, params: Iterable[tuple[str, str]], token: str) -> str:
    """Return the X-Twilio-Signature of a request (twilio.com/docs/usage/security).

    `url` exactly as requested; `params` the form as name and value pairs, empty for GET and for
    websockets. Each distinct pair counts once, in the order of its code points.
    """
    signed = url + "".join(name + value for name, value in sorted(set(params)))
    digest = hmac.new(token.encode(), signed.encode(), hashlib.sha1).digest()
    return base64.b64encode(digest).decode("ascii")


def voice_form(
    *,
    call_sid: str,
    account_sid: str,
    from_number: str,
    to_number: str,
    caller_name: str | None,
    call_status: str,
) -> Form:
    """Return the form of a voice webhook; unknown geography is empty, as with Twilio."""
    form = [
        ("AccountSid", account_sid),
        ("ApiVersion", "2010-04-01"),
        ("CallSid", call_sid),
        ("CallStatus", call_status),
        ("Direction", "inbound"),
    ]
    for role, number in (
        ("Called", to_number),
        ("Caller", from_number),
        ("From", from_number),
        ("To", to_number),
    ):
        form.append((role, number))
        form += [(role + part, "") for part in _GEOGRAPHY]
    if caller_name is not None:
        form.append(("CallerName", caller_name))
    return sorted(form)


async def request(
    url: str,
    form: Form,
    *,
    method: str = "POST",
    token: str | None = None,
    open_stream: OpenStream = open_network_stream,
    pause: float = 0.0,
    seconds: float = WEBHOOK_SECONDS,
) -> Answer:
    """Make one webhook request, signed when there is a `token`, and return its answer.

    A GET carries the form in the query string. The head and the body are sent apart, as common
    HTTP clients do, with `pause` seconds in between. Raises `UnreachableError` when there is no
    connection, `WebhookError` for anything but a 2xx answer within `seconds`.
    """
    if method == "GET":
        url += ("&" if "?" in url else "?") + urlencode(form)
        form = []
    try:
        address = address_of(url)
    except TwimlError as error:
        raise WebhookError(error.code, error.detail) from None
    body = urlencode(form).encode("ascii") if method == "POST" else b""
    headers = [
        ("Host", address.authority),
        ("User-Agent", "TwilioProxy/1.1"),
        ("Accept", "*/*"),
        ("Connection", "close"),
    ]
    if method == "POST":
        headers.append(("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8"))
        headers.append(("Content-Length", str(len(body))))
    if token is not None:
        headers.append(("X-Twilio-Signature", sign(url, form, token)))
    head = h11.Request(method=method, target=address.target, headers=headers)
    answer = None
    with trio.move_on_after(seconds):
        answer = await _exchange(address, open_stream, head, body, pause, url)
    if answer is None:
        raise WebhookError(RETRIEVAL_FAILED, f"{url}: no answer within {seconds:g} s")
    if not 200 <= answer.status < 300:
        raise WebhookError(RETRIEVAL_FAILED, f"{url}: HTTP status {answer.status}")
    return answer


async def _exchange(
    address: Address,
    open_stream: OpenStream,
    head: h11.Request,
    body: bytes,
    pause: float,
    url: str,
) -> Answer:
    try:
        stream = await open_stream(address.host, address.port, address.tls)
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise UnreachableError(RETRIEVAL_FAILED, f"{url}: {why}") from error
    connection = h11.Connection(h11.CLIENT)
    try:
        await stream.send_all(connection.send(head) or b"")
        if body:
            await trio.sleep(pause)
            # A server that refuses the head may have closed by now; its answer counts.
            with suppress(trio.BrokenResourceError):
                await stream.send_all(connection.send(h11.Data(data=body)) or b"")
        connection.send(h11.EndOfMessage())
        return await _read_answer(connection, stream, url)
    except trio.BrokenResourceError as error:
        raise WebhookError(RETRIEVAL_FAILED, f"{url}: the connection was lost") from error
    except h11.RemoteProtocolError as error:
        raise WebhookError(RETRIEVAL_FAILED, f"{url}: not an HTTP answer: {error}") from error
    finally:
        await trio.aclose_forcefully(stream)


async def _read_answer(connection: h11.Connection, stream: trio.abc.Stream, url: str) -> Answer:
    response: h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_RECEIVE_BYTES)))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_TWIML_BYTES:
                raise WebhookError(RETRIEVAL_FAILED, f"{url}: answered more than 64 KiB")
        elif isinstance(event, h11.EndOfMessage):
            break
    assert response is not None  # h11 yields no end without a start
    types = [value for name, value in response.headers if name == b"content-type"]
    return Answer(response.status_code, (types or [b""])[0].decode("latin-1"), bytes(body))
