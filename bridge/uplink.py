"""The caller's voice on its way from the receiver to the sender: framed, bounded, never stalling.

The channel between the two tasks holds QUEUE_SECONDS of audio. When it is full, because the agent
is slow or not connected yet, the oldest frame is dropped and counted: in a conversation late audio
is worse than lost audio, and the receiver must go on hearing `stop`, keys and marks.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from bridge.audio import BYTES_PER_MS, Framer, seconds, silence

# Long enough for an agent to connect while the caller already says hello; short enough that the
# agent, once there, does not answer the past.
QUEUE_SECONDS: Final = 2.0

# Twilio sends every 20 ms, bunched by the network now and then; for some calls it sends nothing in
# silence. A fifth of a second without audio is more than jitter, and little enough that the end of
# a turn, which the agent hears as silence, is not noticeably late.
SILENT_AFTER: Final = 0.2


class Uplink:
    """The caller's µ-law audio, 8 kHz, between one task that puts and one that takes.

    `frame_ms` is the length of a frame. No byte waits longer than that for its frame to fill.
    """

    def __init__(self, frame_ms: int) -> None:
        self._frame_seconds = frame_ms / 1000
        self._silence = silence(frame_ms)
        self._framer = Framer(frame_ms * BYTES_PER_MS)
        frames = max(2, round(QUEUE_SECONDS / self._frame_seconds))
        self._send, self._receive = trio.open_memory_channel[bytes](frames)
        # The taker's sleep. The putter brings its deadline forward when a frame begins to fill.
        self._sleep = trio.CancelScope()
        self._flush_at = float("inf")
        # When silence is due, unless the phone sends something before.
        self._silent_at = trio.current_time() + SILENT_AFTER
        self.bytes_put = 0
        self.bytes_dropped = 0

    def put(self, audio: bytes) -> None:
        """Add audio from the phone, in pieces of any length. Never blocks."""
        self.bytes_put += len(audio)
        now = trio.current_time()
        self._silent_at = now + SILENT_AFTER
        for frame in self._framer.frames(audio):
            self._put(frame)
            self._flush_at = float("inf")
        if self._framer.pending and self._flush_at == float("inf"):
            self._flush_at = now + self._frame_seconds
            self._sleep.deadline = min(self._sleep.deadline, self._flush_at)

    def end(self) -> None:
        """There is no more: what is queued can still be taken, then the taker is told."""
        if rest := self._framer.flush():
            self._put(rest)
        self._send.close()

    @property
    def queued_seconds(self) -> float:
        """About how much of the caller's audio waits to be taken."""
        frames = self._receive.statistics().current_buffer_used
        return frames * self._frame_seconds + seconds(self._framer.pending)

    async def take(self) -> bytes:
        """Return the next piece to send to the agent: at most a frame.

        When the phone has sent nothing for SILENT_AFTER seconds, this is a frame of silence once
        every frame's length, so that the agent's sense of time, and its session, stay alive.

        Raises trio.EndOfChannel when everything was taken and the call's audio has ended.
        """
        while True:
            self._sleep = trio.CancelScope(deadline=min(self._flush_at, self._silent_at))
            with self._sleep:
                return await self._receive.receive()
            # A frame may have come in the moment between the alarm and waking up, or before.
            with suppress(trio.WouldBlock):
                return self._receive.receive_nowait()
            now = trio.current_time()
            if now >= self._flush_at:
                self._flush_at = float("inf")
                return self._framer.flush()
            if now >= self._silent_at:
                # On the beat; but what was missed while the taker was elsewhere stays missed.
                late = now - self._silent_at > self._frame_seconds
                self._silent_at = (now if late else self._silent_at) + self._frame_seconds
                return self._silence

    def _put(self, frame: bytes) -> None:
        while True:
            try:
                return self._send.send_nowait(frame)
            except trio.WouldBlock:
                self.bytes_dropped += len(self._receive.receive_nowait())
