"""Calls as the control API shows them: JSON objects of their records, and of what is live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bridge.call.call import Call
from bridge.outcome import Outcome
from bridge.records.store import StoreUnavailable
from bridge.service import Bridge
from bridge.twilio.call_status import StatusUpdate


async def latest_records(bridge: Bridge, limit: int) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Return the latest calls' records, the latest first, and ""; none, and why, while the database
    is down."""
    try:
        records = await bridge.recorder.list_calls(limit)
    except StoreUnavailable as error:
        return (), str(error)
    return [msgspec.to_builtins(record) for record in records], ""


async def record_of(bridge: Bridge, call_sid: str) -> Mapping[str, Any] | None:
    """Return one call's record; None if there is none, or the database is down."""
    try:
        record = await bridge.recorder.get(call_sid)
    except StoreUnavailable:
        return None
    return None if record is None else msgspec.to_builtins(record)


def is_over(record: Mapping[str, Any]) -> bool:
    """Return whether the record is of a call that has ended, as far as is known: one that was
    handed over to another phone goes on."""
    return (record.get("outcome") or "") not in ("", Outcome.HANDED_OVER)


def carried_elsewhere(record: Mapping[str, Any]) -> bool:
    """Return whether the record of a call that is not live here is of a call live elsewhere: in
    another process or server with these records, or in one that died within the last minute.

    A record without a revision was made from Twilio's reports: no process carries the call yet.
    """
    return bool(record.get("revision")) and not record.get("outcome")


def shown_call(
    call_sid: str,
    live: Call | None,
    known: StatusUpdate | None,
    record: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return a call as the API shows it: its record, and what is known besides."""
    shown: dict[str, Any] = {"call_sid": call_sid, "live": live is not None, "status": ""}
    if known is not None:
        for name in ("status", "caller", "called", "seconds", "sip_code", "answered_by"):
            if (value := getattr(known, name)) not in ("", None):
                shown[name] = value
    if live is not None:
        shown |= {"status": "in-progress", "seconds": round(live.seconds_so_far, 3)}
        shown |= {"caller": live.report.info.caller, "called": live.report.info.called}
    if record is not None:
        if live is None and carried_elsewhere(record):
            shown["elsewhere"] = True
        status = shown["status"]
        shown |= record
        if status and not shown.get("status"):
            shown["status"] = status
        if not shown.get("status") and record.get("outcome"):
            shown["status"] = "completed" if is_over(record) else "in-progress"
    return {**shown, "live": live is not None}
