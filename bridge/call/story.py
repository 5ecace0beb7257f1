"""The story of a call, in one vocabulary: lines, turns, function uses. Sans-I/O.

Records, the live view, the console and traces use these structs unchanged, so that a name means the
same everywhere. Times are seconds since the call began.

Theory of operation. The agent's texts arrive with the audio that speaks them, seconds before the
caller hears it. A line is therefore stored with its position in the audio: it begins where the
audio sent so far ends, and ends where the next line begins. A returned mark means that all audio
before its position was heard; `clear` means that all audio after some position was not. A line that
contains this position was cut off.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from bridge.audio import SAMPLE_RATE, seconds
from bridge.deepgram.messages import AgentStartedSpeaking, LatencyReport

Role = Literal["caller", "agent", "keypad"]
Heard = Literal["", "heard", "cut", "unheard"]

# A call of an hour has a few hundred lines and turns, and a few dozen function uses. Items beyond
# the limit are counted or dropped, so that a call of days does not exhaust the memory.
MAX_LINES: Final = 2000
MAX_TURNS: Final = 1000
MAX_FUNCTIONS: Final = 1000


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One utterance, or one keypad entry.

    `heard` says how much of the agent's words the caller heard: all ("heard"), the beginning
    ("cut", roughly `heard_seconds` of it where that is known), or nothing ("unheard"); "" while it
    is not known.
    """

    at: float = 0.0
    role: Role = "caller"
    words: str = ""
    heard: Heard = ""
    heard_seconds: float | None = None


class Turn(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The timings of one exchange. None: the event did not happen, or its time is not known.

    `caller_said_at` is when the agent confirmed the caller's turn (ConversationText of the user),
    which is later than the end of the caller's speech. `latencies` are the agent's own figures:
    seconds by name, such as `total_latency`.
    """

    caller_said_at: float | None = None
    first_audio_received_at: float | None = None
    first_audio_sent_at: float | None = None
    heard_at: float | None = None
    latencies: dict[str, float] = {}

    @property
    def latency(self) -> float | None:
        """Seconds from the confirmation of the caller's turn to the first audio of the reply that
        was sent to the phone."""
        if self.caller_said_at is None or self.first_audio_sent_at is None:
            return None
        return self.first_audio_sent_at - self.caller_said_at


class FunctionUse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One function that the agent called: when it began, and how many `seconds` it ran. `result` is
    "ok", "error", "timeout" or "cancelled", and "" while it runs."""

    at: float = 0.0
    name: str = ""
    seconds: float = 0.0
    result: str = ""
    arguments: str = ""
    answer: str = ""


class Story:
    """The events of one call so far. `now` is a time on Trio's clock."""

    def __init__(self, began_at: float) -> None:
        self._began_at = began_at
        self.lines: list[Line] = []
        self.lines_left_out = 0
        self.turns: list[Turn] = []
        self.functions: list[FunctionUse] = []
        self.barge_ins = 0
        """How often the caller interrupted audio that was then not heard."""
        self.barge_in_seconds: list[float] = []
        """Seconds from each UserStartedSpeaking to `clear`, even when the phone was silent."""
        self._sent = 0  # bytes of the agent's audio
        # Lines of the agent not known to be heard or cleared yet, each with its place in the audio.
        self._open: list[tuple[int, Line]] = []
        # Outstanding marks: the place in the audio, and the turn, that each of them follows.
        self._places: dict[str, int] = {}
        self._marked: dict[str, Turn] = {}

    def seconds(self, now: float) -> float:
        """Return how many seconds the call has lasted."""
        return now - self._began_at

    # ---- the caller -----------------------------------------------------------------------------

    def caller_line(self, words: str, now: float, role: Role = "caller") -> None:
        """Add words that the caller said or wrote, or keys that the caller pressed."""
        self._add(Line(at=self.seconds(now), role=role, words=words, heard="heard"))

    def caller_spoke(self) -> None:
        """Begin a new turn: the caller has started to speak."""
        if self.turns and self.turns[-1].first_audio_received_at is not None:
            self._new_turn()

    def turn_confirmed(self, now: float) -> None:
        """The agent has confirmed the caller's turn."""
        turn = self._turn()
        if turn.first_audio_received_at is not None:
            turn = self._new_turn()
        turn.caller_said_at = self.seconds(now)

    # ---- the agent ------------------------------------------------------------------------------

    def agent_line(self, words: str, now: float, waiting: int = 0) -> None:
        """Add words of the agent. The audio sent from now on speaks them, after the `waiting` bytes
        that came earlier and are not sent yet."""
        line = Line(at=self.seconds(now), role="agent", words=words)
        # Of the lines left out, only the start of the first matters: the line before ends there.
        if self._add(line) or (self._open and self._open[-1][1] is self.lines[-1]):
            self._open.append((self._sent + waiting, line))

    def latencies(self, report: LatencyReport | AgentStartedSpeaking) -> None:
        """Add the agent's own latencies of this turn; the last report of each kind counts."""
        if self.turns:
            reported = msgspec.to_builtins(report)
            self.turns[-1].latencies |= {k: v for k, v in reported.items() if isinstance(v, float)}

    def function_used(self, name: str, seconds: float, result: str, now: float) -> None:
        """Add a function that has ended now, after `seconds`."""
        if len(self.functions) < MAX_FUNCTIONS:
            at = self.seconds(now) - seconds
            self.functions.append(FunctionUse(at=at, name=name, seconds=seconds, result=result))

    # ---- the agent's audio ----------------------------------------------------------------------

    def audio_received(self, now: float) -> None:
        """Agent audio that will be played has arrived."""
        turn = self.turns[-1] if self.turns else self._new_turn()
        if turn.first_audio_received_at is None:
            turn.first_audio_received_at = self.seconds(now)

    def audio_sent(self, nbytes: int, now: float) -> bool:
        """`nbytes` of agent audio were written to the phone. Returns whether they were the turn's
        first."""
        self._sent += nbytes
        turn = self.turns[-1] if self.turns else self._new_turn()
        if turn.first_audio_sent_at is not None:
            return False
        turn.first_audio_sent_at = self.seconds(now)
        return True

    def mark_sent(self, name: str) -> None:
        """A mark was sent after the audio sent so far."""
        self._places[name] = self._sent
        self._marked[name] = self._turn()

    def mark_heard(self, name: str, now: float) -> None:
        """A mark came back because all audio before it was played."""
        if (turn := self._marked.pop(name, None)) is not None:
            turn.heard_at = self.seconds(now)
        if (place := self._places.pop(name, None)) is not None:
            self._settle(place, cleared=False)

    def cleared(self, unheard_seconds: float) -> None:
        """The phone was told to discard `unheard_seconds` of the audio sent to it; the marks after
        that audio no longer mean that it was heard."""
        self._settle(self._sent - round(unheard_seconds * SAMPLE_RATE), cleared=True)
        self._places.clear()
        self._marked.clear()

    def _settle(self, place: int, *, cleared: bool) -> None:
        if not self._open:
            return
        ends = [begin for begin, _ in self._open[1:]] + [self._sent]
        still_open = []
        for (begin, line), end in zip(self._open, ends, strict=True):
            if end <= place:
                line.heard = "heard"
            elif not cleared:
                still_open.append((begin, line))
            elif begin >= place:
                line.heard = "unheard"
            else:
                line.heard, line.heard_seconds = "cut", round(seconds(place - begin), 2)
        self._open = still_open

    def _add(self, line: Line) -> bool:
        if len(self.lines) >= MAX_LINES:
            self.lines_left_out += 1
            return False
        self.lines.append(line)
        return True

    def _turn(self) -> Turn:
        return self.turns[-1] if self.turns else self._new_turn()

    def _new_turn(self) -> Turn:
        turn = Turn(latencies={})
        self.turns.append(turn)
        del self.turns[MAX_TURNS:]
        return turn
