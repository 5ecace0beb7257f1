"""Takes records from memory to the database, and to the disk while the database is away.

    put ──▶ waiting (memory, bounded) ──▶ database
                        │                    ▲
                        ▼                    │ in order
                      spool (disk, bounded) ─┘

Theory of operation. One task takes the snapshots to the database in a thread, in the order in which
their calls first came. When the database is down, locked, slow or full, the task takes them to the
spool instead, and tries the database again after pauses that grow. When it answers, the spool goes
first. So what is in the spool is always older than what waits, and order is kept. A record leaves
memory when it is in the database or on the disk, and leaves the disk when it is in the database: at
every moment it is in at least one of the three, and sometimes in two, which `record.merge` makes
harmless.

That is also why threads may be abandoned here. A thread that hangs in the database, because a
network swallows packets for example, may still write long after; a row never goes back to an
earlier revision, so it changes nothing. While it hangs, nothing else tries the database. The same
holds for the disk, so that no two threads are ever in one spool.

Records are lost, and logged as lost with their calls' SIDs, only when: database and disk both hang
or fail until the backlog is full; the spool is full (see `spool`); or the process is killed, which
loses what was not handed over yet (`recorder` says how much) and is not logged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from bridge.backoff import pauses
from bridge.log import get_logger
from bridge.one_thread import OneThread
from bridge.records import wav
from bridge.records.private import close_to_others
from bridge.records.record import CallRecord, Snapshot, decode, encode, tidy
from bridge.records.spool import Spool, SpoolLine
from bridge.records.store import PURGE_ROWS, Store, StoreError, StoreUnavailable
from bridge.records.waiting import Waiting
from bridge.supervised import supervised

log = get_logger(__name__)

# With so many waiting, the database is too slow: they go to the spool, and it may catch up later.
SPOOL_FROM: Final = 500

# In one transaction, or one fsync. Few enough that none takes long, many enough that a server that
# was cut off for a night is done in seconds.
BATCH: Final = 50

# Beyond the store's own limits for a lock, a statement and a connection, one after the other: then
# it is a disk or a network that hangs, and only abandoning the thread helps.
WRITE_SECONDS: Final = 12.0
# A disk that takes longer for a megabyte hangs.
DISK_SECONDS: Final = 10.0

# A locked database is back in a moment, one that is being replaced within minutes.
FIRST_RETRY: Final = 0.25
LAST_RETRY: Final = 15.0

# The start of the server waits so long for a database that may be starting as well.
START_SECONDS: Final = 10.0
# A stop takes at most so long: the first share is for what is under way, the last for the disk, and
# what is between them for the database.
STOP_SECONDS: Final = 5.0
UNDER_WAY_SHARE: Final = 0.2
LAST_WRITE_SECONDS: Final = 1.0
DISK_SHARE: Final = 0.4

DAY: Final = 86_400.0
PURGE_AGAIN: Final = 3_600.0  # after one that failed

# The longest that a dialled call may be told to last; by default Twilio ends it after 4 hours.
# https://www.twilio.com/docs/voice/twiml/dial#timelimit
LONGEST_CALL: Final = timedelta(days=1)

T = TypeVar("T")


@dataclass(frozen=True)
class RecorderStatistics:
    """Where records are: waiting in memory, in the spool (bytes); how many were written since the
    start, and how many were lost; why the database cannot be used, "" if it can.
    """

    waiting: int = 0
    spooled_bytes: int = 0
    written: int = 0
    lost: int = 0
    trouble: str = ""


class Writer:
    """Writes snapshots to `store`, or to `spool` while the store is away.

    Rows and files in `recordings` that are older than `retention_days` are deleted at the start and
    then daily.

    *Resource handling.* `run` owns the files and connections and closes them before it returns. It
    returns after `aclose`, or when it is cancelled; either way it first takes what waits to the
    database, or else to the spool, within STOP_SECONDS and shielded from cancellation. So close it
    after the calls.

    *Error handling.* `open` raises StoreError for what only the operator can fix. Later nothing is
    raised: trouble is logged when it begins and when it ends, and shows in `statistics`.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        *,
        retention_days: int = 30,
        recordings: Path | None = None,
    ) -> None:
        self.store = store
        self._spool = spool
        self._retention = timedelta(days=retention_days)
        self._recordings = recordings
        self.waiting = Waiting()
        self._database = OneThread()
        self._disk = OneThread()
        self._attempt = trio.CancelScope()
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._opened = False
        self._running = False
        self._closing = False
        self._stopping = False
        self._closed = False
        self._done = trio.Event()
        self._scope = trio.CancelScope()
        self._stop_by = float("inf")
        self._trouble = ""
        self._disk_trouble = ""
        self._pauses = pauses(FIRST_RETRY, LAST_RETRY)
        self._retry_at = float("-inf")
        self._purge_at = float("-inf")
        self._written = 0
        self._lost = 0

    def put(self, new: Snapshot) -> None:
        """Take a snapshot to be written. Returns at once and never raises for disk or database.

        May be called before `run`. After `aclose` the snapshot goes to the spool at once, which
        blocks the event loop for a millisecond: no task is left to write it.
        """
        if self._closed:
            self._spool_now([new])
        elif not self.waiting.add(new):
            self._lose([new["call_sid"]], "database and disk both hang")
        else:
            if self._is_crowded:
                self._attempt.cancel(reason="the database is too slow")
            self._wake.set()

    def statistics(self) -> RecorderStatistics:
        """Counts as of now."""
        return RecorderStatistics(
            waiting=len(self.waiting),
            spooled_bytes=self._spool.bytes,
            written=self._written,
            lost=self._lost,
            trouble=self._trouble,
        )

    async def settle(self) -> None:
        """Wait until memory and spool are empty. For tests: it may never happen."""
        while self.waiting or not self._spool.is_empty:
            await self._idle.wait()
            await trio.lowlevel.checkpoint()

    # ---- start, run, stop -------------------------------------------------------------------

    async def open(self) -> None:
        """Make the tables, and adopt what an earlier process left in the spool.

        Optional before `run`, for a caller that needs StoreError raised here. Takes START_SECONDS
        at most for the database, and DISK_SECONDS more if the disk hangs as well.
        """
        try:
            await self._adopt()
            await self._prepare()
        except BaseException:
            await self._stop()
            raise
        self._opened = True

    async def _adopt(self) -> None:
        try:
            folders = [self._spool.folder]
            if self._recordings is not None:
                folders.append(self._recordings)
            await self._on_disk(partial(close_to_others, *folders))
            await self._on_disk(self._spool.adopt)
        except OSError as error:
            log.warning("records of an earlier process cannot be read", error=str(error))

    async def _prepare(self) -> None:
        try:
            # It may be abandoned: making tables twice does no harm.
            await self._database.run(self.store.prepare, within=START_SECONDS)
        except StoreUnavailable as error:
            self._failed(str(error))
        except trio.TooSlowError:
            self._failed(f"no answer within {START_SECONDS:g} s")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what comes until `aclose`. See the class for cancellation and errors."""
        self._running = True
        try:
            # `aclose` gives the scope a deadline, so that a hanging thread cannot hold up a stop.
            with self._scope:
                if not self._opened:
                    await self.open()
                task_status.started()
                await supervised("recorder", self._write)
        finally:
            await self._stop()

    async def aclose(self) -> None:
        """End `run`, and return when it has. Takes STOP_SECONDS at most. Idempotent.

        Cancelled, it returns early, and `run` ends all the same.
        """
        if not self._closing:
            self._closing = True
            now = trio.current_time()
            self._stop_by = now + STOP_SECONDS
            self._scope.deadline = now + STOP_SECONDS * UNDER_WAY_SHARE
            self._wake.set()
        if self._running:
            await self._done.wait()
        else:
            await self._stop()
        await trio.lowlevel.checkpoint()

    async def _stop(self) -> None:
        """Put everything somewhere by `_stop_by`, and close. Only the first call does so."""
        if self._stopping:
            await self._done.wait()
            return
        self._stopping = self._closing = True
        stop_by = min(self._stop_by, trio.current_time() + STOP_SECONDS)
        try:
            with trio.CancelScope(deadline=stop_by, shield=True):
                await self._put_away(stop_by - STOP_SECONDS * DISK_SHARE)
        except Exception:
            log.exception("records cannot be put away by a thread")
        finally:
            self._closed = True
            left = self.waiting.oldest(len(self.waiting))
            self.waiting.remove(left)
            if left:
                self._spool_now(left)
            self._done.set()
            self._idle.set()

    async def _put_away(self, database_until: float) -> None:
        with trio.CancelScope(deadline=database_until):
            # A write that was cancelled goes on in its thread, and as a rule ends soon.
            with trio.move_on_after(LAST_WRITE_SECONDS):
                await self._database.wait_idle()
            # Never ahead of what is in the spool already: otherwise they join it there.
            while self.waiting and self._spool.is_empty and self._may_try():
                await self._use_database()
        while self.waiting and await self._spool_batch():
            pass
        try:
            await self._on_disk(self._spool.close)
        except OSError as error:
            log.warning("the spool cannot be closed", error=str(error))
        if not self._database.is_stuck:
            await self._database.run(self.store.close)

    def _spool_now(self, late: Sequence[Snapshot]) -> None:
        """Write to the spool in this thread: no other can be used any more."""
        sids = [one["call_sid"] for one in late]
        if self._disk.is_stuck:
            self._lose(sids, "the disk hangs")
            return
        try:
            self._lose(_to_spool(self._spool, late), "the spool is full")
            self._spool.close()
        except OSError as error:
            self._lose(sids, f"the spool cannot be written: {error}")

    # ---- writing ----------------------------------------------------------------------------

    async def _write(self) -> None:
        while not self._closing:
            self._wake = trio.Event()
            await self._work()
            self._idle.set()
            self._idle = trio.Event()
            with trio.move_on_after(self._seconds_to_wait()):
                await self._wake.wait()

    def _seconds_to_wait(self) -> float:
        until = self._purge_at
        if self._trouble:
            pending = self.waiting or not self._spool.is_empty
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
                if not await self._use_database():
                    return
            elif not self.waiting or not await self._spool_batch():
                return

    @property
    def _is_crowded(self) -> bool:
        """Whether so many wait that the disk must help, and it can."""
        return len(self.waiting) >= SPOOL_FROM and not self._disk_trouble

    def _may_try(self) -> bool:
        """Whether it is time to ask the database for something."""
        if trio.current_time() < self._retry_at:
            return False
        if self._database.is_stuck:
            self._failed("it still has not answered")
            return False
        return True

    async def _use_database(self) -> bool:
        """Write what comes next, the spool before what waits, or else purge. False if there is
        nothing to do. A failure puts off the next try.
        """
        try:
            if not self._spool.is_empty:
                await self._replay_batch()
            elif self.waiting:
                await self._store_batch()
            elif trio.current_time() >= self._purge_at:
                await self._purge()
            else:
                return False
        except (StoreUnavailable, StoreError) as error:
            self._failed(str(error))
        except Exception as error:
            log.exception("writing records failed unexpectedly")
            self._failed(repr(error))
        return True

    async def _replay_batch(self) -> None:
        try:
            lines = await self._on_disk(partial(self._spool.peek, BATCH))
            if lines:
                self._count(await self._in_database(partial(_rewrite, self.store, lines)))
                await self._on_disk(self._spool.advance)
        except OSError as error:
            self._failed(f"the spool cannot be read: {error}")

    async def _store_batch(self) -> None:
        batch = self.waiting.oldest(BATCH)
        self._count(await self._in_database(partial(_write, self.store, batch)))
        self.waiting.remove(batch)

    async def _spool_batch(self) -> bool:
        """Take the oldest to the disk. False if the disk does not take them."""
        batch = self.waiting.oldest(BATCH)
        try:
            lost = await self._on_disk(partial(_to_spool, self._spool, batch))
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
        self.waiting.remove(batch)
        self._lose(lost, "the spool is full")
        return True

    async def _purge(self) -> None:
        """Delete what is older than `retention_days`: rows, recordings, and segments of the spool
        whose process has ended. Also end the calls whose end was never reported.
        """
        self._purge_at = trio.current_time() + PURGE_AGAIN
        now = datetime.now(UTC)
        await self._in_database(partial(self.store.end_unreported, now - LONGEST_CALL))
        limit = now - self._retention
        rows = files = 0
        removed = PURGE_ROWS
        while removed == PURGE_ROWS:
            removed = await self._in_database(partial(self.store.purge, limit))
            rows += removed
        try:
            if self._recordings is not None:
                files = await self._on_disk(partial(wav.purge, self._recordings, limit))
            await self._on_disk(self._spool.adopt)
        except OSError as error:
            log.error("old recordings cannot be deleted", error=str(error))
            return
        self._purge_at = trio.current_time() + DAY
        if rows or files:
            log.info("old records deleted", calls=rows, recordings=files)

    # ---- the two threads --------------------------------------------------------------------

    async def _in_database(self, work: Callable[[], T]) -> T:
        """Do something in the database's thread. Raises StoreUnavailable, also when the database
        takes longer than WRITE_SECONDS, or when the backlog grows too long meanwhile.
        """
        with trio.CancelScope() as self._attempt:
            try:
                result = await self._database.run(work, within=WRITE_SECONDS)
            except trio.TooSlowError:
                raise StoreUnavailable("no answer in time") from None
            if self._trouble:
                log.info("records are written again", after=self._trouble)
            self._trouble, self._retry_at = "", float("-inf")
            self._pauses = pauses(FIRST_RETRY, LAST_RETRY)
            return result
        raise StoreUnavailable("no answer in time")

    def _count(self, result: _Result) -> None:
        self._written += result.written
        for sid, reason in result.refused:
            self._lose([sid], reason)

    async def _on_disk(self, work: Callable[[], T]) -> T:
        """Do something in the spool's thread. Raises OSError, also when the disk hangs.

        Lines whose thread was abandoned may come a second time, which is harmless.
        """
        try:
            return await self._disk.run(work, within=DISK_SECONDS)
        except trio.TooSlowError:
            raise OSError(f"no answer within {DISK_SECONDS:g} s") from None

    def _failed(self, trouble: str) -> None:
        self._retry_at = trio.current_time() + next(self._pauses)
        if not self._trouble:
            log.error("records wait in the spool; calls go on", error=trouble)
        self._trouble = trouble

    def _lose(self, sids: Sequence[str], reason: str) -> None:
        if sids:
            self._lost += len(sids)
            log.error("records lost", calls=list(sids), reason=reason)


# ---- in the threads: plain blocking functions -----------------------------------------------


@dataclass
class _Result:
    """How many records are in the database now, and the SIDs of those refused, each with why."""

    written: int
    refused: list[tuple[str, str]]


def _write(store: Store, batch: Sequence[Snapshot]) -> _Result:
    return _store(store, *_tidied(batch))


def _rewrite(store: Store, lines: Sequence[bytes]) -> _Result:
    """Write lines of the spool to the database."""
    records: list[CallRecord] = []
    refused: list[tuple[str, str]] = []
    for line in lines:
        try:
            records.append(decode(line))
        except msgspec.MsgspecError as error:
            refused.append(("", f"a line of the spool cannot be read: {error}"))
    return _store(store, records, refused)


def _store(store: Store, records: Sequence[CallRecord], refused: list[tuple[str, str]]) -> _Result:
    rejected = store.write(records)
    refused += [(one.record.call_sid, one.reason) for one in rejected]
    return _Result(len(records) - len(rejected), refused)


def _to_spool(spool: Spool, batch: Sequence[Snapshot]) -> list[str]:
    """Spool a batch. Returns the SIDs of those lost; a call that is still on is not lost."""
    records, refused = _tidied(batch)
    places = spool.append([SpoolLine(encode(one), bool(one.outcome)) for one in records])
    full = [records[place].call_sid for place in places if records[place].outcome]
    return [sid for sid, _ in refused] + full


def _tidied(batch: Sequence[Snapshot]) -> tuple[list[CallRecord], list[tuple[str, str]]]:
    records: list[CallRecord] = []
    refused: list[tuple[str, str]] = []
    for raw in batch:
        try:
            records.append(tidy(raw))
        except msgspec.ValidationError as error:  # a bug of ours, and no reason to stop
            refused.append((str(raw.get("call_sid")), f"not a record: {error}"))
    return records, refused
