"""When things happened in each turn: the caller stops, the agent answers, the caller hears. Pure.

The agent does not say when the caller stopped speaking, only when it is sure of it
(ConversationText of the user), so that is where a turn's clock starts; what the agent spent before
is in the latencies it reports.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bridge.deepgram.messages import AgentStartedSpeaking, LatencyReport

# A call of an hour has a few hundred; later ones are not kept.
MAX_TURNS: Final = 1000


class Turn(msgspec.Struct):
    """One exchange; times in seconds since the call began, latencies in seconds as reported."""

    caller_said_at: float | None = None
    audio_received_at: float | None = None
    audio_sent_at: float | None = None
    heard_at: float | None = None
    latencies: dict[str, float] = {}

    @property
    def latency(self) -> float | None:
        """From the caller's turn being confirmed to the agent's first audio sent, in seconds."""
        if self.caller_said_at is None or self.audio_sent_at is None:
            return None
        return self.audio_sent_at - self.caller_said_at


class Turns:
    """The turns of one call. The first may be a greeting, which answers nobody."""

    def __init__(self, began_at: float) -> None:
        self._began_at = began_at
        self._marks: dict[str, Turn] = {}
        self.all: list[Turn] = []

    def caller_spoke(self, now: float) -> None:
        """The caller began to speak: what comes belongs to a new turn."""
        if self.all and self.all[-1].audio_received_at is not None:
            self._new()

    def caller_said(self, now: float) -> None:
        """The caller's turn is confirmed."""
        turn = self._current()
        if turn.audio_received_at is not None:
            turn = self._new()
        turn.caller_said_at = now - self._began_at

    def agent_audio(self, now: float) -> None:
        """Agent audio has come."""
        turn = self._current()
        if turn.audio_received_at is None:
            turn.audio_received_at = now - self._began_at

    def audio_sent(self, now: float) -> bool:
        """Agent audio was written to the phone. Returns whether it was the turn's first."""
        turn = self._current()
        if turn.audio_sent_at is not None:
            return False
        turn.audio_sent_at = now - self._began_at
        return True

    def mark_sent(self, name: str) -> None:
        """A mark was sent behind this turn's audio."""
        self._marks[name] = self._current()

    def mark_heard(self, name: str, now: float) -> None:
        """The caller has heard everything before this mark."""
        turn = self._marks.pop(name, None)
        if turn is not None:
            turn.heard_at = now - self._began_at

    def cleared(self) -> None:
        """The phone was told to forget what it had not played: no mark behind that is heard."""
        self._marks.clear()

    def latencies(self, report: LatencyReport | AgentStartedSpeaking) -> None:
        """The agent reports what it took; the last word on each kind counts."""
        if self.all:
            reported = {
                k: v for k, v in msgspec.to_builtins(report).items() if isinstance(v, float)
            }
            self.all[-1].latencies |= reported

    def _current(self) -> Turn:
        return self.all[-1] if self.all else self._new()

    def _new(self) -> Turn:
        turn = Turn(latencies={})
        self.all.append(turn)
        del self.all[MAX_TURNS:]
        return turn
