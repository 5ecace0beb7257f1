"""The story of a call, in one vocabulary: lines, turns (see `turns`), function uses. Sans-I/O.

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
from bridge.call.turns import HasVoice, Turn, Turns
from bridge.deepgram.messages import AgentStartedSpeaking, LatencyReport

Role = Literal["caller", "agent", "keypad"]
Heard = Literal["", "heard", "cut", "unheard"]

# A call of an hour has a few hundred lines and a few dozen function uses. Items beyond the limit
# are counted or dropped, so that a call of days does not exhaust the memory.
MAX_LINES: Final = 2000
MAX_FUNCTIONS: Final = 1000
MAX_FUNCTION_TEXT: Final = 4000  # characters of a function's arguments, and of its answer

# Languages of one utterance, and characters of each: BCP 47 recommends room for 35.
MAX_LANGUAGES: Final = 8
MAX_LANGUAGE: Final = 35


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One utterance, or one keypad entry.

    `heard` says how much of the agent's words the caller heard: all ("heard"), the beginning
    ("cut", roughly `heard_seconds` of it where that is known), or nothing ("unheard"); "" while it
    is not known. `languages` are those that the agent heard in the caller's words ("es"), the most
    spoken first, if its model tells.
    """

    at: float = 0.0
    role: Role = "caller"
    words: str = ""
    heard: Heard = ""
    heard_seconds: float | None = None
    languages: list[str] = []


class FunctionUse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One function that the agent called: when it began, and how many `seconds` it ran. `result` is
    "ok", "error", "timeout" or "cancelled", and "" while it runs. `arguments` and `answer` are JSON
    text, cut at MAX_FUNCTION_TEXT."""

    at: float = 0.0
    name: str = ""
    seconds: float = 0.0
    result: str = ""
    arguments: str = ""
    answer: str = ""


class Story:
    """The events of one call so far. `now` is a time on Trio's clock."""

    def __init__(self, began_at: float, voice: HasVoice) -> None:
        self._began_at = began_at
        self._turns = Turns(began_at, voice)
        self.lines: list[Line] = []
        self.lines_left_out = 0
        self.functions: list[FunctionUse] = []
        self.barge_ins = 0
        """How often the caller interrupted audio that was then not heard."""
        self.barge_in_seconds: list[float] = []
        """Seconds from each UserStartedSpeaking to `clear`, even when the phone was silent."""
        self._sent = 0  # bytes of the agent's audio
        # Lines of the agent not known to be heard or cleared yet, each with its place in the audio.
        self._open: list[tuple[int, Line]] = []
        # Outstanding marks: the place in the audio that each of them follows.
        self._places: dict[str, int] = {}

    @property
    def turns(self) -> list[Turn]:
        """The turns so far."""
        return self._turns.all

    def seconds(self, now: float) -> float:
        """Return how many seconds the call has lasted."""
        return now - self._began_at

    # ---- the caller -----------------------------------------------------------------------------

    def caller_spoke(self) -> None:
        """Begin a new turn: the caller has started to speak."""
        self._turns.caller_spoke()

    def caller_said(self, words: str, now: float, languages: object = None) -> None:
        """Add words that the caller spoke, and that the agent has confirmed. `languages` is what
        the agent says of them; anything but a list of names is ignored."""
        self._turns.confirmed(now, echo=False)
        line = Line(at=self.seconds(now), role="caller", words=words, heard="heard")
        if isinstance(languages, list):
            names = [name for name in languages if isinstance(name, str)]
            line.languages = [name[:MAX_LANGUAGE] for name in names[:MAX_LANGUAGES]]
        self._add(line)

    def caller_typed(self, words: str, now: float, role: Role, typed_at: float) -> None:
        """Add words that the caller wrote, or keys that the caller pressed until `typed_at`."""
        self._turns.typed(typed_at)
        self._add(Line(at=self.seconds(now), role=role, words=words, heard="heard"))

    def echoed(self, now: float) -> None:
        """The agent has confirmed words that bridge gave to it as the caller's."""
        self._turns.confirmed(now, echo=True)

    # ---- the agent ------------------------------------------------------------------------------

    def agent_line(self, words: str, now: float, waiting: int = 0, *, reply: bool = True) -> None:
        """Add words of the agent: a `reply`, or a filler and what else bridge gave it to say. The
        audio sent from now on speaks them, after the `waiting` bytes that came earlier and are not
        sent yet."""
        line = Line(at=self.seconds(now), role="agent", words=words)
        self._turns.line(self._sent + waiting, reply=reply)
        # Of the lines left out, only the start of the first matters: the line before ends there.
        if self._add(line) or (self._open and self._open[-1][1] is self.lines[-1]):
            self._open.append((self._sent + waiting, line))

    def latencies(self, report: LatencyReport | AgentStartedSpeaking) -> None:
        """Add the agent's own latencies of this turn; the last report of each kind counts."""
        self._turns.latencies(report)

    def function_used(
        self,
        name: str,
        seconds: float,
        result: str,
        now: float,
        arguments: str = "",
        answer: str = "",
    ) -> None:
        """Add a function that has ended now, after `seconds`."""
        if len(self.functions) < MAX_FUNCTIONS:
            self.functions.append(
                FunctionUse(
                    at=self.seconds(now) - seconds,
                    name=name,
                    seconds=seconds,
                    result=result,
                    arguments=arguments[:MAX_FUNCTION_TEXT],
                    answer=answer[:MAX_FUNCTION_TEXT],
                )
            )

    # ---- the agent's audio ----------------------------------------------------------------------

    def audio_received(self, now: float) -> None:
        """Agent audio that will be played has arrived."""
        self._turns.audio_received(now)

    def audio_sent(self, nbytes: int, now: float, plays_at: float) -> bool:
        """`nbytes` of agent audio were written to the phone, which will play them from `plays_at`
        on. Returns whether they were the turn's first."""
        position, self._sent = self._sent, self._sent + nbytes
        return self._turns.audio_sent(position, nbytes, now, plays_at)

    def utterance_done(self) -> None:
        """The audio that will be sent from now on belongs to another utterance."""
        self._turns.utterance_done(self._sent)

    def mark_sent(self, name: str) -> None:
        """A mark was sent after the audio sent so far."""
        self._places[name] = self._sent
        self._turns.mark_sent(name)

    def mark_heard(self, name: str, now: float) -> None:
        """A mark came back because all audio before it was played."""
        self._turns.mark_heard(name, now)
        if (place := self._places.pop(name, None)) is not None:
            self._settle(place, cleared=False)

    def cleared(self, unheard_seconds: float, now: float) -> None:
        """The phone was told to discard `unheard_seconds` of the audio sent to it; the marks after
        that audio no longer mean that it was heard."""
        self._settle(self._sent - round(unheard_seconds * SAMPLE_RATE), cleared=True)
        self._places.clear()
        self._turns.cleared(now)
        self.utterance_done()

    def over(self, now: float) -> None:
        """The call is ending: the phone plays no more of the audio sent to it."""
        self._turns.over(now)

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
