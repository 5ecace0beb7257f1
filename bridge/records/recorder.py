"""The recorder: takes the records of calls, and answers questions about calls.

A call hands over a snapshot and goes on; it never waits for a database. `writer` does the rest.

The recorder looks at the live calls every UPDATE_SECONDS and writes the records of those that have
grown, so that a process that dies takes no more words with it. A call does nothing for that, and
the cost is one snapshot of each call in that time, whatever the call does. While the database is
away these writings are left out, because they would fill the spool: it gets beginnings and ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import trio

from bridge.backoff import pauses
from bridge.config.settings import RecordSettings
from bridge.outcome import Outcome
from bridge.records.lease import Lease, LostCall
from bridge.records.record import (
    CallRecord,
    Direction,
    Ending,
    continued,
    merge,
    snapshot,
    tidy,
)
from bridge.records.spool import Spool
from bridge.records.store import Store, StoreUnavailable
from bridge.records.writer import RecorderStatistics, Writer
from bridge.supervised import supervised
from bridge.twilio.dialled import DialResult

# The webhook that asks how a call ended comes within a second or so of the end.
ENDINGS: Final = 10_000
ENDING_SECONDS: Final = 1.0

# Between looks for an ending that another process may be writing.
FIRST_LOOK: Final = 0.02
LONGEST_LOOK: Final = 0.2

# Above the store's own limits; beyond it a thread hangs, and is abandoned.
READ_SECONDS: Final = 6.0
# Reading threads; more would only queue at the database.
READERS: Final = 4

# Calls whose records are known without the database, for a later leg; and how long a leg that
# begins waits for the database where they are not.
KNOWN_CALLS: Final = 200
RECALL_SECONDS: Final = 1.0

# How old the words of a live call become before they are written.
UPDATE_SECONDS: Final = 3.0

T = TypeVar("T")


class Known(NamedTuple):
    """The record of one of the last calls, and when the call began, on Trio's clock."""

    record: CallRecord
    began_at: float


class Recorder:
    """Keeps the records of one process's calls, by `writer`.

    Without a writer it keeps no records and knows only the last calls of this process. It uses no
    threads then, so it suits a virtual clock.

    `begin`, `update`, `finish` and `note_status` belong to Trio's thread, return at once and never
    raise for what the database or the disk does. They may be called before `running` is entered and
    after it is left. A record without a call SID is dropped, since nothing could ask for it.

    With a `lease` of this process, the records of its live calls bear its name.
    """

    def __init__(self, writer: Writer | None = None, lease: Lease | None = None) -> None:
        self.writer = writer
        self._lease = lease
        # Of the last calls of this process, for the webhook that reaches it.
        self._endings: OrderedDict[str, Ending] = OrderedDict()
        self._known: OrderedDict[str, Known] = OrderedDict()
        # The records of the live calls, and what brings each up to date.
        self._live: dict[str, tuple[CallRecord, Callable[[], bool]]] = {}
        self._readers = trio.CapacityLimiter(READERS)

    @property
    def keeps_records(self) -> bool:
        """Whether there is anywhere to write them."""
        return self.writer is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write records while the block runs, and then what is left, in STOP_SECONDS at most.

        Cancelling the block does not stop the writing before the block has ended, so what calls
        tell about their end is kept. Raises StoreError at the start, for a database that only the
        operator can fix. What the block raises comes in an ExceptionGroup, as from every nursery.
        """
        writer = self.writer
        if writer is None:
            yield
            return
        await writer.open()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def recorder() -> None:
                with trio.CancelScope(shield=True):  # deadline: STOP_SECONDS, by `aclose` below
                    await writer.run()

            nursery.start_soon(supervised, "records of live calls", self._follow)
            if self._lease is not None:
                nursery.start_soon(self._lease.run)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):  # deadline: STOP_SECONDS, in `aclose`
                    await writer.aclose()
                nursery.cancel_scope.cancel(reason="the records are written")

    # ---- what a call does -------------------------------------------------------------------

    def begin(self, record: CallRecord, has_grown: Callable[[], bool] = lambda: False) -> None:
        """A call has begun. From here on the recorder counts `record.revision`.

        `has_grown` brings the record up to date and returns whether that changed it. It is called
        every UPDATE_SECONDS until `finish`.
        """
        self._live[record.call_sid] = record, has_grown
        record.process = self._lease.process if self._lease is not None else ""
        self._put(record)

    async def _follow(self) -> None:
        while True:
            await trio.sleep(UPDATE_SECONDS)
            for record, has_grown in list(self._live.values()):
                # The snapshots come one at a time, between which audio goes on.
                await trio.lowlevel.checkpoint()
                if self._is_live(record) and not self.statistics().trouble and has_grown():
                    self._put(record)

    def _is_live(self, record: CallRecord) -> bool:
        return self._live.get(record.call_sid, (None,))[0] is record

    def update(self, record: CallRecord) -> None:
        """The same call, so far. Called as soon as `outcome` is known, before teardown: the webhook
        that asks for it may reach another worker at once.
        """
        self._put(record)

    def finish(self, record: CallRecord) -> None:
        """The same call, complete."""
        if self._is_live(record):  # and not a later leg of it
            del self._live[record.call_sid]
        self._put(record)

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
        """Twilio's status callback, in any order and in any process: the highest `SequenceNumber`
        stays. Makes a record if there is none, as for a call that was not answered.
        """
        note = CallRecord(
            call_sid=call_sid,
            started_at=datetime.now(UTC),
            status=status,
            status_sequence=sequence,
            answered_by=answered_by,
            caller=caller,
            called=called,
            direction=direction,
        )
        if call_sid and self.writer is not None:
            self.writer.put(snapshot(note))

    def _put(self, record: CallRecord) -> None:
        if not record.call_sid:
            return
        record.revision += 1
        if record.outcome:
            record.process = ""
        known = self._known.get(record.call_sid)
        self._remember(record, trio.current_time() if known is None else known.began_at)
        if record.outcome:
            self._endings[record.call_sid] = Ending.of(record)
            if len(self._endings) > ENDINGS:
                self._endings.popitem(last=False)
        else:
            self._endings.pop(record.call_sid, None)
        if self.writer is not None:
            self.writer.put(snapshot(record))

    def _remember(self, record: CallRecord, began_at: float) -> None:
        self._known[record.call_sid] = Known(record, began_at)
        self._known.move_to_end(record.call_sid)
        if len(self._known) > KNOWN_CALLS:
            self._known.popitem(last=False)

    # ---- legs and transfers -----------------------------------------------------------------

    def known(self, call_sid: str) -> Known | None:
        """Return the record of a call, if it is one of the last of this process, or recalled."""
        return self._known.get(call_sid)

    async def recall(self, call_sid: str, within: float = RECALL_SECONDS) -> CallRecord | None:
        """Return the record of a call that any process has carried, and make it known.

        None if there is none, or the database does not say so within `within` seconds.
        """
        stored: CallRecord | None = None
        with trio.move_on_after(within):
            with suppress(StoreUnavailable):
                stored = await self.get(call_sid) if self.writer is not None else None
        await trio.lowlevel.checkpoint()
        known = self._known.get(call_sid)
        # Revision 0: no process has carried it yet.
        if stored is not None and stored.revision > (known.record.revision if known else 0):
            age = (datetime.now(UTC) - stored.started_at).total_seconds()
            began_at = trio.current_time() - max(0.0, age)
            self._remember(stored, began_at if known is None else known.began_at)
        known = self._known.get(call_sid)
        return None if known is None else known.record

    async def note_dialled(
        self,
        call_sid: str,
        leg: int,
        result: DialResult,
        outcome: Outcome,
        *,
        reason: str = "",
        fallback: str = "",
    ) -> bool:
        """Add what became of the phone that was dialled after this leg of a call.

        `outcome` is the call's, HANDED_OVER if it goes on, and `reason` why nobody was reached;
        `fallback` is the phone, where it was dialled after an apology. Returns False if this was
        known before, as when Twilio repeats its request.
        """
        known = await self.recall(call_sid)
        if known is None:
            return True
        if max(1, len(known.legs)) != leg or known.transfer_status:
            return False
        record = continued(known)
        if fallback:
            record.transfer_to, record.transfer_name = fallback, "fallback"
        record.transfer_status, record.transfer_seconds = result.status, result.seconds
        if outcome.is_final and record.outcome == Outcome.HANDED_OVER:
            record.outcome, record.reason = str(outcome), reason or record.reason
        if record.legs:
            names = ("transfer_to", "transfer_name", "transfer_status", "transfer_seconds")
            changed = {name: getattr(record, name) for name in names}
            record.legs[-1] = msgspec.structs.replace(record.legs[-1], **changed)
        self._put(record)
        return True

    # ---- what others ask --------------------------------------------------------------------

    async def ending_of(
        self, call_sid: str, leg: int = 1, within: float = ENDING_SECONDS
    ) -> Ending | None:
        """Find out how a leg of a call, or a later one, ended, whichever process carried it.

        Asks the database again until it knows, because the webhook that wants to know can overtake
        the record. SERVER_LOST if the leg has begun and still no end of it is recorded after
        `within` seconds: a process that lives records it at once, and `lease` takes longer to find
        one that does not. None if nothing is known of the leg, or the database cannot be asked.
        """
        looks = pauses(FIRST_LOOK, LONGEST_LOOK)
        stored: Ending | None = None
        with trio.move_on_after(within):
            while (ending := self._endings.get(call_sid)) is None or ending.legs < leg:
                if self.writer is None:
                    await trio.lowlevel.checkpoint()
                    return None
                try:
                    stored = await self._read(partial(self.writer.store.ending_of, call_sid))
                except StoreUnavailable:
                    return None
                if stored is not None and stored.outcome and stored.legs >= leg:
                    return stored
                await trio.sleep(next(looks))
        await trio.lowlevel.checkpoint()
        ending = self._endings.get(call_sid)
        if ending is not None and ending.legs >= leg:
            return ending
        if stored is not None and not stored.outcome and stored.legs == leg:
            return Ending(str(Outcome.SERVER_LOST), legs=leg)
        return None

    async def list_calls(
        self, limit: int = 20, before: datetime | None = None, outcome: str | None = None
    ) -> list[CallRecord]:
        """List calls that have reached the database, as `Store.list_calls`. Raises
        StoreUnavailable.
        """
        if self.writer is None:
            await trio.lowlevel.checkpoint()
            return []
        return await self._read(partial(self.writer.store.list_calls, limit, before, outcome))

    async def get(self, call_sid: str) -> CallRecord | None:
        """Return one call with everything, stored or still waiting. Raises StoreUnavailable."""
        if self.writer is None:
            await trio.lowlevel.checkpoint()
            return None
        stored = await self._read(partial(self.writer.store.get, call_sid))
        waiting = self.writer.waiting.get(call_sid)
        if waiting is None:
            return stored
        return tidy(waiting if stored is None else merge(snapshot(stored), waiting))

    async def _read(self, read: Callable[[], T]) -> T:
        with trio.move_on_after(READ_SECONDS):
            # It may be abandoned: reading changes nothing.
            return await trio.to_thread.run_sync(
                read, abandon_on_cancel=True, limiter=self._readers
            )
        raise StoreUnavailable(f"no answer within {READ_SECONDS:g} s")

    def statistics(self) -> RecorderStatistics:
        """Counts as of now; all zero without a writer."""
        return RecorderStatistics() if self.writer is None else self.writer.statistics()


def recorder_for(
    settings: RecordSettings,
    spool: Path | None = None,
    lost: Callable[[LostCall], None] = lambda call: None,
) -> Recorder:
    """Make the recorder that `[records]` asks for. Opens nothing yet.

    `spool` is the folder in which records wait while the database is away. By default it is next to
    an SQLite file and has its name with `-spool` appended; for a database elsewhere it is
    `calls-spool` in the working directory. `lost` is called with each call of a process that died
    whose record this one has ended. Raises StoreError, a ConfigError.
    """
    if not settings.url:
        return Recorder()
    store = Store(settings.url)
    if spool is None:
        spool = Path(f"{store.file}-spool" if store.file else "calls-spool")
    recordings = Path(settings.recordings) if settings.recordings else None
    days = settings.retention_days
    writer = Writer(store, Spool(spool), retention_days=days, recordings=recordings)
    return Recorder(writer, Lease(store, lost))
