"""What stands in for a recorder where no records are kept, and what the two have in common.

The real one is `recorder`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import trio

from bridge.records.record import CallRecord, Direction, Ending

# The webhook that asks how a call ended comes within a second or so of the end.
ENDINGS: Final = 10_000
ENDING_SECONDS: Final = 1.0


@dataclass(frozen=True)
class RecorderStatistics:
    """Where records are: waiting in memory, in the spool (bytes); how many were written since the
    start, and how many were lost; why the database cannot be used, "" if it can.
    """

    waiting: int
    spooled_bytes: int
    written: int
    lost: int
    trouble: str


class Endings:
    """How the last calls of this process ended, for the webhook that reaches it."""

    def __init__(self) -> None:
        self._endings: OrderedDict[str, Ending] = OrderedDict()

    def remember(self, record: CallRecord) -> None:
        if record.call_sid and record.outcome:
            self._endings[record.call_sid] = Ending(record.outcome, record.transfer_to)
            while len(self._endings) > ENDINGS:
                self._endings.popitem(last=False)

    def get(self, call_sid: str) -> Ending | None:
        return self._endings.get(call_sid)


class NullRecorder:
    """Keeps no records (`records.url = ""`); knows how the last calls ended, all the same. What the
    methods do is said in `Recorder`. No threads, so it suits a virtual clock.
    """

    keeps_records = False

    def __init__(self) -> None:
        self._endings = Endings()

    def begin(self, record: CallRecord) -> None:
        """Nothing."""

    def update(self, record: CallRecord) -> None:
        """Remember the ending, if there is one."""
        self._endings.remember(record)

    finish = update

    def note_status(
        self,
        call_sid: str,
        status: str,
        sequence: int,
        *,
        answered_by: str = "",
        caller: str = "",
        called: str = "",
        direction: Direction = "outbound-api",
    ) -> None:
        """Nothing."""

    async def ending_of(self, call_sid: str, within: float = ENDING_SECONDS) -> Ending | None:
        """How a call that was carried in this process ended."""
        await trio.lowlevel.checkpoint()
        return self._endings.get(call_sid)

    async def list_calls(
        self, limit: int = 20, before: datetime | None = None, outcome: str | None = None
    ) -> list[CallRecord]:
        """Nothing: []."""
        await trio.lowlevel.checkpoint()
        return []

    async def get(self, call_sid: str) -> CallRecord | None:
        """Nothing: None."""
        await trio.lowlevel.checkpoint()
        return None

    def statistics(self) -> RecorderStatistics:
        """All zero."""
        return RecorderStatistics(0, 0, 0, 0, "")

    async def open(self) -> None:
        """Nothing."""
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start, and end at once."""
        await trio.lowlevel.checkpoint()
        task_status.started()

    async def settle(self) -> None:
        """Nothing."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Nothing."""
        await trio.lowlevel.checkpoint()
