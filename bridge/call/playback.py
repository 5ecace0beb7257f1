"""The phone's playback buffer: how much of the sent audio the caller has heard. Sans-I/O.

Theory of operation. Twilio queues audio and plays it in real time, so the agent finishes speaking
seconds before the caller has heard it. bridge sends a mark after each utterance; Twilio returns it
when all audio before it was played. On `clear` Twilio empties the queue and returns every
outstanding mark as well, so a mark alone does not mean "played": `clear` forgets the marks before
it, and no name is used twice. Between marks the clock tells how much is queued, because playback is
in real time. Nothing is paced by sleeping.

A mark may be lost, and audio may never get one, because its session broke in mid-sentence. Marks
come back in order, so a later one settles those before it; and MARK_GRACE seconds after the audio
should have been played, the clock settles the rest.

https://www.twilio.com/docs/voice/media-streams/websocket-messages#send-a-mark-message
"""

from __future__ import annotations

from typing import Final

from bridge.audio import SAMPLE_RATE

# How late a mark may come back, in seconds: the way to Twilio and back, and its jitter buffer.
MARK_GRACE: Final = 2.0


class Playback:
    """Tracks one phone's playback buffer. Times are seconds on a monotonic clock."""

    def __init__(self) -> None:
        self._marks = 0
        # Each with the time at which the audio before it will have been played, in order.
        self._outstanding: dict[str, float] = {}
        self._unmarked = False
        self._ends_at = float("-inf")

    def sent(self, audio_bytes: int, now: float) -> float:
        """Record that `audio_bytes` of µ-law at 8 kHz were written to the phone. Returns when it
        begins to play them: `now`, unless it still plays what was sent before."""
        plays_at = self._ends_at if self._ends_at > now else now
        self._ends_at = plays_at + audio_bytes / SAMPLE_RATE
        self._unmarked = True
        return plays_at

    def next_mark(self) -> str:
        """Return the name of the mark to send now, after all audio sent so far."""
        self._marks += 1
        self._unmarked = False
        name = str(self._marks)
        self._outstanding[name] = self._ends_at
        return name

    def mark_returned(self, name: str) -> list[str]:
        """Record a returned mark, and return all marks, in order, before which the audio was heard:
        this one and those before it; none if it was cleared, or bridge did not send this mark."""
        if name not in self._outstanding:
            return []
        names = list(self._outstanding)
        heard = names[: names.index(name) + 1]
        for one in heard:
            del self._outstanding[one]
        return heard

    def overdue(self, now: float) -> list[str]:
        """Settle by the clock what no mark has settled, and return the marks that this concerns, as
        `mark_returned` does."""
        if self._unmarked and now >= self._ends_at + MARK_GRACE:
            self._unmarked = False
        late = [name for name, at in self._outstanding.items() if now >= at + MARK_GRACE]
        return self.mark_returned(late[-1]) if late else []

    def cleared(self, now: float) -> float:
        """Record that `clear` was written. Returns roughly how many seconds were not heard."""
        unheard = self.queued(now)
        self._outstanding.clear()
        self._unmarked = False
        self._ends_at = now
        return unheard

    def queued(self, now: float) -> float:
        """Return roughly how many seconds the phone still has to play."""
        return max(0.0, self._ends_at - now)

    @property
    def may_be_playing(self) -> bool:
        """Whether the mark of some sent audio has not come back."""
        return self._unmarked or bool(self._outstanding)
