"""From a call to its record: what is kept of a call, when it begins, is ending, and is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bridge.call.call import Call, Keeper
from bridge.caller import CallInfo
from bridge.config.settings import Settings
from bridge.records.record import CallRecord, Direction, FunctionLine, Line, Turn, cost_of
from bridge.records.recorder import Recorder


class Keepers:
    """Several keepers as one, told in this order."""

    def __init__(self, *keepers: Keeper) -> None:
        self._keepers = keepers

    def began(self, call: Call) -> None:
        """The call has been introduced."""
        for keeper in self._keepers:
            keeper.began(call)

    def is_ending(self, call: Call) -> None:
        """The outcome is known."""
        for keeper in self._keepers:
            keeper.is_ending(call)

    def ended(self, call: Call) -> None:
        """The call is over, to the last byte."""
        for keeper in self._keepers:
            keeper.ended(call)


class RecordKeeper:
    """Keeps the record of one call up to date. Nothing here waits, or fails for the database."""

    def __init__(self, recorder: Recorder, settings: Settings) -> None:
        self._recorder = recorder
        self._settings = settings
        self._record: CallRecord | None = None
        self._introduced = 0.0

    def began(self, call: Call) -> None:
        """The call has been introduced: from now on there is a record."""
        info = call.report.info
        assert info is not None
        # The socket opened a moment ago, and that is where the call's own times count from.
        self._introduced = call.seconds_so_far
        started_at = datetime.now(UTC) - timedelta(seconds=self._introduced)
        self._record = CallRecord(
            call_sid=info.call_sid,
            started_at=started_at,
            stream_sid=info.stream_sid,
            caller=info.caller,
            called=info.called,
            direction=direction_of(info),
            words_kept=self._settings.records.transcripts,
        )
        self._recorder.begin(self._record)

    def is_ending(self, call: Call) -> None:
        """The outcome is known. Told at once, because `/call-ended` may ask another worker before
        this one has taken the call down."""
        if self._record is not None:
            self._fill_in(call)
            self._recorder.update(self._record)

    def ended(self, call: Call) -> None:
        """The call is over, to the last byte."""
        if self._record is not None:
            self._fill_in(call)
            self._record.ended_at = self._record.started_at + timedelta(
                seconds=self._record.seconds
            )
            self._recorder.finish(self._record)

    def _agent_seconds(self, seconds: float, setup_seconds: float | None) -> float:
        """How long there was an agent, which is what it costs."""
        if setup_seconds is None:
            return 0.0
        return max(0.0, seconds - self._introduced - setup_seconds)

    def _fill_in(self, call: Call) -> None:
        record, report, conversation = self._record, call.report, call.conversation
        assert record is not None
        seconds = call.seconds_so_far
        record.agent = report.agent
        record.seconds = round(seconds, 3)
        record.setup_seconds = report.setup_seconds
        record.teardown_seconds = report.teardown_seconds
        record.outcome = str(report.outcome or "")
        record.reason = report.reason
        record.transfer_to = report.transfer_to
        record.agent_seconds = round(self._agent_seconds(seconds, report.setup_seconds), 3)
        record.cost = cost_of(record.seconds, record.agent_seconds, self._settings.costs)
        record.dropped_bytes = report.dropped_bytes
        record.reconnects = report.reconnects
        record.barge_ins = conversation.barge_ins
        record.transcript = [
            Line(
                at=line.at,
                role=line.role,
                words=line.words,
                heard=line.heard,
                heard_seconds=line.heard_seconds,
            )
            for line in conversation.transcript.lines
        ]
        record.turns = [
            Turn(
                caller_stopped_at=turn.caller_said_at,
                first_audio_received_at=turn.audio_received_at,
                first_audio_sent_at=turn.audio_sent_at,
                heard_at=turn.heard_at,
                latencies=turn.latencies,
            )
            for turn in conversation.turns.all
        ]
        record.functions = [
            FunctionLine(at=one.at, name=one.name, seconds=one.seconds, result=one.result)
            for one in conversation.functions
        ]


def direction_of(info: CallInfo) -> Direction:
    """Whether the call was placed by us. Twilio's own direction is no parameter of the stream, so
    only a call whose TwiML we made for dialling has it; a softphone's says "softphone"."""
    return "outbound-api" if info.parameters.get("direction") == "outbound-api" else "inbound"
