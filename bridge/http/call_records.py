"""Records of calls as the control API shows them: JSON objects, none while the database is away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bridge.records.store import StoreUnavailable
from bridge.service import Bridge


async def latest_records(bridge: Bridge, limit: int) -> Sequence[Mapping[str, Any]]:
    """Return the latest calls' records, the latest first."""
    try:
        records = await bridge.recorder.list_calls(limit)
    except StoreUnavailable:
        return ()
    return [msgspec.to_builtins(record) for record in records]


async def record_of(bridge: Bridge, call_sid: str) -> Mapping[str, Any] | None:
    """Return one call's record, or None."""
    try:
        record = await bridge.recorder.get(call_sid)
    except StoreUnavailable:
        return None
    return None if record is None else msgspec.to_builtins(record)


def carried_elsewhere(record: Mapping[str, Any]) -> bool:
    """Return whether the record of a call that is not live here is of a call live elsewhere: in
    another process or server with these records, or in one that died with it.

    A record without a revision was made from Twilio's reports: no process carries the call yet.
    """
    return bool(record.get("revision")) and not record.get("outcome")
