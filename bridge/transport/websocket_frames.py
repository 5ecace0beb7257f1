"""WebSocket frames that need no care, read and written quickly; all others are wsproto's. Sans-I/O.

A call brings hundreds of frames a second, and all but a few are alike: one short message in one
frame. wsproto takes twenty microseconds for one, which is a fifth of all that carrying it costs.
Here such a frame is recognised by its first bytes and taken apart in three. Whatever is not of that
kind, in any respect, is passed on to wsproto byte for byte, so that everything that is difficult
about websockets (fragments, control frames, closing, what is malformed) is still its affair.

https://www.rfc-editor.org/rfc/rfc6455#section-5.2
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, TextMessage

# A longer frame is passed on as it comes: only what is short is worth waiting for its end.
LONGEST: Final = 64 * 1024

_FINAL: Final = 0x80
_FINAL_TEXT: Final = 0x81
_FINAL_BINARY: Final = 0x82
_MASKED: Final = 0x80
_CONTROL: Final = 0x08

_SHORT: Final = Struct(">BB").pack
_LONG: Final = Struct(">BBH").pack


class QuickConnection(Connection):
    """wsproto's `Connection`, without extensions: the same bytes and messages, in less time.

    A short message in one frame is read as its text or bytes and not as an event, even if the frame
    arrived in pieces. Whole messages are sent as text or bytes, too.
    """

    def __init__(self, connection_type: ConnectionType) -> None:
        super().__init__(connection_type)
        self._unread = b""
        self._mask_bit = 0 if connection_type is ConnectionType.CLIENT else _MASKED
        # Of the frame that is being passed on, so many bytes are still to come.
        self._passing = 0
        # Some message has begun in a frame that was passed on, and goes on in others.
        self._in_fragments = False
        # From here on all is wsproto's.
        self._careful = False

    def read(self, data: bytes) -> list[Event | str | bytes]:
        """Take apart what was received, and return what it completes, in order: wsproto's events,
        and in place of the event of a short message its text or bytes. Behind the peer's Close
        there is nothing."""
        found: list[Event | str | bytes] = []
        if self._unread:
            data = self._unread + data
        while data:
            if self._passing or self._careful or self._state is not ConnectionState.OPEN:
                data = self._pass_on(data, found)
                continue
            message, size = self._quick_message(data)
            if size == 0:
                break  # the rest of a short frame is still to come
            if message is None:
                self._passing = size
            else:
                data = data[size:]
                found.append(message)
        self._unread = data
        return found

    def send_message(self, message: str | bytes) -> bytes:
        """Return the bytes of a whole message. Raises LocalProtocolError behind our Close."""
        if isinstance(message, str):
            first, payload = _FINAL_TEXT, message.encode()
        else:
            first, payload = _FINAL_BINARY, message
        size = len(payload)
        plain = size < 65536 and self._state is ConnectionState.OPEN and not self._careful
        if not plain or self._proto._outbound_opcode is not None:
            # What is left is rare, and wsproto's.
            if isinstance(message, str):
                return super().send(TextMessage(data=message))
            return super().send(BytesMessage(data=message))
        mask_bit = _MASKED ^ self._mask_bit
        short = size < 126
        head = _SHORT(first, mask_bit | size) if short else _LONG(first, mask_bit | 126, size)
        if not mask_bit:
            return head + payload
        key = _keys.pop() if _keys else _new_key()
        return head + key + _mask(payload, key)

    def _quick_message(self, data: bytes) -> tuple[str | bytes | None, int]:
        """Return the message at the beginning of `data` and the length of its frame; no message, if
        the frame is to be passed on; and 0, if there is not enough of it to know."""
        available = len(data)
        if available < 2:
            return None, 0
        first, second = data[0], data[1]
        size, start = second & 0x7F, 2
        quick = first in (_FINAL_TEXT, _FINAL_BINARY) and not self._in_fragments
        if second & _MASKED != self._mask_bit or not (quick or _sound(first, size)):
            # Where the next frame begins is a question without an answer from here on.
            self._careful = True
            return None, available
        if size >= 126:
            start = 4 if size == 126 else 10
            if available < start:
                return None, 0
            shortest = 126 if size == 126 else 65536
            size = int.from_bytes(data[2:start], "big")
            if size < shortest or size >> 63:
                self._careful = True
                return None, available
        start += 4 if self._mask_bit else 0
        end = start + size
        if not quick or end > LONGEST:
            if not first & _CONTROL:
                self._in_fragments = not first & _FINAL
            return None, end
        if available < end:
            return None, 0
        payload = data[start:end]
        if self._mask_bit:
            payload = _mask(payload, data[start - 4 : start])
        if first == _FINAL_BINARY:
            return payload, end
        try:
            return payload.decode(), end
        except UnicodeDecodeError:
            return None, end

    def _pass_on(self, data: bytes, found: list[Event | str | bytes]) -> bytes:
        """Give wsproto what is its affair, collect its events, and return the rest."""
        count = len(data) if self._careful or not self._passing else self._passing
        part, rest = data[:count], data[count:]
        self._passing -= min(self._passing, len(part))
        self.receive_data(part)
        for event in self.events():
            found.append(event)
            # Said by the peer, or because of what it said: nothing behind it is to be read.
            self._careful = self._careful or isinstance(event, CloseConnection)
        is_open = self._state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING)
        return rest if is_open else b""


def _sound(first: int, size: int) -> bool:
    """Whether this can be the beginning of a frame: no reserved bit, a known opcode, a control
    frame short and whole."""
    if first & _CONTROL:
        return first in (0x88, 0x89, 0x8A) and size < 126
    return first & 0x7F <= 0x02


# Mask keys have to be unpredictable (RFC 6455, section 10.3) and are used once. Asking the kernel
# for a thousand of them at a time saves a system call for each frame.
_KEYS: Final = 1024
_keys: list[bytes] = []


def _new_key() -> bytes:
    pool = os.urandom(4 * _KEYS)
    _keys.extend(pool[start : start + 4] for start in range(0, len(pool), 4))
    return _keys.pop()


def _mask(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask. As one large number: a loop over bytes would take longer than the rest."""
    size = len(payload)
    keys = (key * (size // 4 + 1))[:size]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")
    return mixed.to_bytes(size, "big")
