"""The ways a call can end. Every call ends with exactly one, in the log and wherever it is kept.

A call has one *leg* for each of its media streams. A leg that ends while the call goes on has the
outcome `handed_over`, and so has a call that is being transferred, until Twilio reports whether
anybody answered.
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """Why a call ended: the first cause, not the last symptom."""

    CALLER_HUNG_UP = "caller_hung_up"
    AGENT_ENDED = "agent_ended"
    TRANSFERRED = "transferred"
    AGENT_UNREACHABLE = "agent_unreachable"
    AGENT_FAILED = "agent_failed"
    IDLE = "idle"
    MAX_DURATION = "max_duration"
    OPERATOR_HUNG_UP = "operator_hung_up"
    SERVER_SHUTDOWN = "server_shutdown"
    PHONE_LOST = "phone_lost"
    PROTOCOL_ERROR = "protocol_error"
    INTERNAL_ERROR = "internal_error"
    SERVER_LOST = "server_lost"
    HANDED_OVER = "handed_over"

    @property
    def is_final(self) -> bool:
        """Whether the call is over, and not only its leg."""
        return self is not Outcome.HANDED_OVER
