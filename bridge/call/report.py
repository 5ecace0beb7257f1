"""The report of one call: its outcome and figures, and the log line that states them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from bridge.caller import CallInfo
from bridge.deepgram.session import AgentSession
from bridge.log import get_logger
from bridge.outcome import Outcome

log = get_logger(__name__)

_FAILURES: Final = {
    Outcome.AGENT_FAILED,
    Outcome.AGENT_UNREACHABLE,
    Outcome.PHONE_LOST,
    Outcome.PROTOCOL_ERROR,
}


@dataclass
class CallReport:
    """The outcome and the figures of one call.

    `cause` is the exception behind the outcome, `crash` an unexpected exception. Times are in
    seconds: `seconds` from Twilio's `start` to the end of the call, `setup_seconds` from `start` to
    an agent that listens, `teardown_seconds` from the first sign of the end to the last byte.
    `request_ids` are Deepgram's, one for each session. `leg` counts the call's media streams from
    1. `transfer_to` is the phone that the caller is handed over to, `transfer_name` its name.
    """

    info: CallInfo
    outcome: Outcome | None = None
    reason: str = ""
    cause: BaseException | None = None
    crash: BaseExceptionGroup[Exception] | None = None
    agent: str = ""
    leg: int = 1
    transfer_to: str = ""
    transfer_name: str = ""
    seconds: float = 0.0
    setup_seconds: float | None = None
    teardown_seconds: float = 0.0
    reconnects: int = 0
    dropped_bytes: int = 0
    to_agent_bytes: int = 0
    to_agent_frames: int = 0
    bad_messages: int = 0
    request_ids: list[str] = field(default_factory=list)

    def add(self, agent: AgentSession) -> None:
        """Add the counters of an agent session that has ended."""
        self.to_agent_bytes += agent.bytes_sent
        self.to_agent_frames += agent.frames_sent
        self.bad_messages += agent.bad_messages

    def write_line(self, **traffic: Any) -> None:
        """Log how the call ended, in one line: normal endings as info, failures as a warning, and
        an unexpected exception as an error with its traceback, even if it was not the cause. A leg
        that ends while the call goes on has a line of its own kind."""
        facts = {
            "call_sid": self.info.call_sid,
            "outcome": str(self.outcome),
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
            **traffic,
            "to_agent_bytes": self.to_agent_bytes,
            "to_agent_frames": self.to_agent_frames,
            "dropped_bytes": self.dropped_bytes,
            "bad_messages": self.bad_messages,
        }
        if self.request_ids:
            facts["request_ids"] = " ".join(self.request_ids)
        if self.leg > 1:
            facts["leg"] = self.leg
        if self.transfer_to:
            facts |= {"transfer_name": self.transfer_name, "transfer_to": self.transfer_to}
        event = "call ended"
        if self.outcome is not None and not self.outcome.is_final:
            event = "call handed over"
        if self.crash is not None:
            log.error(event, exc_info=self.crash, **facts)
        elif self.outcome in _FAILURES:
            log.warning(event, **facts)
        else:
            log.info(event, **facts)
