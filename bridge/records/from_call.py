"""From a call to its record: what is kept of a call when it begins, is ending, and is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bridge.call.observers import Observer
from bridge.call.parts import CallParts
from bridge.caller import OUTBOUND, CallInfo
from bridge.config.settings import Settings
from bridge.records.record import CallRecord, Direction, cost_of
from bridge.records.recorder import Recorder


class RecordKeeper(Observer):
    """Keeps the record of one call up to date. Never waits, and does not fail with the database."""

    def __init__(self, recorder: Recorder, settings: Settings) -> None:
        self._recorder = recorder
        self._settings = settings
        self._record: CallRecord | None = None

    def began(self, call: CallParts) -> None:
        """From now on there is a record."""
        info = call.report.info
        self._record = CallRecord(
            call_sid=info.call_sid,
            started_at=datetime.now(UTC),
            stream_sid=info.stream_sid,
            caller=info.caller,
            called=info.called,
            direction=direction_of(info),
            words_kept=self._settings.records.transcripts,
        )
        self._recorder.begin(self._record)

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
        seconds = call.seconds_so_far
        record.agent = report.agent
        record.seconds = round(seconds, 3)
        record.setup_seconds = report.setup_seconds
        record.teardown_seconds = report.teardown_seconds
        record.outcome = str(report.outcome or "")
        record.reason = report.reason
        record.transfer_to = report.transfer_to
        if report.setup_seconds is not None:
            # How long there was an agent, which is what it costs.
            record.agent_seconds = round(max(0.0, seconds - report.setup_seconds), 3)
        record.cost = cost_of(record.seconds, record.agent_seconds, self._settings.costs)
        record.dropped_bytes = report.dropped_bytes
        record.reconnects = report.reconnects
        record.barge_ins = story.barge_ins
        record.transcript = story.lines
        record.turns = story.turns
        record.functions = story.functions
        if call.recording is not None and call.recording.path is not None:
            record.recording = str(call.recording.path)
        record.request_ids = report.request_ids


def direction_of(info: CallInfo) -> Direction:
    """Whether the call was placed by us. Twilio's own direction is no parameter of the stream, so
    only a call whose TwiML we made for dialling has it; a softphone's says "softphone"."""
    return OUTBOUND if info.parameters.get("direction") == OUTBOUND else "inbound"
