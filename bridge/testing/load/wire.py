"""WebSockets (RFC 6455) for the load generator: minimal but correct, to cost little.

The generator must cost less than what it measures, and a general library spends more on a frame
than the kernel does. Both ends here send short unfragmented messages, so a frame is a few bytes in
front of its payload. A peer that does anything else ends the load with an error that says so.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from typing import Final

TEXT: Final = 0x1
BINARY: Final = 0x2
_CLOSE: Final = 0x8
_PING: Final = 0x9
_PONG: Final = 0xA

_FINAL: Final = 0x80
_MASKED: Final = 0x80
_END_OF_HEAD: Final = b"\r\n\r\n"
_ACCEPT_SUFFIX: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WireError(Exception):
    """The peer did something unexpected; the message says what."""


class WebSocket(asyncio.Protocol):
    """One end of a websocket. Subclasses implement the handshake and handle messages.

    `closed` is done when the TCP connection is gone; its exception, if any, is why.
    """

    masks = False

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._said_close = False

    # ---- for subclasses --------------------------------------------------------------------

    def on_connected(self) -> None:
        """Called when TCP is connected: a client sends its request."""

    def on_head(self, head: bytes) -> None:
        """Called with the peer's part of the handshake. Raise WireError to refuse it."""

    def on_message(self, kind: int, payload: bytes, now: int) -> None:
        """Called with a TEXT or BINARY message; `now` is when it was read from the socket."""

    # ---- sending ---------------------------------------------------------------------------

    def send(self, kind: int, payload: bytes) -> None:
        """Send one message, below 64 KiB. Dropped when the socket is closed."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        size = len(payload)
        mask = _MASKED if self.masks else 0
        if size < 126:
            head = bytes((_FINAL | kind, mask | size))
        else:
            head = bytes((_FINAL | kind, mask | 126)) + size.to_bytes(2, "big")
        if mask:
            key = random.getrandbits(32).to_bytes(4, "big")
            head, payload = head + key, _xor(payload, key)
        self._transport.write(head + payload)

    def write(self, data: bytes) -> None:
        """Write bytes of the handshake."""
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """Send a Close frame, once."""
        if not self._said_close and self._transport is not None:
            self._said_close = True
            self.send(_CLOSE, (1000).to_bytes(2, "big"))

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio's side --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.on_connected()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
        try:
            if not self.opened.done():
                head, end, data = data.partition(_END_OF_HEAD)
                if not end:
                    self._rest = head
                    return
                self.on_head(head)
                self.opened.set_result(None)
            self._rest = data[self._frames(data, now) :]
        except Exception as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc)

    def _fail(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(error or WireError("closed during the handshake"))
        if not self.closed.done():
            if error is None:
                self.closed.set_result(None)
            else:
                self.closed.set_exception(error)
        self.abort()

    def _frames(self, data: bytes, now: int) -> int:
        """Handle every complete frame in `data`; return where the rest begins."""
        at, end = 0, len(data)
        while end - at >= 2:
            first, size = data[at], data[at + 1]
            start = at + 2
            masked, size = size & _MASKED, size & 0x7F
            if size == 126:
                size, start = int.from_bytes(data[start : start + 2], "big"), start + 2
            elif size == 127:
                size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            key = data[start : start + 4] if masked else b""
            start += 4 if masked else 0
            if start + size > end:
                break
            at = start + size
            payload = data[start:at]
            self._frame(first, _xor(payload, key) if masked else payload, now)
        return at

    def _frame(self, first: int, payload: bytes, now: int) -> None:
        kind = first & 0x0F
        if not first & _FINAL or first & 0x70:
            raise WireError("a fragmented or compressed frame, which this benchmark does not take")
        if kind in (TEXT, BINARY):
            self.on_message(kind, payload, now)
        elif kind == _PING:
            self.send(_PONG, payload)
        elif kind == _CLOSE:
            self.close()
            if not self.masks:
                # RFC 6455, section 7.1.1: the server closes TCP.
                assert self._transport is not None
                self._transport.close()


def accept_value(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _ACCEPT_SUFFIX, usedforsecurity=False).digest())


def header(head: bytes, name: bytes) -> bytes:
    """Return the value of a header in the head of an HTTP message, or b""."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _xor(payload: bytes, key: bytes) -> bytes:
    # As one large integer: a loop over bytes in Python would cost more than all the rest.
    size = len(payload)
    keys = (key * (size // 4 + 1))[:size]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")
    return mixed.to_bytes(size, "big")
