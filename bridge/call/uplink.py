"""The caller's audio on its way from the receiver to the sender: a bounded memory channel.

At most QUEUE_SECONDS of audio wait between the two tasks. Beyond that, because the agent is slow or
not connected yet, the oldest audio is dropped and counted: in a conversation late audio is worse
than lost audio, and the receiver must keep reading `stop`, keys and marks. So the receiver never
waits; it removes the oldest audio itself.

Audio that arrives while the sender is busy is sent together, so a busy server batches by itself.

For some calls Twilio sends nothing while the caller is silent. Then `fill_silence`, a task of the
call, inserts silence: a deadline on each `take` instead would cost as much as the rest of this
path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from bridge.audio import BYTES_PER_MS, PHONE_FRAME_BYTES, SAMPLE_RATE, seconds, silence

# Long enough for an agent to connect while the caller already says hello; short enough that the
# agent, once connected, does not answer stale speech.
QUEUE_SECONDS: Final = 2.0

# Pieces that may wait: QUEUE_SECONDS of Twilio's 20 ms pieces, and some more.
QUEUE_PIECES: Final = 128

# Twilio sends every 20 ms, and the network sometimes bunches the packets; for some calls Twilio
# sends nothing in silence. A gap of 0.2 s is more than jitter, and short enough that the end of a
# turn, which the agent hears as silence, is not noticeably late.
SILENT_AFTER: Final = 0.2

# The most that one message to the agent carries: the longest `call.frame_ms`, and one piece more.
LONGEST_FRAME_BYTES: Final = 250 * BYTES_PER_MS + PHONE_FRAME_BYTES

# The delay of one frame in this many is measured: three a second.
DELAYS_SAMPLED: Final = 16

_QUEUE_BYTES: Final = int(QUEUE_SECONDS * SAMPLE_RATE)


class Uplink:
    """The caller's audio, µ-law at 8 kHz, between one task that puts and one that takes.

    `frame_ms` is how much is collected before `take` returns it: at 20, each of Twilio's pieces is
    passed on as it comes. `delay` is called for a sample of the frames with the seconds that their
    audio spent in bridge.
    """

    def __init__(self, frame_ms: int, delay: Callable[[float], object]) -> None:
        self._delay = delay
        wanted = frame_ms * BYTES_PER_MS
        # One piece from the phone is a frame by itself, even a short one.
        self._frame_bytes = wanted if wanted > PHONE_FRAME_BYTES else 1
        self._frame_seconds = frame_ms / 1000
        self._silence = silence(frame_ms)
        self._pieces_in, self._pieces = trio.open_memory_channel[bytes](QUEUE_PIECES)
        self._queued = 0
        self._frame = b""
        self._last_put_at = trio.current_time()
        # When a frame of silence is due, unless the phone sends audio before.
        self._silent_at = self._last_put_at + SILENT_AFTER
        self._oldest_at = 0.0
        self._frames_sent = 0
        self.bytes_put = 0
        self.bytes_dropped = 0

    def put(self, audio: bytes, received_at: float) -> None:
        """Add audio that the phone sent, µ-law at 8 kHz of any length. Never waits."""
        self.bytes_put += len(audio)
        self._last_put_at = received_at
        self._silent_at = received_at + SILENT_AFTER
        for start in range(0, len(audio), PHONE_FRAME_BYTES):
            self._put(audio[start : start + PHONE_FRAME_BYTES])

    def end(self) -> None:
        """End the audio: `take` returns what is queued and then raises trio.EndOfChannel."""
        self._pieces_in.close()

    @property
    def queued_seconds(self) -> float:
        """Seconds of the caller's audio that wait to be taken."""
        return seconds(self._queued)

    async def take(self) -> bytes:
        """Return the audio to send to the agent next: all that waits, 270 ms at most.

        Not a checkpoint if enough audio waits. Cancelling it loses nothing. Raises
        trio.EndOfChannel when the call's audio has ended and all of it was taken.
        """
        try:
            while len(self._frame) < self._frame_bytes or (
                self._queued and len(self._frame) <= LONGEST_FRAME_BYTES - PHONE_FRAME_BYTES
            ):
                # Without a turn of the scheduler when a piece waits.
                receive_now = self._pieces.receive_nowait
                piece = receive_now() if self._queued else await self._pieces.receive()
                self._queued -= len(piece)
                self._frame += piece
        except trio.EndOfChannel:
            if not self._frame:
                raise
        # Audio arrives in order and in real time, so its age follows from what is still queued.
        self._oldest_at = self._last_put_at - self._queued / SAMPLE_RATE
        frame, self._frame = self._frame, b""
        return frame

    async def fill_silence(self) -> None:
        """Insert a frame of silence per frame length while the phone sends nothing, from
        SILENT_AFTER seconds on, so that the agent detects the end of turns and keeps its session.

        Only while the sender waits: silence missed while it was busy, or had no session, is not
        made up for. Runs until cancelled.
        """
        while True:
            await trio.sleep_until(self._silent_at)
            now = trio.current_time()
            if now < self._silent_at:
                continue  # the phone has sent audio meanwhile
            late = now - self._silent_at > self._frame_seconds
            self._silent_at = (now if late else self._silent_at) + self._frame_seconds
            if self._pieces.statistics().tasks_waiting_receive:
                self._last_put_at = now
                self._put(self._silence[len(self._frame) :] or self._silence)

    def sent(self) -> None:
        """Record that the frame taken last was sent to the agent."""
        self._frames_sent += 1
        if self._frames_sent % DELAYS_SAMPLED == 1:
            self._delay(trio.current_time() - self._oldest_at)

    def _put(self, piece: bytes) -> None:
        while self._queued + len(piece) > _QUEUE_BYTES:
            self._drop_oldest()
        try:
            self._pieces_in.send_nowait(piece)
        except trio.WouldBlock:  # many pieces, each shorter than the phone's
            self._drop_oldest()
            self._pieces_in.send_nowait(piece)
        self._queued += len(piece)

    def _drop_oldest(self) -> None:
        piece = self._pieces.receive_nowait()
        self._queued -= len(piece)
        self.bytes_dropped += len(piece)
