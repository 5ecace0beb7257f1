"""The frames in the pipes between a server and its speech workers. Sans-I/O.

A frame is one letter for its kind, the length of its content (four bytes, big-endian), and the
content. To the worker: SETUP (once, JSON), HEAR (µ-law), SPEAK (a number, text), END_TURN and
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

# Bytes; twenty minutes of audio. A longer frame means that the pipe is out of step.
MAX_CONTENT = 10_000_000

_HEAD = struct.Struct(">cI")
_NUMBER = struct.Struct(">I")


class FrameError(ValueError):
    """The pipe carries something other than frames."""


def frame(kind: bytes, content: bytes = b"") -> bytes:
    """Encode one frame. Raises FrameError when `content` is longer than MAX_CONTENT."""
    if len(content) > MAX_CONTENT:
        raise FrameError(f"a frame of {len(content)} bytes; the longest is {MAX_CONTENT}")
    return _HEAD.pack(kind, len(content)) + content


def numbered(number: int, content: bytes) -> bytes:
    """Encode the content of SPEAK and SPEECH: the number of the utterance, then text or audio."""
    return _NUMBER.pack(number) + content


def split_number(content: bytes) -> tuple[int, bytes]:
    """Split what `numbered` joined. Raises FrameError."""
    if len(content) < _NUMBER.size:
        raise FrameError("a frame without its number")
    (number,) = _NUMBER.unpack_from(content)
    return number, content[_NUMBER.size :]


class FrameReader:
    """Turns bytes, in pieces of any size, into whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[tuple[bytes, bytes]]:
        """Yield the frames that `data` completes, as kind and content. Raises FrameError."""
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
