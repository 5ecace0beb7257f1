"""What the recorder does with a batch of records, in a thread: to the database, to the spool, back.

Plain blocking functions. `recorder` runs them, one in the database and one on the disk at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from bridge.records.record import CallRecord, Snapshot, decode, encode, tidy
from bridge.records.spool import Spool, SpoolLine
from bridge.records.store import Rejected, Store


@dataclass
class Written:
    """How many records are in the database now, and which are not and why."""

    count: int = 0
    refused: Sequence[tuple[str, str]] = ()


class Removed:
    """How many rows a purge deleted."""

    def __init__(self) -> None:
        self.count = 0

    def purge(self, store: Store, older_than: datetime) -> Written:
        """Delete the calls that began before that."""
        self.count = store.purge(older_than)
        return Written()


def write(store: Store, batch: Sequence[Snapshot]) -> Written:
    """Write snapshots to the database. Raises StoreUnavailable."""
    records, refused = _tidied(batch)
    return _result(records, refused, store.write(records))


def rewrite(store: Store, lines: Sequence[bytes]) -> Written:
    """Write what waited in the spool to the database. Raises StoreUnavailable."""
    records: list[CallRecord] = []
    refused: list[tuple[str, str]] = []
    for line in lines:
        try:
            records.append(decode(line))
        except msgspec.MsgspecError as error:
            refused.append(("", f"a line of the spool cannot be read: {error}"))
    return _result(records, refused, store.write(records))


def _result(
    records: Sequence[CallRecord], refused: list[tuple[str, str]], rejected: Sequence[Rejected]
) -> Written:
    refused += [(one.record.call_sid, one.reason) for one in rejected]
    return Written(len(records) - len(rejected), refused)


def to_spool(spool: Spool, batch: Sequence[Snapshot]) -> list[str]:
    """Spool them. Returns the SIDs of those that were lost; a call that is on is not."""
    lines, refused = lines_of(batch)
    lost = [sid for sid, _ in refused]
    kept = [one for one in batch if one["call_sid"] not in lost]
    for place in spool.append(lines):
        if lines[place].finished:
            lost.append(kept[place]["call_sid"])
    return lost


def lines_of(batch: Sequence[Snapshot]) -> tuple[list[SpoolLine], list[tuple[str, str]]]:
    """The spool's lines for snapshots, and which there is none for and why."""
    records, refused = _tidied(batch)
    return [SpoolLine(encode(record), bool(record.outcome)) for record in records], refused


def _tidied(batch: Sequence[Snapshot]) -> tuple[list[CallRecord], list[tuple[str, str]]]:
    records: list[CallRecord] = []
    refused: list[tuple[str, str]] = []
    for raw in batch:
        try:
            records.append(tidy(raw))
        except msgspec.ValidationError as error:  # a mistake of ours, and no reason to stop
            refused.append((str(raw.get("call_sid")), f"not a record: {error}"))
    return records, refused
