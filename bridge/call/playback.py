"""What the phone was sent and what of it the caller has heard. Pure; nothing is paced by sleeping.

Theory of operation. Twilio queues audio and plays it in real time, so the agent is done speaking
seconds before the caller has heard it. After each utterance a mark is sent; it comes back when all
audio before it was played. On `clear` Twilio throws the queue away and sends every outstanding mark
back as well, so a mark alone does not say "played": each carries the generation it was sent in, and
`clear` begins a new one. Between marks the clock tells how much is queued, because playing is real
time.

https://www.twilio.com/docs/voice/media-streams/websocket-messages#send-a-mark-message
"""

from __future__ import annotations

from bridge.audio import SAMPLE_RATE


class Playback:
    """Follows one phone's playback buffer. Times are seconds on a clock that never goes back."""

    def __init__(self) -> None:
        self._generation = 0
        self._marks = 0
        self._outstanding: set[str] = set()
        self._unmarked = False
        self._ends_at = float("-inf")

    def sent(self, audio_bytes: int, now: float) -> bool:
        """So much µ-law was written to the phone. Returns whether it had nothing left to play."""
        starts = self._ends_at <= now
        self._ends_at = (now if starts else self._ends_at) + audio_bytes / SAMPLE_RATE
        self._unmarked = True
        return starts

    def next_mark(self) -> str:
        """The name of the mark to send now, behind everything sent so far."""
        self._marks += 1
        self._unmarked = False
        name = f"{self._generation}:{self._marks}"
        self._outstanding.add(name)
        return name

    def mark_returned(self, name: str) -> bool:
        """A mark came back. True: the audio before it was heard; False: cleared, or not ours."""
        if name not in self._outstanding:
            return False
        self._outstanding.discard(name)
        return True

    def cleared(self, now: float) -> float:
        """`clear` was written. Returns about how much the caller did not hear, in seconds."""
        unheard = self.queued(now)
        self._generation += 1
        self._outstanding.clear()
        self._unmarked = False
        self._ends_at = now
        return unheard

    def queued(self, now: float) -> float:
        """About how much the phone still has to play, in seconds."""
        return max(0.0, self._ends_at - now)

    @property
    def may_be_playing(self) -> bool:
        """Whether audio was sent whose mark has not come back."""
        return self._unmarked or bool(self._outstanding)
