"""µ-law audio at 8 kHz, the one format of a phone call: one byte is 125 µs. Pure functions only."""

from __future__ import annotations

from typing import Final

SAMPLE_RATE: Final = 8000
"""Samples, and in µ-law therefore bytes, per second."""

BYTES_PER_MS: Final = SAMPLE_RATE // 1000

PHONE_FRAME_BYTES: Final = 20 * BYTES_PER_MS
"""What Twilio sends in one media message, and the unit it plays without jitter: 20 ms."""

SILENCE: Final = b"\xff"
"""One µ-law sample of digital silence (ITU-T G.711: +0)."""


def silence(milliseconds: int) -> bytes:
    """Return that much µ-law silence."""
    return SILENCE * (milliseconds * BYTES_PER_MS)


def seconds(audio_bytes: int) -> float:
    """Return how long that many bytes of µ-law play, in seconds."""
    return audio_bytes / SAMPLE_RATE


class Framer:
    """Cuts a stream of µ-law, arriving in pieces of any size, into whole frames.

    Every byte comes out once and in order; what does not fill a frame waits for the next piece or
    for `flush`.
    """

    def __init__(self, frame_bytes: int) -> None:
        if frame_bytes < 1:
            raise ValueError(f"a frame has at least one byte, not {frame_bytes}")
        self.frame_bytes = frame_bytes
        self._rest = b""

    def whole(self, audio: bytes) -> bytes:
        """Add audio and return all whole frames in one piece, b"" when there is none yet."""
        if self._rest:
            audio = self._rest + audio
        cut = len(audio) - len(audio) % self.frame_bytes
        self._rest = audio[cut:]
        return audio[:cut]

    def flush(self) -> bytes:
        """Return and forget what has not filled a frame."""
        rest, self._rest = self._rest, b""
        return rest
