"""What was said in a call, and how much of it the caller heard. Pure.

Theory of operation. The agent's texts come with the audio that speaks them, all of it seconds
before it is heard. A line is therefore noted with its place in the audio: it begins where the audio
sent so far ends, and ends where the next line begins. A mark that comes back says that everything
before its place was heard; `clear` says that everything from some place on was not. A line in the
middle of which that place lies was cut off.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from bridge.audio import seconds

Role = Literal["caller", "agent", "keypad"]
Heard = Literal["", "heard", "cut", "unheard"]


class Line(msgspec.Struct):
    """Something said `at` so many seconds after the call began.

    `heard` is "" for what the agent has sent and nothing is known of yet; `heard_seconds` is how
    much of a line that was cut off was heard.
    """

    at: float
    role: Role
    words: str
    heard: Heard = ""
    heard_seconds: float | None = None


class Transcript:
    """The lines of one call, at most `limit`; later ones are counted, not kept."""

    def __init__(self, limit: int = 2000) -> None:
        self.lines: list[Line] = []
        self.left_out = 0
        self._limit = limit
        self._sent = 0
        self._open: list[tuple[int, Line]] = []
        self._places: dict[str, int] = {}

    def caller(self, words: str, at: float, role: Role = "caller") -> None:
        """The caller said this, or pressed it."""
        self._add(Line(at, role, words, "heard"))

    def agent(self, words: str, at: float, waiting: int = 0) -> None:
        """The agent says this; the audio sent from now on speaks it, behind `waiting` bytes that
        came before and are not sent yet."""
        line = Line(at, "agent", words)
        # Of lines that are left out only where the first begins matters: the one before ends there.
        if self._add(line) or (self._open and self._open[-1][1] is self.lines[-1]):
            self._open.append((self._sent + waiting, line))

    def audio_sent(self, nbytes: int) -> None:
        """So much audio was written to the phone."""
        self._sent += nbytes

    def mark_sent(self, name: str) -> None:
        """A mark was sent behind what was said so far."""
        self._places[name] = self._sent

    def mark_heard(self, name: str) -> None:
        """A mark came back because everything before it was played."""
        place = self._places.pop(name, None)
        if place is not None:
            self._settle(place, cleared=False)

    def cleared(self, unheard_seconds: float) -> None:
        """The phone was told to forget so much of what it had been sent."""
        place = self._sent - round(unheard_seconds * 8000)
        self._settle(place, cleared=True)
        self._places.clear()

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
        if len(self.lines) >= self._limit:
            self.left_out += 1
            return False
        self.lines.append(line)
        return True
