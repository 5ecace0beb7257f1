"""A finding of a check: one line with the fact, the cause and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bridge.text import printable

Status = Literal["ok", "warning", "wrong", "skipped"]

# Characters; a server's error texts must not make a line grow without bound.
MAX_WORDS = 400


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is the name of the check; `what` is the fact, `why` its cause, `remedy` what to do.
    Only `what` is never empty.
    """

    check: str
    status: Status
    what: str
    why: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """The finding in one line: "what: why -> remedy"."""
        text = self.what + (f": {self.why}" if self.why else "")
        return text + (f" -> {self.remedy}" if self.remedy else "")


def agent_name(name: str) -> str:
    """Return the table of an agent, for findings about it; "" names the default agent."""
    return f"agents.{name}" if name else "agent"


def ok(check: str, what: str) -> Finding:
    """Make a finding: everything is right."""
    return _finding(check, "ok", what)


def skipped(check: str, what: str, remedy: str = "") -> Finding:
    """Make a finding: not checked, and that is not a fault."""
    return _finding(check, "skipped", what, "", remedy)


def warning(check: str, what: str, why: str = "", remedy: str = "") -> Finding:
    """Make a finding: calls work, but with a limitation."""
    return _finding(check, "warning", what, why, remedy)


def wrong(check: str, what: str, why: str = "", remedy: str = "") -> Finding:
    """Make a finding: calls fail."""
    return _finding(check, "wrong", what, why, remedy)


def _finding(check: str, status: Status, *words: str) -> Finding:
    return Finding(check, status, *(printable(text[:MAX_WORDS]) for text in words))
