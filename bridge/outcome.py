"""The ways a call can end. Every call ends with exactly one, in the log and wherever it is kept."""

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
