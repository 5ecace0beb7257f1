"""From a call to its record: what is kept of a call when it begins, is ending, and is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from bridge.call.observers import Observer
from bridge.call.parts import CallParts
from bridge.caller import OUTBOUND, CallInfo
from bridge.config.settings import Settings
from bridge.records.record import CallRecord, Direction, Leg, continued, cost_of
from bridge.records.recorder import Recorder

# Beyond it, the last one takes the next one's place.
MAX_LEGS: Final = 100


class RecordKeeper(Observer):
    """Keeps the record of one call up to date. Never waits, and does not fail with the database."""

    def __init__(self, recorder: Recorder, settings: Settings) -> None:
        self._recorder = recorder
        self._settings = settings
        self._record: CallRecord | None = None
        self._before: CallRecord | None = None
        self._written = (0, 0)

    def began(self, call: CallParts) -> None:
        """From now on there is a record, or another leg in the record that there is."""
        info = call.report.info
        known = self._recorder.known(info.call_sid)
        if known is None:
            record = CallRecord(
                call_sid=info.call_sid,
                started_at=datetime.now(UTC),
                caller=info.caller,
                called=info.called,
                direction=direction_of(info),
            )
        else:
            self._before = known.record
            record = continued(known.record)
            record.outcome = record.reason = record.transfer_to = record.transfer_name = ""
            record.transfer_status, record.transfer_seconds = "", None
        record.stream_sid = info.stream_sid
        record.words_kept = self._settings.records.transcripts
        at = round(call.earlier.seconds, 3)
        record.legs = [*record.legs[: MAX_LEGS - 1], Leg(at=at, stream_sid=info.stream_sid)]
        self._record = record
        self._recorder.begin(record, lambda: self._has_grown(record, call))

    def _has_grown(self, record: CallRecord, call: CallParts) -> bool:
        """Bring the record up to date if something was said, or a function has run, since then."""
        written, self._written = self._written, (len(call.story.lines), len(call.story.functions))
        if self._written == written:
            return False
        self._fill_in(record, call)
        return True

    def is_ending(self, call: CallParts) -> None:
        """Written at once, because `/call-ended` may ask another worker before this one has taken
        the call down."""
        if self._record is not None:
            self._fill_in(self._record, call)
            self._recorder.update(self._record)

    def ended(self, call: CallParts) -> None:
        """The last writing."""
        if self._record is not None:
            self._fill_in(self._record, call)
            self._record.ended_at = self._record.started_at + timedelta(
                seconds=self._record.seconds
            )
            self._recorder.finish(self._record)

    def _fill_in(self, record: CallRecord, call: CallParts) -> None:
        report, story = call.report, call.story
        before = self._before or _NO_CALL
        seconds = call.seconds_so_far
        leg = record.legs[-1]
        leg.seconds = round(seconds, 3)
        leg.outcome = record.outcome = str(report.outcome or "")
        leg.reason = record.reason = report.reason
        leg.transfer_to = record.transfer_to = report.transfer_to
        leg.transfer_name = record.transfer_name = report.transfer_name
        if call.recording is not None and call.recording.path is not None:
            leg.recording = record.recording = str(call.recording.path)
        record.agent = report.agent or before.agent
        record.seconds = round(leg.at + seconds, 3)
        record.setup_seconds = before.setup_seconds
        if before.setup_seconds is None:
            record.setup_seconds = report.setup_seconds
        record.teardown_seconds = report.teardown_seconds
        if report.setup_seconds is not None:
            # How long there was an agent, which is what it costs.
            with_agent = before.agent_seconds + max(0.0, seconds - report.setup_seconds)
            record.agent_seconds = round(with_agent, 3)
        record.cost = cost_of(record.seconds, record.agent_seconds, self._settings.costs)
        record.dropped_bytes = before.dropped_bytes + report.dropped_bytes
        record.reconnects = before.reconnects + report.reconnects
        record.barge_ins = before.barge_ins + story.barge_ins
        record.transcript = before.transcript + story.lines
        record.turns = before.turns + story.turns
        record.functions = before.functions + story.functions
        record.request_ids = before.request_ids + report.request_ids


# What comes before the first leg.
_NO_CALL: Final = CallRecord(call_sid="", started_at=datetime.min.replace(tzinfo=UTC))


def direction_of(info: CallInfo) -> Direction:
    """Whether the call was placed by us. Twilio's own direction is no parameter of the stream, so
    only a call whose TwiML we made for dialling has it; a softphone's says "softphone"."""
    return OUTBOUND if info.parameters.get("direction") == OUTBOUND else "inbound"
