"""What goes through the pipes between a server and its speech workers, as bytes. Pure.

A frame is one letter that says what it is, the length of its content (four bytes, big-endian), and
the content. To the worker: SETUP (once, JSON), HEAR (µ-law), SPEAK (a number, text), END_TURN and
PING. From it: EVENT (JSON), SPEECH (the number, µ-law) and PONG.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

SETUP = b"C"
HEAR = b"A"
SPEAK = b"S"
END_TURN = b"T"
PING = b"P"

EVENT = b"E"
SPEECH = b"O"
PONG = b"Q"

# Twenty minutes of audio: more is no utterance, but a pipe that is out of step.
MAX_CONTENT = 10_000_000

_HEAD = struct.Struct(">cI")
_NUMBER = struct.Struct(">I")


class FrameError(ValueError):
    """The pipe carries something else than frames."""


def frame(kind: bytes, content: bytes = b"") -> bytes:
    """One frame. Raises FrameError when `content` is longer than MAX_CONTENT."""
    if len(content) > MAX_CONTENT:
        raise FrameError(f"a frame of {len(content)} bytes; the longest is {MAX_CONTENT}")
    return _HEAD.pack(kind, len(content)) + content


def numbered(number: int, content: bytes) -> bytes:
    """The content of SPEAK and SPEECH: which utterance, and its text or audio."""
    return _NUMBER.pack(number) + content


def split_number(content: bytes) -> tuple[int, bytes]:
    """What `numbered` joined. Raises FrameError."""
    if len(content) < _NUMBER.size:
        raise FrameError("a frame without its number")
    (number,) = _NUMBER.unpack_from(content)
    return number, content[_NUMBER.size :]


class FrameReader:
    """Takes bytes in any portions and gives whole frames, in order."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[tuple[bytes, bytes]]:
        """The frames that `data` completes, as kind and content. Raises FrameError."""
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            if length > MAX_CONTENT:
                raise FrameError(f"a frame of {length} bytes; the longest is {MAX_CONTENT}")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            yield kind, content
