"""Keeps the records of calls without ever making a call wait.

    call ──begin, update, finish──▶ waiting (memory, bounded) ──▶ writer ──▶ database
                                                                    │           ▲
                                                                    ▼           │ in order
                                                                  spool (disk, bounded)

Theory of operation. A call hands over a snapshot and goes on; that is all it ever does. What waits
is one record for each call, since a newer one takes an older one's place. One task, the writer,
takes them to the database in the order in which their calls first came, in a thread.

When the database is down, locked, slow or full, the writer takes them to the spool instead, and
tries the database again later and later. When it answers, the spool goes first. So the spool, while
there is anything in it, is older than what waits, and order is kept. A record leaves memory when it
is in the database or on the disk, and leaves the disk when it is in the database: at every moment
it is somewhere, and sometimes in two places, which `record.merge` makes harmless.

That is also why threads may be abandoned here. A thread that hangs in the database, on a network
that swallows packets for example, may still write long after; a row never goes back to an earlier
revision, so it changes nothing. It keeps its token, and while it does nobody tries the database.
The spool's thread keeps its token in the same way, so that no two threads are ever in one spool.

What may be lost, and then said in the log with the calls' SIDs: a call beyond WAITING_CALLS while
database and disk both hang; one beyond the spool's bound (see `spool`); what the process had not
put anywhere when it was killed, which is what came within the last milliseconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from bridge.config.settings import RecordSettings
from bridge.log import get_logger
from bridge.records import batches, wav
from bridge.records.null_recorder import ENDING_SECONDS, Endings, NullRecorder, RecorderStatistics
from bridge.records.record import CallRecord, Direction, Ending, Snapshot, merge, snapshot, tidy
from bridge.records.spool import Spool
from bridge.records.store import PURGE_ROWS, Store, StoreError, StoreUnavailable

log = get_logger(__name__)

# More than a worker has calls, and 10 MB when each has ten minutes of transcript.
WAITING_CALLS: Final = 1_000
# With so many waiting, the database is too slow: they go to the spool, and it may catch up later.
SPOOL_FROM: Final = 500

# In one transaction, or one fsync. Few enough that none takes long, many enough that a server that
# was cut off for a night is done in seconds.
BATCH: Final = 50

# Beyond the store's own limits for a lock, a statement and a connection, one after the other: then
# it is a disk or a network that hangs, and only giving the thread up helps.
WRITE_SECONDS: Final = 12.0
READ_SECONDS: Final = 6.0
# A disk that takes longer for a megabyte hangs.
DISK_SECONDS: Final = 10.0

# A locked database is back in a moment, one that is being replaced within minutes.
FIRST_RETRY: Final = 0.25
LAST_RETRY: Final = 15.0

# The start of the server waits so long for a database that may be starting as well.
START_SECONDS: Final = 10.0
# A stop takes at most so long: one share for what is under way, the last for the disk, and between
# them the database.
STOP_SECONDS: Final = 5.0
HURRY_SHARE: Final = 0.2
LAST_WRITE_SECONDS: Final = 1.0
DISK_SHARE: Final = 0.4

DAY: Final = 86_400.0
PURGE_AGAIN: Final = 3_600.0  # after one that failed

_ENDING_LOOKS: Final = (0.02, 0.05, 0.1, 0.2)  # seconds between looks; the last one repeats

# Reading threads; more would only queue at the database.
READERS: Final = 4

T = TypeVar("T")


class Recorder:
    """Keeps the records of one process's calls.

    `begin`, `update`, `finish` and `note_status` belong to Trio's thread, return at once, never
    raise for what the database or the disk does, and may be called before `run` and after `aclose`.

    *Resource handling.* `run` owns the files and connections and closes them before it returns. It
    returns after `aclose`, or when it is cancelled; either way it first takes what waits to the
    database, or else to the spool, within STOP_SECONDS and shielded from cancellation. So close it
    after the calls. What comes still later goes to the spool at once, on the caller's time: there
    is no other left.

    *Error handling.* At the start, StoreError for what only the operator can mend. Later nothing is
    raised: trouble is logged when it begins and when it ends, and shows in `statistics`.
    """

    keeps_records = True

    def __init__(
        self,
        store: Store,
        spool: Spool,
        *,
        retention_days: int = 30,
        recordings: Path | None = None,
    ) -> None:
        self._store = store
        self._spool = spool
        self._retention = timedelta(days=retention_days)
        self._recordings = recordings
        self._endings = Endings()
        # By call SID, in the order in which the calls came to wait.
        self._waiting: dict[str, Snapshot] = {}
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._done = trio.Event()
        self._running = False
        self._closing = False
        self._stopping = False
        self._closed = False
        # One token each, never the shared ones of Trio's: see the top.
        self._database_thread = trio.CapacityLimiter(1)
        self._disk_thread = trio.CapacityLimiter(1)
        self._readers = trio.CapacityLimiter(READERS)
        self._attempt = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._stop_by = float("inf")
        self._opened = False
        self._trouble = ""
        self._disk_trouble = ""
        self._failures = 0
        self._retry_at = float("-inf")
        self._purge_at = float("-inf")
        self._written = 0
        self._lost = 0

    # ---- what a call does -------------------------------------------------------------------

    def begin(self, record: CallRecord) -> None:
        """A call has begun. `revision` of the record is the recorder's from here on.

        A record without a call SID is not kept: nobody could ask for it.
        """
        self._put(record)

    def update(self, record: CallRecord) -> None:
        """The same call, so far. Worth it as soon as `outcome` is known, before teardown: the
        webhook that asks for it may reach another worker at once.
        """
        self._put(record)

    def finish(self, record: CallRecord) -> None:
        """The same call, whole."""
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
        stays. Makes a record where there is none, as of a call that nobody answered.
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
        if call_sid:
            self._add(note)

    def _put(self, record: CallRecord) -> None:
        if not record.call_sid:
            return
        record.revision += 1
        self._endings.remember(record)
        self._add(record)

    def _add(self, record: CallRecord) -> None:
        new = snapshot(record)
        if self._closed:
            self._last_resort(new)
            return
        old = self._waiting.get(record.call_sid)
        if old is not None:
            new = merge(old, new)
        elif len(self._waiting) >= WAITING_CALLS and not self._make_room():
            self._lose([record.call_sid], "database and disk both hang")
            return
        self._waiting[record.call_sid] = new
        if self._is_crowded:
            self._attempt.cancel(reason="the database is too slow")
        self._wake.set()

    def _make_room(self) -> bool:
        """Let go of the call that waits longest and is not over: it will come again."""
        sid = next((sid for sid, one in self._waiting.items() if not one.get("outcome")), None)
        if sid is not None:
            del self._waiting[sid]
        return sid is not None

    def _last_resort(self, late: Snapshot) -> None:
        # The one place that blocks the loop, for a millisecond: the server has stopped.
        if self._disk_thread.borrowed_tokens:
            self._lose([late["call_sid"]], "the disk hangs")
            return
        try:
            lines, _ = batches.lines_of([late])
            if self._spool.append(lines):
                self._lose([late["call_sid"]], "the spool is full")
            self._spool.close()
        except OSError as error:
            self._lose([late["call_sid"]], f"the spool cannot be written: {error}")

    # ---- what others ask --------------------------------------------------------------------

    async def ending_of(self, call_sid: str, within: float = ENDING_SECONDS) -> Ending | None:
        """How a call ended, wherever it was carried; None if that is not known `within` so many
        seconds, or the database cannot be asked.

        Looks again and again, because the webhook that wants to know can overtake the record.
        """
        with trio.move_on_after(within):
            looks = iter(_ENDING_LOOKS)
            pause = 0.0
            while True:
                if ending := self._endings.get(call_sid):
                    await trio.lowlevel.checkpoint()
                    return ending
                try:
                    ending = await self._read(partial(self._store.ending_of, call_sid))
                except StoreUnavailable:
                    return None
                if ending is not None:
                    return ending
                pause = next(looks, pause)
                await trio.sleep(pause)
        return self._endings.get(call_sid)

    async def list_calls(
        self, limit: int = 20, before: datetime | None = None, outcome: str | None = None
    ) -> list[CallRecord]:
        """As `Store.list_calls`: what has reached the database. Raises StoreUnavailable."""
        return await self._read(partial(self._store.list_calls, limit, before, outcome))

    async def get(self, call_sid: str) -> CallRecord | None:
        """All that is known of one call, also what only waits. Raises StoreUnavailable."""
        stored = await self._read(partial(self._store.get, call_sid))
        waiting = self._waiting.get(call_sid)
        if waiting is None:
            return stored
        return tidy(waiting if stored is None else merge(snapshot(stored), waiting))

    async def _read(self, read: Callable[[], T]) -> T:
        with trio.move_on_after(READ_SECONDS):
            # Abandoned: it changes nothing.
            return await trio.to_thread.run_sync(
                read, abandon_on_cancel=True, limiter=self._readers
            )
        raise StoreUnavailable(f"no answer within {READ_SECONDS:g} s")

    def statistics(self) -> RecorderStatistics:
        """How it stands."""
        return RecorderStatistics(
            waiting=len(self._waiting),
            spooled_bytes=self._spool.bytes,
            written=self._written,
            lost=self._lost,
            trouble=self._trouble,
        )

    async def settle(self) -> None:
        """Wait until nothing waits in memory or in the spool. For tests: it may never happen."""
        while self._waiting or not self._spool.is_empty:
            await self._idle.wait()
            await trio.lowlevel.checkpoint()

    # ---- the writer -------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the tables, take over what an earlier process left in the spool. Optional before
        `run`, for those who want its StoreError by itself. Takes START_SECONDS at most for the
        database, and a little more if the disk hangs as well.
        """
        try:
            await self._adopt()
            await self._prepare()
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._stop()
            raise
        self._opened = True

    async def _adopt(self) -> None:
        try:
            await self._on_disk(self._spool.adopt)
        except OSError as error:
            log.warning("records of an earlier process cannot be read", error=str(error))

    async def _prepare(self) -> None:
        with trio.move_on_after(START_SECONDS) as waiting:
            try:
                # Abandoned: making tables twice does no harm.
                await trio.to_thread.run_sync(
                    self._store.prepare, abandon_on_cancel=True, limiter=self._database_thread
                )
            except StoreUnavailable as error:
                self._failed(str(error))
        if waiting.cancelled_caught:
            self._failed(f"no answer within {START_SECONDS:g} s")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what comes until `aclose`. See the class for cancellation and errors."""
        self._running = True
        try:
            # `aclose` gives it a deadline, so that a hanging thread cannot hold up a stop.
            with self._scope:
                if not self._opened:
                    await self.open()
                task_status.started()
                while not self._closing:
                    with trio.move_on_after(self._seconds_to_wait()):
                        await self._wake.wait()
                    self._wake = trio.Event()
                    await self._work()
                    self._idle.set()
                    self._idle = trio.Event()
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()

    async def aclose(self) -> None:
        """End `run`, and return when it has. Takes STOP_SECONDS at most. Idempotent."""
        if not self._closing:
            self._closing = True
            now = trio.current_time()
            self._stop_by = now + STOP_SECONDS
            self._scope.deadline = now + STOP_SECONDS * HURRY_SHARE
            self._wake.set()
        if self._running:
            await self._done.wait()
        else:
            with trio.CancelScope(shield=True):
                await self._stop()
        await trio.lowlevel.checkpoint()

    def _seconds_to_wait(self) -> float:
        until = self._purge_at
        if self._failures:
            pending = self._waiting or not self._spool.is_empty
            until = self._retry_at if pending else max(self._retry_at, until)
        return max(0.0, until - trio.current_time())

    async def _work(self) -> None:
        """Take everything as far as it goes: each turn writes something, spools something, or
        puts off the next try.
        """
        while not self._closing:
            if self._is_crowded and await self._spool_batch():
                continue
            if self._may_try():
                if not self._spool.is_empty:
                    await self._replay_batch()
                elif self._waiting:
                    await self._store_batch()
                elif trio.current_time() >= self._purge_at:
                    await self._purge()
                else:
                    return
            elif not self._waiting or not await self._spool_batch():
                return

    @property
    def _is_crowded(self) -> bool:
        """Whether so many wait that the disk must help, and it can."""
        return len(self._waiting) >= SPOOL_FROM and not self._disk_trouble

    def _may_try(self) -> bool:
        """Whether it is time to ask the database for something."""
        if trio.current_time() < self._retry_at:
            return False
        if self._database_thread.borrowed_tokens:
            self._failed("it still has not answered")
            return False
        return True

    async def _store_batch(self) -> bool:
        batch = self._oldest()
        if not await self._in_database(partial(batches.write, self._store, batch)):
            return False
        self._no_longer_wait(batch)
        return True

    async def _replay_batch(self) -> None:
        try:
            lines = await self._on_disk(partial(self._spool.peek, BATCH))
            if lines and await self._in_database(partial(batches.rewrite, self._store, lines)):
                await self._on_disk(self._spool.advance)
        except OSError as error:
            self._failed(f"the spool cannot be read: {error}")

    async def _spool_batch(self) -> bool:
        batch = self._oldest()
        try:
            lost = await self._on_disk(partial(batches.to_spool, self._spool, batch))
        except OSError as error:
            if not self._disk_trouble:
                log.error(
                    "records cannot be spooled; they wait in memory",
                    folder=str(self._spool.folder),
                    error=str(error),
                )
            self._disk_trouble = str(error)
            return False
        self._disk_trouble = ""
        self._no_longer_wait(batch)
        self._lose(lost, "the spool is full")
        return True

    def _oldest(self) -> list[Snapshot]:
        return [one for one, _ in zip(self._waiting.values(), range(BATCH), strict=False)]

    def _no_longer_wait(self, batch: Sequence[Snapshot]) -> None:
        for one in batch:
            # Unless a newer one has taken its place meanwhile.
            if self._waiting.get(one["call_sid"]) is one:
                del self._waiting[one["call_sid"]]

    async def _in_database(self, work: Callable[[], batches.Written]) -> bool:
        """Do something in the database's thread. False, and a later retry, if it did not work."""
        # Abandoned when it takes too long, or when too many wait meanwhile: see the top.
        with trio.CancelScope() as self._attempt:
            self._attempt.deadline = trio.current_time() + WRITE_SECONDS
            try:
                written = await trio.to_thread.run_sync(
                    work, abandon_on_cancel=True, limiter=self._database_thread
                )
            except (StoreUnavailable, StoreError) as error:
                self._failed(str(error))
                return False
        if self._attempt.cancelled_caught:
            self._failed("no answer in time")
            return False
        self._worked(written)
        return True

    async def _on_disk(self, work: Callable[[], T]) -> T:
        """Do something in the spool's thread. Raises OSError, also when the disk hangs."""
        with trio.move_on_after(DISK_SECONDS):
            # Abandoned, it keeps its token, so that nobody else touches the spool. Lines whose
            # thread was abandoned may be on the disk and come a second time, which is harmless.
            return await trio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=self._disk_thread
            )
        raise OSError(f"no answer within {DISK_SECONDS:g} s")

    def _failed(self, trouble: str) -> None:
        self._retry_at = trio.current_time() + min(LAST_RETRY, FIRST_RETRY * 2**self._failures)
        self._failures = min(self._failures + 1, 30)
        if not self._trouble:
            log.error("records wait in the spool; calls go on", error=trouble)
        self._trouble = trouble

    def _worked(self, written: batches.Written) -> None:
        self._written += written.count
        for sid, reason in written.refused:
            self._lose([sid], reason)
        if self._failures:
            log.info("records are written again", after=self._trouble)
        self._failures, self._retry_at, self._trouble = 0, float("-inf"), ""

    def _lose(self, sids: Sequence[str], reason: str) -> None:
        if not sids:
            return
        self._lost += len(sids)
        log.error("records lost", calls=list(sids), reason=reason)

    async def _purge(self) -> None:
        """Delete what is older than it may be: rows, recordings, and what else holds words."""
        self._purge_at = trio.current_time() + PURGE_AGAIN
        limit = datetime.now(UTC) - self._retention
        total = 0
        while True:
            removed = batches.Removed()
            if not await self._in_database(partial(removed.purge, self._store, limit)):
                return
            total += removed.count
            if removed.count < PURGE_ROWS:
                break
        files = 0
        try:
            if self._recordings is not None:
                files = await self._on_disk(partial(wav.purge, self._recordings, limit))
            await self._on_disk(self._spool.adopt)
        except OSError as error:
            log.error("old recordings cannot be deleted", error=str(error))
            return
        self._purge_at = trio.current_time() + DAY
        if total or files:
            log.info("old records deleted", calls=total, recordings=files)

    # ---- the end ----------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Put everything somewhere by `_stop_by`, and close; once, whoever asks for it first."""
        if self._stopping:
            await self._done.wait()
            return
        self._stopping = self._closing = True
        stop_by = min(self._stop_by, trio.current_time() + STOP_SECONDS)
        try:
            with trio.CancelScope(deadline=stop_by):
                await self._put_away(stop_by - STOP_SECONDS * DISK_SHARE)
        finally:
            self._closed = True
            left, self._waiting = list(self._waiting), {}
            self._lose(left, self._disk_trouble or "the disk hangs")
            self._done.set()
            self._idle.set()

    async def _put_away(self, database_until: float) -> None:
        with trio.CancelScope(deadline=database_until):
            # What was cancelled in mid-write is being written still, and as a rule soon is.
            with trio.move_on_after(LAST_WRITE_SECONDS):
                async with self._database_thread:
                    pass
            # Never ahead of what is in the spool already: otherwise they join it there.
            while self._waiting and self._spool.is_empty and self._may_try():
                await self._store_batch()
        while self._waiting and await self._spool_batch():
            pass
        try:
            await self._on_disk(self._spool.close)
        except OSError as error:
            log.warning("the spool cannot be closed", error=str(error))
        if not self._database_thread.borrowed_tokens:
            await trio.to_thread.run_sync(
                self._store.close, abandon_on_cancel=True, limiter=self._database_thread
            )


AnyRecorder = Recorder | NullRecorder


def recorder_for(settings: RecordSettings, spool: Path | None = None) -> AnyRecorder:
    """The recorder that `[records]` asks for. Opens nothing yet: that is `run`'s.

    `spool` is the folder in which records wait while the database is away; by default it is next
    to an SQLite file, whose name it has with `-spool` behind it, and `calls-spool` in the working
    directory with a database elsewhere. Raises StoreError, a ConfigError.
    """
    if not settings.url:
        return NullRecorder()
    store = Store(settings.url)
    if spool is None:
        spool = Path(f"{store.file}-spool" if store.file else "calls-spool")
    recordings = Path(settings.recordings) if settings.recordings else None
    return Recorder(
        store, Spool(spool), retention_days=settings.retention_days, recordings=recordings
    )


@asynccontextmanager
async def open_recorder(
    settings: RecordSettings, spool: Path | None = None
) -> AsyncIterator[AnyRecorder]:
    """A recorder that runs until the block is left, and outlives the block's cancellation: what the
    calls in it left behind gets to the database or the spool, in STOP_SECONDS at most.

    Raises StoreError at the start. What the block raises comes in an ExceptionGroup, as from every
    nursery.
    """
    recorder = recorder_for(settings, spool)
    await recorder.open()

    async def run() -> None:
        with trio.CancelScope(shield=True):
            await recorder.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, name="recorder")
        try:
            yield recorder
        finally:
            with trio.CancelScope(shield=True):
                await recorder.aclose()


__all__: Final[Any] = [
    "AnyRecorder",
    "NullRecorder",
    "Recorder",
    "RecorderStatistics",
    "open_recorder",
    "recorder_for",
]
