"""The agent's audio on its way to the phone: sending, interrupting, and tracking its playback.

The counterpart of `uplink`. There is no queue between tasks in this direction: the agent reader
writes to the phone itself, so that audio, `clear` and marks reach it in the order of the agent's
messages, and audio of a reply never overtakes the `clear` that interrupts the reply before it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import trio

from bridge.audio import PHONE_FRAME_BYTES, SAMPLE_RATE, Framer
from bridge.call.barge_in import STALE_SECONDS, StaleAudioGate
from bridge.call.playback import Playback
from bridge.call.silence import Silence
from bridge.call.story import Story
from bridge.twilio.media_stream import MediaStream

# One media message carries at most one second of audio: the agent sends faster than real time, and
# `clear` cannot overtake a message that is being written.
MAX_MEDIA_BYTES: Final = SAMPLE_RATE

# The delay of one message in this many is measured.
DELAYS_SAMPLED: Final = 16


class Recording(Protocol):
    """Both sides of a call on disk; see `bridge.records.wav.CallRecording`. Never raises.

    `audio` is µ-law at 8 kHz, `at` seconds since the call began: for the caller's audio when it was
    spoken, for the rest when it happens. `path` is None until there is a file.
    """

    path: Path | None

    def caller(self, audio: bytes, at: float) -> None: ...

    def agent(self, audio: bytes, at: float) -> None: ...

    def cleared(self, at: float) -> None: ...

    def finish(self, at: float) -> None: ...

    async def run(self) -> None: ...


class Downlink:
    """The agent's audio of one call, from the agent's sessions to the phone.

    Outlives the agent's sessions. `delay` is called for a sample of the messages with the seconds
    that their audio spent in bridge. Every method that sends is a checkpoint; if it is cancelled, a
    message is sent whole or not at all. A lost phone is not reported here: the receiver reports it.
    """

    def __init__(
        self,
        phone: MediaStream,
        story: Story,
        silence: Silence,
        recording: Recording | None,
        delay: Callable[[float], object],
    ) -> None:
        self._phone = phone
        self._story = story
        self._silence = silence
        self._recording = recording
        self._delay = delay
        self._frames = Framer(PHONE_FRAME_BYTES)
        self._audio = bytearray()
        self._oldest_at = 0.0
        self._cuts = 0
        self.gate = StaleAudioGate()
        self.playback = Playback()
        self.bytes_dropped = 0
        """Bytes of agent audio discarded because the caller interrupted."""

    def session_opened(self) -> None:
        """Reset the gate and the framer: a new session has no stale or partial audio."""
        self.gate = StaleAudioGate()
        self._frames.flush()
        self._story.utterance_done()

    @property
    def unsent(self) -> int:
        """Bytes received from the agent and not sent yet."""
        return len(self._audio)

    def put(self, audio: bytes, received_at: float) -> None:
        """Take audio that the agent sent, µ-law at 8 kHz of any length, for `play`. Audio of a
        reply that the caller has interrupted is dropped."""
        if not self.gate.passes(received_at):
            self.bytes_dropped += len(audio)
            return
        if not self._audio:
            self._oldest_at = received_at
        self._story.audio_received(received_at)
        self._audio += self._frames.whole(audio)

    async def play(self) -> bool:
        """Send the queued audio, in as few messages as MAX_MEDIA_BYTES allows. Returns whether the
        phone was silent before, or this is the first audio of a turn."""
        if not self._audio:
            return False
        audio, self._audio = bytes(self._audio), bytearray()
        cuts, began = self._cuts, False
        for start in range(0, len(audio), MAX_MEDIA_BYTES):
            piece = audio[start : start + MAX_MEDIA_BYTES]
            await self._phone.play(piece)
            if cuts != self._cuts:
                break  # another task has sent `clear`, right after this piece
            now = trio.current_time()
            if self._phone.frames_sent % DELAYS_SAMPLED == 1:
                self._delay(now - self._oldest_at)
            plays_at = self.playback.sent(len(piece), now)
            began |= self._story.audio_sent(len(piece), now, plays_at) or plays_at == now
            self._silence.agent_audio(now)
            if self._recording is not None:
                self._recording.agent(piece, self._story.seconds(now))
        return began

    async def finish_utterance(self) -> str | None:
        """Send the last bytes of an utterance and a mark after them. Returns the mark's name, or
        None if no audio is playing, in which case no mark is sent."""
        self.gate.audio_done()
        self._audio += self._frames.flush()
        await self.play()
        self._story.utterance_done()
        if not self.playback.may_be_playing:
            return None
        mark = self.playback.next_mark()
        self._story.mark_sent(mark)
        await self._phone.mark(mark)
        return mark

    async def clear(self, signalled_at: float, stale_seconds: float = STALE_SECONDS) -> None:
        """Silence the agent, because the caller interrupted it.

        Audio not written yet is dropped, and the phone discards the audio it has not played.
        `clear` is sent even if the phone should be silent: it costs nothing, and the phone may
        still be playing. `signalled_at` is when UserStartedSpeaking came, on Trio's clock; audio of
        the interrupted reply is dropped for `stale_seconds` more.
        """
        self.gate.caller_cut_in(signalled_at, stale_seconds)
        self._cuts += 1
        unsent = len(self._audio) + len(self._frames.flush())
        self.bytes_dropped += unsent
        self._audio.clear()
        await self._phone.clear()
        now = trio.current_time()
        unheard = self.playback.cleared(now)
        self._story.barge_in_seconds.append(now - signalled_at)
        self._story.barge_ins += unsent > 0 or unheard > 0
        self._story.cleared(unheard, now)
        if self._recording is not None:
            self._recording.cleared(self._story.seconds(now))
        self._silence.agent_done_playing(now)

    def mark_returned(self, name: str, now: float) -> list[str]:
        """Record a mark that came back from the phone. Returns the marks before which the audio was
        heard: this one and earlier ones, or none if it was cleared."""
        return self._heard(self.playback.mark_returned(name), now)

    def overdue(self, now: float) -> list[str]:
        """Record as heard what the phone must have played by now, although no mark came back.
        Returns the marks, as `mark_returned` does."""
        return self._heard(self.playback.overdue(now), now)

    def _heard(self, marks: list[str], now: float) -> list[str]:
        for mark in marks:
            self._story.mark_heard(mark, now)
        if not self.playback.may_be_playing:
            self._silence.agent_done_playing(now)
        return marks

    async def wait_played(self) -> None:
        """Wait until the phone has played all audio sent to it, by the clock's estimate."""
        while (queued := self.playback.queued(trio.current_time())) > 0:  # noqa: ASYNC110
            await trio.sleep(queued)
