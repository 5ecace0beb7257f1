"""The two ends of a call: Twilio's media socket, and the agent's server. Faithful in what costs.

They speak the protocols as far as a call in good health needs, so that the server does its whole
work; what they are sent beyond that is counted as unexpected. For faithful peers, see
`bridge.simulator`; these here are cheap instead.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

import msgspec

from tests.benchmarks.flow import Flow
from tests.benchmarks.wire import BINARY, TEXT, WebSocket, WireError, accept_value, header

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
    """The agent's end of one session: takes Settings, then audio both ways."""

    def __init__(self, on_ready: Callable[[AgentEnd], None]) -> None:
        super().__init__()
        self._on_ready = on_ready
        self.uplink: Flow | None = None
        self.downlink: Flow | None = None

    def on_head(self, head: bytes) -> None:
        """Accept the session and say Welcome."""
        key = header(head, b"sec-websocket-key")
        if not key:
            raise WireError("what connects to the agent is no websocket")
        self.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_value(key) + b"\r\n\r\n"
        )
        self.send(TEXT, _WELCOME)

    def on_message(self, kind: int, payload: bytes, now: int) -> None:
        """Audio is accounted for, Settings are applied, KeepAlive is ignored."""
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

    def __init__(self, host: str, path: str, sids: Sids, parameters: dict[str, str]) -> None:
        super().__init__()
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

    def on_connected(self) -> None:
        """Ask for the upgrade as Twilio does, without permessage-deflate."""
        self.write(
            f"GET {self._path} HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {self._key.decode()}\r\n\r\n".encode()
        )

    def on_head(self, head: bytes) -> None:
        """The server has answered the upgrade: introduce the call."""
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if " 101 " not in status + " ":
            raise WireError(f"the media socket was refused: {status}")
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
        """Audio is accounted for, a mark comes back at once: playback keeps up with the clock."""
        message = _from_server.decode(payload)
        if message.event == "media" and message.media is not None and self.downlink is not None:
            self.downlink.arrived(message.media.payload, now)
        elif message.event == "mark" and message.mark is not None:
            self._say(self._numbered({"event": "mark", "mark": {"name": message.mark.name}}))
        else:
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
        """The caller hangs up."""
        details = {"accountSid": self._sids.account, "callSid": self._sids.call}
        self._say(self._numbered({"event": "stop", "stop": details}))

    def _numbered(self, message: dict[str, object]) -> dict[str, object]:
        number, self._sequence = self._sequence, self._sequence + 1
        return message | {"sequenceNumber": str(number), "streamSid": self._sids.stream}

    def _say(self, message: dict[str, object]) -> None:
        self.send(TEXT, msgspec.json.encode(message))


class Sids:
    """Twilio's names for one call."""

    def __init__(self) -> None:
        self.account = "AC" + secrets.token_hex(16)
        self.call = "CA" + secrets.token_hex(16)
        self.stream = "MZ" + secrets.token_hex(16)


async def place_call(host: str, port: int) -> PhoneEnd:
    """Call the server: its webhook, then the media socket that the TwiML names, up to `start`.

    Raises WireError when the server does not take the call, OSError when it is not there.
    """
    sids = Sids()
    stream = await _webhook(host, port, sids)
    target = urlsplit(stream.get("url", ""))
    if target.scheme != "ws" or target.hostname is None:
        raise WireError(f"the TwiML names no plain media socket on this machine: {stream.attrib}")
    parameters = {p.get("name", ""): p.get("value", "") for p in stream.iter("Parameter")}
    path = target.path + (f"?{target.query}" if target.query else "")
    phone = PhoneEnd(target.netloc, path, sids, parameters)
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: phone, target.hostname, target.port or 80)
    await phone.opened
    return phone


async def _webhook(host: str, port: int, sids: Sids) -> ElementTree.Element:
    form = {
        "AccountSid": sids.account,
        "CallSid": sids.call,
        "CallStatus": "ringing",
        "Direction": "inbound",
        "From": "+15550100001",
        "To": "+15550100002",
    }
    body = urlencode(form).encode()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            f"POST /incoming-call HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if " 200" not in status:
            raise WireError(f"the webhook answered {status}")
        answer = await reader.readexactly(int(header(head, b"content-length") or b"0"))
    except asyncio.IncompleteReadError:
        raise WireError("the webhook's answer breaks off") from None
    finally:
        writer.close()
    stream = ElementTree.fromstring(answer).find(".//Stream")
    if stream is None:
        raise WireError("the TwiML has no <Stream>")
    return stream
