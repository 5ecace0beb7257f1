"""The record of one call: what happened, who said what, what was heard, how long things took.

Pure data. A record is written more than once: when the call begins, perhaps on its way, and when it
ends. Each time it is the whole record, so that a later one simply takes the place of an earlier one
and nothing depends on all of them arriving. Two numbers make that safe in any order and any number
of times, over spools, retries, threads that come late and worker processes:

- `revision` counts the writings of whoever carries the call. A lower one never replaces a higher.
- `status_sequence` is Twilio's own number of a status callback, which come out of order and may
  reach a worker that does not carry the call. That worker writes a *note*: a record of revision 0,
  which never replaces anything but an earlier status.

`merge` is that rule in Python; `store` has the same in SQL.

All times without a date are seconds from the call's start.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from bridge.config.settings import CostSettings

Role = Literal["caller", "agent", "keypad"]
Heard = Literal["heard", "cut", "unheard", ""]
Direction = Literal["inbound", "outbound-api"]

# A record is bounded, whatever the network sent: it is held in memory, in a row and in the spool.
FIELD_LIMIT: Final = 300  # characters of a single fact, a number or a reason
WORDS_LIMIT: Final = 4_000  # characters of one utterance, or of a function's arguments
TEXT_LIMIT: Final = 300_000  # characters of all utterances: six hours of people talking
ITEMS_LIMIT: Final = 5_000  # lines, turns or functions of one call

# PostgreSQL's bigint and SQLite's integer end just beyond.
_INTEGER_LIMIT: Final = 2**62


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One utterance, or the keys pressed.

    `heard` says what the caller heard of the agent: all of it, the beginning (`cut`, about
    `heard_seconds` of it where that is known), nothing; "" when it does not apply or is not known.
    """

    at: float = 0.0
    role: Role = "caller"
    words: str = ""
    heard: Heard = ""
    heard_seconds: float | None = None


class Turn(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The timings of one turn: the caller stopped speaking, the agent's reply came, went out to the
    phone, was heard. None: did not happen, or nobody said. `latencies` are the agent's own figures
    (seconds by name, such as `total_latency`).
    """

    caller_stopped_at: float | None = None
    first_audio_received_at: float | None = None
    first_audio_sent_at: float | None = None
    heard_at: float | None = None
    latencies: dict[str, float] = {}


class FunctionLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One function the agent called. `result` is "ok", "error", "timeout" or "cancelled"."""

    at: float = 0.0
    name: str = ""
    seconds: float = 0.0
    result: str = ""
    arguments: str = ""
    answer: str = ""


class CallRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call.

    Mutable, and owned by whoever carries the call: `Recorder` takes a snapshot when it is given
    one. `outcome` "" means that the call is on, or that its process died. `words_kept` false
    (`records.transcripts`) leaves out every word and key, and keeps the timings. `cost` is None
    without rates. `shortened` says that a limit of this module cut something off.
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
    functions: list[FunctionLine] = []


class Ending(msgspec.Struct, frozen=True):
    """How a call ended: what the TwiML that follows is decided by."""

    outcome: str
    transfer_to: str = ""


def cost_of(seconds: float, agent_seconds: float, costs: CostSettings) -> float | None:
    """What a call cost, in the currency of `[costs]`; None when no rate is set.

    Both are counted by exact fractions of a minute: the phone for `seconds`, the agent for the
    `agent_seconds` its session was open. Deepgram bills that way. Twilio bills the minute that was
    begun, so its invoice is higher; an estimate that rounds each call up would overstate it where
    rates are negotiated by the second, and no rounding suits all of its price lists.
    """
    if not costs.phone_per_minute and not costs.agent_per_minute:
        return None
    total = seconds * costs.phone_per_minute + agent_seconds * costs.agent_per_minute
    return round(total / 60, 6)


Snapshot = dict[str, Any]


def snapshot(record: CallRecord) -> Snapshot:
    """The record as it is now, in plain objects of its own. Cheap, since it runs beside live calls.

    Without `words_kept`, the words are left out here already, so that they reach no disk.
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
    """What `new`, arriving after `old`, leaves of the two."""
    replaces = new.get("revision", 0) > 0 and new.get("revision", 0) >= old.get("revision", 0)
    later = new.get("status_sequence", -1) > old.get("status_sequence", -1)
    merged = dict(new if replaces else old)
    status = new if later else old
    for name in STATUS_FIELDS:
        merged.pop(name, None)
        if name in status:
            merged[name] = status[name]
    # Comes in a report of its own, which has no number.
    if answered_by := new.get("answered_by") or old.get("answered_by"):
        merged["answered_by"] = answered_by
    return merged


# What a status callback changes, and nothing else does; and `answered_by`, by a rule of its own.
STATUS_FIELDS: Final = ("status", "status_sequence")


def tidy(raw: Snapshot) -> CallRecord:
    """The record of a snapshot, within its limits and free of what no database takes: NUL, halves
    of surrogate pairs, numbers that are none. They become U+FFFD, or the field's default.

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

    def _rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(rows) > ITEMS_LIMIT:
            self.shortened = True
        return [self._row(row) for row in rows[:ITEMS_LIMIT]]

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        tidied = {}
        for name, value in row.items():
            if isinstance(value, dict):
                value = self._row(dict(list(value.items())[:20]))  # an agent reports a handful
            elif isinstance(value, str):
                value = self._plain(value, min(WORDS_LIMIT, self._room))
                self._room -= len(value)
            else:
                value = self._plain(value, 0)
            if value is not _NO_NUMBER:
                tidied[self._plain(name, FIELD_LIMIT)] = value
        return tidied

    def _plain(self, value: Any, limit: int) -> Any:
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


def encode(record: CallRecord) -> bytes:
    """A tidy record as one line of JSON, with its line break."""
    return msgspec.json.encode(record) + b"\n"


def decode(line: bytes) -> CallRecord:
    """The record of such a line. Fields that this version does not know are left out.

    Raises msgspec.DecodeError, of which a ValidationError is one, for any other line.
    """
    try:
        return msgspec.json.decode(line, type=CallRecord)
    except (UnicodeError, RecursionError) as error:
        # msgspec leaves these two as they are, though they are faults of the line.
        raise msgspec.DecodeError(str(error)) from error
