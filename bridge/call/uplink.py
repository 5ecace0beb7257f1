"""The caller's voice on its way from the receiver to the sender: bounded, never stalling.

QUEUE_SECONDS of audio wait between the two tasks. When it is more, because the agent is slow or not
connected yet, the oldest is dropped and counted: in a conversation late audio is worse than lost
audio, and the receiver must go on hearing `stop`, keys and marks.

What was put while the taker was elsewhere is taken in one piece.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from bridge.audio import BYTES_PER_MS, PHONE_FRAME_BYTES, SAMPLE_RATE, seconds, silence

# Long enough for an agent to connect while the caller already says hello; short enough that the
# agent, once there, does not answer the past.
QUEUE_SECONDS: Final = 2.0

# Twilio sends every 20 ms, bunched by the network now and then; for some calls it sends nothing in
# silence. A fifth of a second without audio is more than jitter, and little enough that the end of
# a turn, which the agent hears as silence, is not noticeably late.
SILENT_AFTER: Final = 0.2

# The longest `call.frame_ms`, and a piece of the phone's that came just before the tick.
LONGEST_FRAME_BYTES: Final = 250 * BYTES_PER_MS + PHONE_FRAME_BYTES

_QUEUE_BYTES: Final = int(QUEUE_SECONDS * SAMPLE_RATE)


class Uplink:
    """The caller's µ-law audio, 8 kHz, between one task that puts and one that takes.

    `frame_ms` is the length of a frame of silence, where the phone sends nothing.
    """

    def __init__(self, frame_ms: int) -> None:
        self._frame_seconds = frame_ms / 1000
        self._silence = silence(frame_ms)
        self._pieces: deque[bytes] = deque()
        self._queued = 0
        self._ended = False
        self._taker = trio.lowlevel.ParkingLot()
        # When silence is due, unless the phone sends something before.
        # What the phone sends comes here once a frame, so one of those may be missing.
        self._silent_after = max(SILENT_AFTER, 2 * self._frame_seconds)
        self._silent_at = trio.current_time() + self._silent_after
        self._last_put_at = self._silent_at
        self.oldest_at = 0.0
        """When the oldest byte of what was taken last reached this machine, at the earliest: what
        came in one read may have waited for it for as long as it lasts."""
        self.bytes_put = 0
        self.bytes_dropped = 0

    def put(self, audio: bytes) -> None:
        """Add audio from the phone, in pieces of any length. Never blocks."""
        self.bytes_put += len(audio)
        self._last_put_at = trio.current_time()
        self._silent_at = self._last_put_at + self._silent_after
        for start in range(0, len(audio), LONGEST_FRAME_BYTES):
            piece = audio[start : start + LONGEST_FRAME_BYTES]
            self._pieces.append(piece)
            self._queued += len(piece)
        while self._queued > _QUEUE_BYTES:
            self.bytes_dropped += len(self._pieces[0])
            self._queued -= len(self._pieces.popleft())
        self._taker.unpark()

    def end(self) -> None:
        """There is no more: what is queued can still be taken, then the taker is told."""
        self._ended = True
        self._taker.unpark()

    @property
    def queued_seconds(self) -> float:
        """About how much of the caller's audio waits to be taken."""
        return seconds(self._queued)

    async def take(self) -> bytes:
        """Return what is to be sent to the agent next: all there is, 270 ms at most.

        When the phone has sent nothing for SILENT_AFTER seconds, or two frames, this is a frame of
        silence once every frame's length, so that the agent's sense of time, and its session, stay
        alive.

        No checkpoint when something is there. Raises trio.EndOfChannel when everything was taken
        and the call's audio has ended.
        """
        while not self._pieces:
            if self._ended:
                raise trio.EndOfChannel
            if (now := trio.current_time()) >= self._silent_at:
                # On the beat; but what was missed while the taker was elsewhere stays missed.
                late = now - self._silent_at > self._frame_seconds
                self._silent_at = (now if late else self._silent_at) + self._frame_seconds
                self.oldest_at = now
                return self._silence
            with trio.CancelScope(deadline=self._silent_at):
                await self._taker.park()
        # Everything is in the order in which it came, one second of it a second.
        self.oldest_at = self._last_put_at - seconds(self._queued)
        frame = self._pieces.popleft()
        while self._pieces and len(frame) + len(self._pieces[0]) <= LONGEST_FRAME_BYTES:
            frame += self._pieces.popleft()
        self._queued -= len(frame)
        return frame
