"""The two ends of a call: Twilio's media socket and the agent's server, as cheap as possible.

They implement the protocols as far as a normal call needs, so that the server does all of its work;
other messages are counted as unexpected. `bridge.testing.phone` and `.agent` are complete instead.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final
from urllib.parse import urlencode

import httpx
import msgspec

from bridge.testing.load.flow import Flow
from bridge.testing.load.wire import BINARY, TEXT, WebSocket, WireError, accept_value, header
from bridge.testing.phone.twiml import ConnectStream, Say, TwimlError, dialled_address, read_twiml
from bridge.testing.phone.webhook import WEBHOOK_SECONDS, sign, voice_form

_WELCOME: Final = b'{"type":"Welcome","request_id":"00000000-0000-0000-0000-000000000000"}'
_APPLIED: Final = b'{"type":"SettingsApplied"}'


class _Payload(msgspec.Struct):
    payload: bytes = b""


class _Mark(msgspec.Struct):
    name: str = ""


class _FromServer(msgspec.Struct):
    event: str
    media: _Payload | None = None
    mark: _Mark | None = None


_from_server = msgspec.json.Decoder(_FromServer)


class AgentEnd(WebSocket):
    """The agent's end of one session: accepts Settings, then audio both ways."""

    def __init__(self, on_ready: Callable[[AgentEnd], None]) -> None:
        super().__init__()
        self._on_ready = on_ready
        self.uplink: Flow | None = None
        self.downlink: Flow | None = None

    def on_head(self, head: bytes) -> None:
        """Accept the session and send Welcome."""
        key = header(head, b"sec-websocket-key")
        if not key:
            raise WireError("a connection to the agent is not a websocket")
        self.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_value(key) + b"\r\n\r\n"
        )
        self.send(TEXT, _WELCOME)

    def on_message(self, kind: int, payload: bytes, now: int) -> None:
        """Account for audio, apply Settings, ignore KeepAlive."""
        if kind == BINARY:
            if self.uplink is not None:
                self.uplink.arrived(payload, now)
        elif b'"Settings"' in payload:
            self.send(TEXT, _APPLIED)
            self._on_ready(self)

    def speak(self) -> None:
        """Send the next frame of the agent's voice."""
        assert self.downlink is not None
        self.send(BINARY, self.downlink.next_frame(time.monotonic_ns()))


class PhoneEnd(WebSocket):
    """Twilio's end of one media stream, from `connected` to `stop`."""

    masks = True

    def __init__(
        self, host: str, path: str, sids: Sids, parameters: dict[str, str], headers: str = ""
    ) -> None:
        super().__init__()
        self._headers = headers  # more of the request's, each with its line break
        self._host = host
        self._path = path
        self._sids = sids
        self._parameters = parameters
        self._key = base64.b64encode(secrets.token_bytes(16))
        self._sequence = 1
        self._chunk = 0
        self.uplink: Flow | None = None
        self.downlink: Flow | None = None
        self.unexpected = 0
        self.placed_at = 0  # ns of the monotonic clock
        self.first_audio_at: int | None = None

    def on_connected(self) -> None:
        """Request the upgrade as Twilio does, without permessage-deflate."""
        self.write(
            f"GET {self._path} HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {self._key.decode()}\r\n{self._headers}\r\n".encode()
        )

    def on_head(self, head: bytes) -> None:
        """Check the answer to the upgrade and send `connected` and `start`."""
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if " 101 " not in status + " ":
            kind = RefusedError if " 503" in status or " 429" in status else WireError
            raise kind(f"the media socket was refused: {status}")
        if header(head, b"sec-websocket-accept") != accept_value(self._key):
            raise WireError("the media socket's handshake is wrong")
        self._say({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        start = {
            "accountSid": self._sids.account,
            "streamSid": self._sids.stream,
            "callSid": self._sids.call,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": self._parameters,
        }
        self._say(self._numbered({"event": "start", "start": start}))

    def on_message(self, kind: int, payload: bytes, now: int) -> None:
        """Account for audio; return marks at once, since playback keeps up with the clock."""
        message = _from_server.decode(payload)
        if message.event == "media" and message.media is not None:
            if self.first_audio_at is None:
                self.first_audio_at = now
            if self.downlink is not None:
                self.downlink.arrived(message.media.payload, now)
        elif message.event == "mark" and message.mark is not None:
            self._say(self._numbered({"event": "mark", "mark": {"name": message.mark.name}}))
        elif message.event != "clear" or self.downlink is not None:
            # An agent of the server's own may well be interrupted by what it takes for speech.
            self.unexpected += 1

    def speak(self) -> None:
        """Send the next frame of the caller's voice."""
        assert self.uplink is not None
        self._sequence += 1
        self._chunk += 1
        now = time.monotonic_ns()
        payload = base64.b64encode(self.uplink.next_frame(now)).decode()
        # Twilio's message, field by field, as text: fifty a second are not worth an encoder.
        self.send(
            TEXT,
            f'{{"event":"media","sequenceNumber":"{self._sequence}","media":{{"track":"inbound",'
            f'"chunk":"{self._chunk}","timestamp":"{self._chunk * 20 + 60}",'
            f'"payload":"{payload}"}},"streamSid":"{self._sids.stream}"}}'.encode(),
        )

    def stop(self) -> None:
        """Hang up: send `stop`."""
        details = {"accountSid": self._sids.account, "callSid": self._sids.call}
        self._say(self._numbered({"event": "stop", "stop": details}))

    def _numbered(self, message: dict[str, object]) -> dict[str, object]:
        number, self._sequence = self._sequence, self._sequence + 1
        return message | {"sequenceNumber": str(number), "streamSid": self._sids.stream}

    def _say(self, message: dict[str, object]) -> None:
        self.send(TEXT, msgspec.json.encode(message))


class Sids:
    """Twilio's SIDs of one call."""

    def __init__(self) -> None:
        self.account = "AC" + secrets.token_hex(16)
        self.call = "CA" + secrets.token_hex(16)
        self.stream = "MZ" + secrets.token_hex(16)


class RefusedError(WireError):
    """The server refused this call in a regular way: busy, or no media socket."""


@dataclass(frozen=True)
class Target:
    """The server to call: `url` without the webhook's path; `token` signs as Twilio does."""

    url: str
    token: str | None = None
    from_number: str = "+15550100001"
    to_number: str = "+15550100002"
    webhook: str = "/incoming-call"


async def place_call(target: Target) -> PhoneEnd:
    """Call the server: its webhook, then the media socket that the TwiML names, up to `start`.

    Raises RefusedError when it refuses the call, another WireError for an invalid answer, OSError
    when it cannot be reached.
    """
    sids, placed_at = Sids(), time.monotonic_ns()
    stream = await _webhook(target, sids)
    try:
        address, _ = dialled_address(stream.url, target.url)
    except TwimlError as error:
        raise WireError(str(error)) from None
    headers = ""
    if target.token is not None:
        signed = "wss" + stream.url[stream.url.index("://") :]
        headers = f"X-Twilio-Signature: {sign(signed, (), target.token)}\r\n"
    phone = PhoneEnd(address.authority, address.target, sids, dict(stream.parameters), headers)
    phone.placed_at = placed_at
    await asyncio.get_running_loop().create_connection(
        lambda: phone, address.host, address.port, ssl=_tls() if address.tls else None
    )
    try:
        await phone.opened
    except BaseException:
        phone.abort()
        raise
    return phone


async def _webhook(target: Target, sids: Sids) -> ConnectStream:
    """Request the webhook; return the stream that its TwiML connects the call to."""
    url = target.url.rstrip("/") + target.webhook
    form = voice_form(
        call_sid=sids.call,
        account_sid=sids.account,
        from_number=target.from_number,
        to_number=target.to_number,
        caller_name=None,
        call_status="ringing",
    )
    headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "TwilioProxy/1.1"}
    if target.token is not None:
        headers["X-Twilio-Signature"] = sign(url, form, target.token)
    try:
        # No proxy of this machine's environment stands between Twilio and a server.
        async with httpx.AsyncClient(trust_env=False, timeout=WEBHOOK_SECONDS) as client:
            answer = await client.post(url, content=urlencode(form), headers=headers)
    except httpx.ConnectError as error:
        raise ConnectionError(f"cannot reach {target.url} ({error})") from None
    except httpx.HTTPError as error:
        raise WireError(f"the webhook did not answer: {type(error).__name__} {error}") from None
    if answer.status_code == 503:
        raise RefusedError("the webhook answered 503")
    if answer.status_code in (401, 403):
        raise WireError(
            f"the webhook answered {answer.status_code}: it wants a request that Twilio has "
            "signed; set TWILIO_AUTH_TOKEN to the one the server has"
        )
    if answer.status_code != 200:
        raise WireError(f"the webhook answered {answer.status_code}")
    try:
        verbs = read_twiml(answer.content, answer.headers.get("Content-Type", ""), url)
    except TwimlError as error:
        raise WireError(f"Twilio would refuse the TwiML, error {error}") from None
    for verb in verbs:
        if isinstance(verb, ConnectStream):
            return verb
    words = next((verb.text for verb in verbs if isinstance(verb, Say)), "")
    raise RefusedError(f"the server says: {words}" if words else "the TwiML connects to no stream")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
