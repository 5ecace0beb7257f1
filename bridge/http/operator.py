"""The bridge as its operator sees it: what the control API asks for, answered by the `Bridge`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import msgspec

from bridge.call.call import Call
from bridge.call.typed import NotTaken
from bridge.http.call_status import StatusUpdate
from bridge.http.dialling import OutboundCall
from bridge.http.operator_host import (
    NO_CREDENTIALS,
    DialPolicy,
    DialRefused,
    NoRecords,
    Records,
    SettingsPolicy,
)
from bridge.outcome import Outcome
from bridge.records.store import StoreUnavailable
from bridge.service import Bridge
from bridge.twilio.rest import TwilioRest

# Twilio rings for 60 s unless told otherwise, and places one call a second at most.
RINGING_SECONDS: Final = 90.0


class Operator:
    """A `bridge.http.ControlHost`."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.policy: DialPolicy = SettingsPolicy(bridge.settings, self._admit)
        self.records: Records = _KeptCalls(bridge)
        bridge.live.server = self.facts

    @property
    def api_token(self) -> str:
        """BRIDGE_API_TOKEN, "" without one."""
        return self._bridge.api_token

    @property
    def twilio(self) -> TwilioRest | None:
        """None without credentials."""
        return self._bridge.twilio

    @property
    def live(self) -> Iterable[_LiveCall]:
        """The calls this process carries that have been introduced."""
        return [_LiveCall(call) for call in self._bridge.calls]

    def facts(self) -> dict[str, Any]:
        """The state of this server process, JSON-able; see `bridge.live.hub`. Never waits."""
        bridge = self._bridge
        settings, stalls = bridge.settings_now(), bridge.stalls
        records = bridge.recorder.statistics()
        return {
            "live": len(bridge.calls),
            "max_calls": settings.server.max_calls,
            "draining": bridge.draining,
            "workers": settings.server.workers,
            "pid": os.getpid(),
            "started_at": bridge.started_at.isoformat(),
            "stalls": stalls.times,
            "stall_seconds": round(stalls.seconds, 3),
            "last_stall_at": stalls.last.isoformat() if stalls.last else None,
            "records": bridge.recorder.keeps_records,
            "database_trouble": records.trouble,
            "records_waiting": records.waiting,
            "records_lost": records.lost,
            "viewers": len(bridge.live),
            "agents": {
                name: list(table.get("numbers", ())) for name, table in settings.agents.items()
            },
            "cannot_dial": "" if bridge.twilio is not None else NO_CREDENTIALS,
        }

    async def call_status(self, update: StatusUpdate) -> None:
        """Fold a report of Twilio's into the call's record; give back the slot of a call that
        nobody answered."""
        if update.is_terminal:
            self._bridge.admission.release(update.call_sid)
        self._bridge.recorder.note_status(
            update.call_sid,
            update.status,
            -1 if update.sequence is None else update.sequence,
            answered_by=update.answered_by,
            caller=update.caller,
            called=update.called,
        )

    async def _admit(self, call: OutboundCall) -> AbstractContextManager[Callable[[str], None]]:
        """Take a slot for a call that has no SID yet, for as long as it may ring."""
        bridge = self._bridge
        name = f"dialled {secrets.token_hex(8)}"
        settings = await bridge.settings()
        if why := await bridge.reserve(settings, name, "", seconds=RINGING_SECONDS):
            raise DialRefused(f"no call may be placed now: {why}")
        return self._line(name)

    @contextmanager
    def _line(self, name: str) -> Iterator[Callable[[str], None]]:
        admission = self._bridge.admission
        try:
            yield lambda call_sid: admission.rename(name, call_sid, seconds=RINGING_SECONDS)
        finally:
            admission.release(name)


class _LiveCall:
    def __init__(self, call: Call) -> None:
        self._call, self._info = call, call.report.info

    @property
    def call_sid(self) -> str:
        return self._info.call_sid

    @property
    def caller(self) -> str:
        return self._info.caller

    @property
    def called(self) -> str:
        return self._info.called

    @property
    def seconds(self) -> float:
        return self._call.seconds_so_far

    def say(self, words: str) -> str:
        try:
            self._call.say(words)
        except NotTaken as error:
            return str(error)
        return ""

    def hang_up(self, reason: str) -> None:
        self._call.end(Outcome.OPERATOR_HUNG_UP, reason)


class _KeptCalls(NoRecords):
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def list(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """The latest calls; none while the database is away."""
        try:
            kept = await self._bridge.recorder.list_calls(limit)
        except StoreUnavailable:
            return ()
        return [msgspec.to_builtins(record) for record in kept]

    async def get(self, call_sid: str) -> Mapping[str, Any] | None:
        """One call; None if it is not known, or the database is away."""
        try:
            record = await self._bridge.recorder.get(call_sid)
        except StoreUnavailable:
            return None
        return None if record is None else msgspec.to_builtins(record)
