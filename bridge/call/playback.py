"""The phone's playback buffer: how much of the sent audio the caller has heard. Sans-I/O.

Theory of operation. Twilio queues audio and plays it in real time, so the agent finishes speaking
seconds before the caller has heard it. bridge sends a mark after each utterance; Twilio returns it
when all audio before it was played. On `clear` Twilio empties the queue and returns every
outstanding mark as well, so a mark alone does not mean "played": each carries the generation in
which it was sent, and `clear` begins a new one. Between marks the clock tells how much is queued,
because playback is in real time. Nothing is paced by sleeping.

https://www.twilio.com/docs/voice/media-streams/websocket-messages#send-a-mark-message
"""

from __future__ import annotations

from bridge.audio import SAMPLE_RATE


class Playback:
    """Tracks one phone's playback buffer. Times are seconds on a monotonic clock."""

    def __init__(self) -> None:
        self._generation = 0
        self._marks = 0
        self._outstanding: set[str] = set()
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
        name = f"{self._generation}:{self._marks}"
        self._outstanding.add(name)
        return name

    def mark_returned(self, name: str) -> bool:
        """Record a returned mark. True: the audio before it was heard; False: it was cleared, or
        bridge did not send this mark."""
        if name not in self._outstanding:
            return False
        self._outstanding.discard(name)
        return True

    def cleared(self, now: float) -> float:
        """Record that `clear` was written. Returns roughly how many seconds were not heard."""
        unheard = self.queued(now)
        self._generation += 1
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
