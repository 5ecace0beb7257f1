"""The record of one call: its events, its transcript, what the caller heard, and all durations.

A record is written more than once: when the call begins, as it grows, and when it ends.
Each time the whole record is written, so that a later one replaces an earlier one and none of them
is needed for the next. Two numbers make that safe in any order and any number of times, across
spools, retries, threads that finish late and worker processes:

- `revision` counts the versions written by the process that carries the call. A lower one never
  replaces a higher one. Each leg of a call, and each result of a transfer, may be another
  process's: it continues the record from a revision that the process before never reaches, so
  that what that one still writes comes too late.
- `status_sequence` is Twilio's number of a status callback. Callbacks come out of order and may
  reach a worker that does not carry the call. That worker writes a *note*: a record of revision 0,
  which replaces nothing but an earlier status.

`merge` is that rule in Python; `store` has the same in SQL.

All times without a date are seconds from the call's start.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from bridge.call.story import FunctionUse, Line
from bridge.call.turns import Turn
from bridge.config.settings import CostSettings

Direction = Literal["inbound", "outbound-api"]

# A record is held in memory, in a row and in the spool, so the network must not decide its size.
FIELD_LIMIT: Final = 300  # characters of a single fact, a number or a reason
WORDS_LIMIT: Final = 4_000  # characters of one utterance, or of a function's arguments
TEXT_LIMIT: Final = 300_000  # characters of all utterances: six hours of speech
ITEMS_LIMIT: Final = 5_000  # lines, turns or functions of one call

# More than one writer of a record makes.
REVISIONS_OF_ONE: Final = 1_000_000

# PostgreSQL's bigint and SQLite's integer end just beyond.
_INTEGER_LIMIT: Final = 2**62


class Leg(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One media stream of a call, which began at `at` and lasted `seconds`.

    The `outcome` of all legs but the last is "handed_over" or what ended their stream. The rest is
    as in the record.
    """

    at: float = 0.0
    seconds: float = 0.0
    stream_sid: str = ""
    outcome: str = ""
    reason: str = ""
    recording: str = ""
    transfer_to: str = ""
    transfer_name: str = ""
    transfer_status: str = ""
    transfer_seconds: float | None = None


class CallRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call, over all its legs.

    Mutable, and owned by the call: `Recorder` takes a snapshot of what it is given. `outcome` is ""
    while the call is live. `process` is the name of the process that carries the call, "" when it
    is over; `lease` ends the record of a process that died. `seconds` is from the start of the
    first leg to the end of the last, `agent_seconds` the time with an agent. `words_kept` false
    (`records.transcripts`) leaves out every word and key, and keeps the timings. `cost` is None
    without rates. `shortened` means that a limit of this module cut something off.

    `transfer_to` is the phone that was dialled last and `transfer_name` its name in
    `functions.transfer_to`. `transfer_status` is Twilio's DialCallStatus and `transfer_seconds`
    how long the conversation with it lasted; "" and None until Twilio reports them. `request_ids`
    are Deepgram's, one for each session. `stream_sid` and `recording` are the last leg's.
    """

    call_sid: str
    started_at: datetime
    stream_sid: str = ""
    caller: str = ""
    called: str = ""
    direction: Direction = "inbound"
    agent: str = ""
    ended_at: datetime | None = None
    seconds: float = 0.0
    agent_seconds: float = 0.0
    setup_seconds: float | None = None
    teardown_seconds: float | None = None
    outcome: str = ""
    reason: str = ""
    transfer_to: str = ""
    transfer_name: str = ""
    transfer_status: str = ""
    transfer_seconds: float | None = None
    status: str = ""
    status_sequence: int = -1
    answered_by: str = ""
    cost: float | None = None
    dropped_bytes: int = 0
    reconnects: int = 0
    barge_ins: int = 0
    recording: str = ""
    words_kept: bool = True
    shortened: bool = False
    revision: int = 0
    turns: list[Turn] = []
    transcript: list[Line] = []
    functions: list[FunctionUse] = []
    legs: list[Leg] = []
    request_ids: list[str] = []
    process: str = ""


class Ending(msgspec.Struct, frozen=True):
    """How the latest leg of a call ended, which decides the TwiML that follows. `legs` is how many
    there have been."""

    outcome: str
    transfer_to: str = ""
    transfer_name: str = ""
    legs: int = 1

    @classmethod
    def of(cls, record: CallRecord) -> Ending:
        """Return how the call of a record ended."""
        transfer = record.transfer_to, record.transfer_name
        return cls(record.outcome, *transfer, max(1, len(record.legs)))


def continued(record: CallRecord) -> CallRecord:
    """Return a copy of the record for the next writer, which then owns it."""
    fields = msgspec.structs.asdict(record)
    lists = {name: list(value) for name, value in fields.items() if isinstance(value, list)}
    revision = (record.revision // REVISIONS_OF_ONE + 1) * REVISIONS_OF_ONE
    return msgspec.structs.replace(record, revision=revision, **lists)


def cost_of(seconds: float, agent_seconds: float, costs: CostSettings) -> float | None:
    """Estimate the cost of a call, in the currency of `[costs]`; None if no rate is set.

    Both rates apply to exact fractions of a minute: the phone's to `seconds`, the agent's to the
    `agent_seconds` that its session was open. Deepgram bills that way. Twilio bills each minute
    begun, so its invoice is higher; rounding each call up would overstate the cost where rates are
    negotiated by the second, and no rounding suits all of Twilio's price lists.
    """
    if not costs.phone_per_minute and not costs.agent_per_minute:
        return None
    total = seconds * costs.phone_per_minute + agent_seconds * costs.agent_per_minute
    return round(total / 60, 6)


Snapshot = dict[str, Any]


def snapshot(record: CallRecord) -> Snapshot:
    """Copy the record into plain objects. Cheap, because it runs on the loop beside live calls.

    Without `words_kept`, the words are left out here, so that they reach no disk.
    """
    copy: Snapshot = msgspec.to_builtins(record, builtin_types=(datetime,))
    if not record.words_kept:
        for item in copy.get("transcript", ()):
            item.pop("words", None)
        for item in copy.get("functions", ()):
            item.pop("arguments", None)
            item.pop("answer", None)
    return copy


def merge(old: Snapshot, new: Snapshot) -> Snapshot:
    """Return what is to be kept when `new` arrives after `old`."""
    replaces = new.get("revision", 0) > 0 and new.get("revision", 0) >= old.get("revision", 0)
    later = new.get("status_sequence", -1) > old.get("status_sequence", -1)
    merged = dict(new if replaces else old)
    status = new if later else old
    for name in STATUS_FIELDS:
        merged.pop(name, None)
        if name in status:
            merged[name] = status[name]
    # It comes in a callback of its own, which has no number.
    if answered_by := new.get("answered_by") or old.get("answered_by"):
        merged["answered_by"] = answered_by
    return merged


# The fields that only a status callback changes; `answered_by`, by a rule of its own, is another.
STATUS_FIELDS: Final = ("status", "status_sequence")


def tidy(raw: Snapshot) -> CallRecord:
    """Make the record of a snapshot, within the limits above and without what no database takes:
    NUL, halves of surrogate pairs, NaN and infinity. They become U+FFFD, or the field's default.

    Raises msgspec.ValidationError for a snapshot of the wrong types.
    """
    tidier = _Tidier()
    fields = {name: tidier.field(name, value) for name, value in raw.items()}
    if fields.get("cost", 0) is _NO_NUMBER:
        fields["cost"] = None
    record = msgspec.convert(
        {name: value for name, value in fields.items() if value is not _NO_NUMBER}, CallRecord
    )
    record.shortened = record.shortened or tidier.shortened
    return record


_NO_NUMBER: Final = object()
_UNFIT = re.compile("[\x00\ud800-\udfff]")


class _Tidier:
    def __init__(self) -> None:
        self.shortened = False
        self._room = TEXT_LIMIT

    def field(self, name: str, value: Any) -> Any:
        match value:
            case list():
                return self._rows(value)
            case datetime():
                return _utc(value)
            case _:
                return self._plain(value, FIELD_LIMIT)

    def _rows(self, rows: list[dict[str, Any] | str]) -> list[Any]:
        if len(rows) > ITEMS_LIMIT:
            self.shortened = True
        return [
            self._row(row) if isinstance(row, dict) else self._plain(row, FIELD_LIMIT)
            for row in rows[:ITEMS_LIMIT]
        ]

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        tidied = {}
        for name, value in row.items():
            if isinstance(value, dict):
                value = self._row(dict(list(value.items())[:20]))  # an agent reports a handful
            elif isinstance(value, str):
                value = self._plain(value, min(WORDS_LIMIT, self._room))
                self._room -= len(value)
            elif isinstance(value, list):
                value = [self._plain(one, FIELD_LIMIT) for one in value[:20]]
            else:
                value = self._plain(value, 0)
            if value is not _NO_NUMBER:
                tidied[self._plain(name, FIELD_LIMIT)] = value
        return tidied

    def _plain(self, value: Any, limit: int) -> Any:
        # Nearly all there is, and all of a record passes here each time that it is written.
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is str and len(value) <= limit and value.isascii() and "\x00" not in value:
            return value
        match value:
            case str():
                if len(value) > limit:
                    self.shortened = True
                return _UNFIT.sub("\ufffd", value[:limit])
            case bool():
                return value
            case int():
                return max(-_INTEGER_LIMIT, min(value, _INTEGER_LIMIT))
            case float() if not math.isfinite(value):
                return _NO_NUMBER
            case _:
                return value


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def upgrade(fields: dict[str, Any]) -> None:
    """Bring the fields of a record that an earlier version wrote to this version's names."""
    turns = fields.get("turns")
    for turn in turns if isinstance(turns, list) else ():
        for name in ("caller_stopped_at", "caller_said_at"):
            if isinstance(turn, dict) and name in turn:
                turn["confirmed_at"] = turn.pop(name)


def encode(record: CallRecord) -> bytes:
    """Encode a tidy record as one line of JSON, with its line break."""
    return msgspec.json.encode(record) + b"\n"


def decode(line: bytes) -> CallRecord:
    """Decode such a line. Fields that this version does not know are left out.

    Raises msgspec.DecodeError, or its subclass ValidationError, for any other line.
    """
    try:
        fields = msgspec.json.decode(line)
        if isinstance(fields, dict):
            upgrade(fields)
        return msgspec.convert(fields, CallRecord)
    except (UnicodeError, RecursionError) as error:
        # msgspec does not translate these two, though the line is at fault.
        raise msgspec.DecodeError(str(error)) from error
