"""What Twilio reports when `<Dial>` is over.

https://www.twilio.com/docs/voice/twiml/dial#action
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from bridge.text import printable

# "answered" is of a conference, "completed" of a call that somebody answered.
_ANSWERED: Final = frozenset({"completed", "answered"})

# Of the caller's own call: it is over, though Twilio still asks what comes next.
_OVER: Final = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})


class DialResult(NamedTuple):
    """`status` is DialCallStatus. `seconds` is how long the second call lasted, None if nobody
    answered it. `caller_gone`: the caller has hung up."""

    status: str
    seconds: float | None = None
    caller_gone: bool = False

    @property
    def answered(self) -> bool:
        """Whether somebody answered."""
        return self.status in _ANSWERED


def read_dial_result(form: Mapping[str, str]) -> DialResult | None:
    """Return what a request for `<Dial action>` says; None for any other request."""
    status = printable(form.get("DialCallStatus", "")[:40])
    if not status:
        return None
    duration = form.get("DialCallDuration", "")
    lasted = float(duration) if duration.isascii() and duration.isdigit() else 0.0
    answered = status in _ANSWERED
    return DialResult(
        status, min(lasted, 1e9) if answered else None, form.get("CallStatus", "") in _OVER
    )
