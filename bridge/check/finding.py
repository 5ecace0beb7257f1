"""What a check found: one line that says what, why, and what to do about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bridge.text import printable

Status = Literal["ok", "warning", "wrong", "skipped"]

# No line grows without bound because a server elsewhere is talkative.
MAX_WORDS = 400


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is the name of the check; `what` is the fact, `why` what is behind it, `remedy` what
    to do. Only `what` is always there.
    """

    check: str
    status: Status
    what: str
    why: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """All of it in one line: what, why, and behind the arrow what to do."""
        text = self.what + (f": {self.why}" if self.why else "")
        return text + (f" -> {self.remedy}" if self.remedy else "")


def ok(check: str, what: str) -> Finding:
    """Nothing to mend."""
    return _finding(check, "ok", what)


def skipped(check: str, what: str, remedy: str = "") -> Finding:
    """Not looked at, and that is no fault."""
    return _finding(check, "skipped", what, "", remedy)


def warning(check: str, what: str, why: str = "", remedy: str = "") -> Finding:
    """Calls work, but not as one would wish."""
    return _finding(check, "warning", what, why, remedy)


def wrong(check: str, what: str, why: str = "", remedy: str = "") -> Finding:
    """Calls fail, or will."""
    return _finding(check, "wrong", what, why, remedy)


def _finding(check: str, status: Status, *words: str) -> Finding:
    return Finding(check, status, *(printable(text[:MAX_WORDS]) for text in words))
