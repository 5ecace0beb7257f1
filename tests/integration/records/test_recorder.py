"""The recorder: a call never waits, and whatever the database does, nothing is lost or doubled.

Real threads, real files and a real clock, since they are what this is about; waits are short.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
import structlog
import trio

from bridge.call.story import Line
from bridge.config.settings import RecordSettings
from bridge.outcome import Outcome
from bridge.records import schema, waiting, writer
from bridge.records import spool as spools
from bridge.records import store as stores
from bridge.records.record import CallRecord, Ending, Leg, continued, decode, encode
from bridge.records.recorder import Recorder, recorder_for
from bridge.records.spool import Spool
from bridge.records.store import Store, StoreError, StoreUnavailable
from bridge.records.writer import Writer
from bridge.twilio.dialled import DialResult
from tests.integration.records.postgres import cluster
from tests.integration.records.waiting import until
from tests.unit.records.samples import ENDING, NASTY, SID, record, sid, whole_record

# Half of what a disk or a database hangs in these tests: waiting for it takes longer, whatever else
# the machine does.
NEVER_BLOCKS = 10.0
HANGS = 2 * NEVER_BLOCKS

# For what happens soon, whatever else the machine does.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(writer, "LAST_RETRY", 0.1)
    # As long as a busy machine may hold a lock that is given back.
    monkeypatch.setattr(stores, "LOCK_SECONDS", PATIENCE)


class Database(Store):
    """A store that keeps a log of what was written, and fails on demand."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"sqlite:///{folder}/calls.db")
        self.written: list[str] = []
        self.attempts = 0
        self.failing = ""
        self.gate = threading.Event()
        self.gate.set()

    def write(self, records):
        self.attempts += 1
        self.gate.wait(HANGS)
        if self.failing:
            raise StoreUnavailable(self.failing)
        result = super().write(records)
        self.written += [record.call_sid for record in records]
        return result

    def read(self, call_sid: str = SID) -> CallRecord:
        found = Store(str(self._url)).get(call_sid)
        assert found is not None
        return found


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    result = Database(tmp_path)
    yield result
    result.gate.set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@asynccontextmanager
async def running(database: Store, folder: Path, **options: object) -> AsyncIterator[Recorder]:
    recorder = recorder_of(database, folder, **options)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer_of(recorder).run)
            yield recorder
            await writer_of(recorder).aclose()


def recorder_of(database: Store, folder: Path, **options: object) -> Recorder:
    return Recorder(Writer(database, Spool(folder), **options))


def writer_of(recorder: Recorder) -> Writer:
    assert recorder.writer is not None
    return recorder.writer


@contextmanager
def at_once() -> Iterator[None]:
    began = time.perf_counter()
    yield
    assert time.perf_counter() - began < NEVER_BLOCKS


def spooled(folder: Path) -> list[str]:
    """The SIDs in the spool's files, in order."""
    spool = Spool(folder)
    spool.adopt()
    sids = []
    while lines := spool.peek(10_000):
        sids += [decode(line).call_sid for line in lines]
        spool.advance()
    spool.close()
    return sids


# ---- the database works ------------------------------------------------------------------------


async def test_a_call_is_stored_from_its_beginning_to_its_end(database, folder):
    one = record()
    async with running(database, folder) as recorder:
        with at_once():
            recorder.begin(one)
        await writer_of(recorder).settle()
        assert database.read().outcome == ""
        one.transcript.append(Line(at=1.0, words="hello"))
        recorder.update(one)
        await writer_of(recorder).settle()
        one.outcome = "idle"
        recorder.finish(one)
        await writer_of(recorder).settle()
        assert database.read() == one
        assert await recorder.get(SID) == one
        assert [each.call_sid for each in await recorder.list_calls()] == [SID]
        assert not folder.exists()
        assert recorder.statistics().written == 3
        assert recorder.statistics().trouble == ""


async def test_many_calls_are_stored_in_order(database, folder):
    async with running(database, folder) as recorder:
        for number in range(300):
            recorder.begin(record(sid(number)))
        await writer_of(recorder).settle()
    assert database.written == [sid(number) for number in range(300)]
    assert database.attempts < 50


async def test_a_record_without_sid_is_not_kept(database, folder):
    async with running(database, folder) as recorder:
        recorder.finish(record("", outcome="protocol_error"))
        recorder.note_status("", "ringing", 1)
        assert recorder.statistics().waiting == 0


@pytest.mark.parametrize("text", NASTY[1:])
async def test_nasty_calls_are_stored(database, folder, text):
    async with running(database, folder) as recorder:
        recorder.finish(record(text, outcome="idle", transcript=[Line(words=text)]))
        await writer_of(recorder).settle()
        assert recorder.statistics().written == 1
        assert recorder.statistics().lost == 0


async def test_words_that_are_not_wanted_reach_no_file(database, folder, tmp_path):
    database.failing = "down"
    async with running(database, folder) as recorder:
        recorder.finish(
            record(words_kept=False, outcome="idle", transcript=[Line(words="unmistakable")])
        )
        await until(lambda: recorder.statistics().spooled_bytes > 0)
        database.failing = ""
        await writer_of(recorder).settle()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if b"unmistakable" in file.read_bytes()]
    assert database.read().transcript == [Line()]


async def test_a_status_that_comes_late_or_elsewhere_is_folded_in(database, folder, tmp_path):
    async with (
        running(database, folder) as carries,
        running(Database(tmp_path), folder) as another,
    ):
        another.note_status(SID, "completed", 3)
        await writer_of(another).settle()
        assert database.read().status == "completed"
        carries.finish(whole_record(status="", status_sequence=-1, answered_by=""))
        await writer_of(carries).settle()
        another.note_status(SID, "ringing", 1)
        await writer_of(another).settle()
        stored = database.read()
        assert (stored.status, stored.outcome) == ("completed", "transferred")
        assert stored.transcript == whole_record().transcript


# ---- the database does not work ----------------------------------------------------------------


async def test_down_the_call_goes_on_and_records_wait_on_disk_in_order(database, folder):
    database.failing = "down"
    async with running(database, folder) as recorder:
        for number in range(200):
            with at_once():
                recorder.finish(record(sid(number), outcome="idle"))
        await until(lambda: recorder.statistics().waiting == 0)
        assert recorder.statistics().spooled_bytes > 0
        assert recorder.statistics().trouble == "down"
        # Those that come while the spool is read join its end.
        database.failing = ""
        for number in range(200, 250):
            recorder.finish(record(sid(number), outcome="idle"))
            await trio.sleep(0.001)
        await writer_of(recorder).settle()
        assert recorder.statistics().trouble == ""
    assert database.written == [sid(number) for number in range(250)]
    assert not folder.exists()


async def test_trouble_is_logged_when_it_begins_and_when_it_ends(database, folder):
    with structlog.testing.capture_logs() as lines:
        async with running(database, folder) as recorder:
            database.failing = "down"
            for number in range(20):
                recorder.begin(record(sid(number)))
                await trio.sleep(0.01)
            await until(lambda: database.attempts > 1)
            database.failing = ""
            await writer_of(recorder).settle()
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("error", "records wait in the spool; calls go on"),
        ("info", "records are written again"),
    ]


async def test_tries_come_further_and_further_apart(database, folder):
    database.failing = "down"
    async with running(database, folder) as recorder:
        began = trio.current_time()
        for number in range(100):
            recorder.begin(record(sid(number)))
            await trio.sleep(0.005)
        # After 0.02, 0.04 and 0.08 seconds, and then each 0.1, however long all that took.
        assert database.attempts <= 5 + (trio.current_time() - began) / 0.1


async def test_locked_by_another_connection(database, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.05)
    async with running(database, folder) as recorder:
        other = sqlite3.connect(tmp_path / "calls.db", isolation_level=None)
        try:
            other.execute("BEGIN EXCLUSIVE")
            for number in range(10):
                with at_once():
                    recorder.finish(record(sid(number), outcome="idle"))
            await until(lambda: "locked" in recorder.statistics().trouble)
            await until(lambda: recorder.statistics().waiting == 0)
        finally:
            other.close()
        await writer_of(recorder).settle()
    assert database.written == [sid(number) for number in range(10)]


@pytest.mark.parametrize(
    ("pragma", "repair", "words"),
    [
        ("PRAGMA query_only=ON", "PRAGMA query_only=OFF", "readonly"),
        ("PRAGMA max_page_count=1", "PRAGMA max_page_count=100000", "full"),
    ],
    ids=["read-only", "disk full"],
)
async def test_a_database_that_takes_nothing(database, folder, pragma, repair, words):
    """SQLite's own refusals, as of a disk that is full or mounted read-only."""
    async with running(database, folder) as recorder:
        state = [pragma]
        sa.event.listen(database._connect(), "connect", lambda raw, _: raw.execute(state[0]))
        big = [Line(words="w" * 4000)] * 5
        for number in range(10):
            with at_once():
                recorder.finish(record(sid(number), outcome="idle", transcript=big))
        await until(lambda: words in recorder.statistics().trouble)
        await until(lambda: recorder.statistics().waiting == 0)
        state[0] = repair
        await writer_of(recorder).settle()
    assert database.written == [sid(number) for number in range(10)]


async def test_the_folder_of_database_and_spool_is_taken_away_and_comes_back(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    database = Database(home)
    async with running(database, home / "spool") as recorder:
        recorder.finish(record(sid(0), outcome="idle"))
        await writer_of(recorder).settle()
        home.rename(tmp_path / "away")
        for number in range(1, 5):
            with at_once():
                recorder.finish(record(sid(number), outcome="idle"))
        await until(lambda: "unable to open" in recorder.statistics().trouble)
        await trio.sleep(0.1)
        assert recorder.statistics().waiting == 4
        (tmp_path / "away").rename(home)
        await writer_of(recorder).settle()
    assert database.written == [sid(number) for number in range(5)]


async def test_a_database_that_was_deleted_is_made_again(database, folder, tmp_path):
    async with running(database, folder) as recorder:
        recorder.finish(record(sid(0), outcome="idle"))
        await writer_of(recorder).settle()
        for file in tmp_path.glob("calls.db*"):
            file.unlink()
        recorder.finish(record(sid(1), outcome="idle"))
        await writer_of(recorder).settle()
        assert database.read(sid(1)).outcome == "idle"


async def test_a_database_that_hangs_is_given_up_and_its_late_write_harms_nothing(
    database, folder, monkeypatch
):
    one = record()
    async with running(database, folder) as recorder:
        database.gate.clear()
        with monkeypatch.context() as patch:
            patch.setattr(writer, "WRITE_SECONDS", 0.05)
            recorder.begin(one)
            await until(lambda: recorder.statistics().spooled_bytes > 0)
        one.outcome = "idle"
        with at_once():
            recorder.finish(one)
        await until(lambda: recorder.statistics().waiting == 0)
        await trio.sleep(0.2)
        assert database.attempts == 1, "a second thread went in after the first"
        database.gate.set()
        await writer_of(recorder).settle()
        assert database.read().outcome == "idle"


async def test_too_many_waiting_go_to_the_spool_while_the_database_is_slow(
    database, folder, monkeypatch
):
    monkeypatch.setattr(writer, "SPOOL_FROM", 20)
    async with running(database, folder) as recorder:
        database.gate.clear()
        for number in range(30):
            recorder.begin(record(sid(number)))
            await trio.lowlevel.checkpoint()
        await until(lambda: recorder.statistics().waiting == 0)
        database.gate.set()
        await writer_of(recorder).settle()
        assert recorder.statistics().lost == 0
        assert len(await recorder.list_calls(100)) == 30


async def test_database_and_disk_both_gone_memory_is_bounded(database, folder, monkeypatch):
    """What can come again goes first; what cannot is said to be lost."""
    monkeypatch.setattr(waiting, "WAITING_CALLS", 10)
    database.failing = "down"
    folder.write_text("a file where the folder should be")
    with structlog.testing.capture_logs() as lines:
        async with running(database, folder) as recorder:
            for number in range(10):
                recorder.begin(record(sid(number)))
            for number in range(10, 25):
                with at_once():
                    recorder.finish(record(sid(number), outcome="idle"))
            assert recorder.statistics().waiting == 10
            assert recorder.statistics().lost == 5
            database.failing = ""
            await writer_of(recorder).settle()
    assert database.written == [sid(number) for number in range(10, 20)]
    lost = [sid_ for line in lines if line["event"] == "records lost" for sid_ in line["calls"]]
    assert lost == [sid(number) for number in range(20, 25)]


async def test_a_full_spool_keeps_what_it_has(database, folder):
    database.failing = "down"
    recorder = Recorder(Writer(database, Spool(folder, limit=2000)))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer_of(recorder).run)
            for number in range(100):
                recorder.finish(record(sid(number), outcome="idle"))
            await until(lambda: recorder.statistics().waiting == 0)
            database.failing = ""
            await writer_of(recorder).settle()
            await writer_of(recorder).aclose()
    kept = len(database.written)
    assert 0 < kept < 100
    assert database.written == [sid(number) for number in range(kept)]
    assert recorder.statistics().lost == 100 - kept


async def test_a_disk_that_is_full_for_the_spool_too_loses_nothing(database, folder, monkeypatch):
    def no_space(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    database.failing = "down"
    async with running(database, folder) as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(spools.os, "fsync", no_space)
            for number in range(20):
                recorder.finish(record(sid(number), outcome="idle"))
            await trio.sleep(0.1)
            assert recorder.statistics().waiting == 20
        database.failing = ""
        await writer_of(recorder).settle()
    assert database.written == [sid(number) for number in range(20)]


async def test_a_line_that_cannot_be_read_does_not_stop_the_others(database, folder):
    spool = Spool(folder)
    good = encode(record(outcome="idle", revision=1))
    spool.append([(b"garbage\n", True), (b'{"call_sid":7}\n', True), (good, True)])
    spool.close()
    async with running(database, folder) as recorder:
        await writer_of(recorder).settle()
        assert recorder.statistics().lost == 2
    assert database.written == [SID]


async def test_a_record_the_database_will_never_take_does_not_stop_the_others(database, folder):
    """Such as one whose column has too strict a constraint."""
    database.prepare()
    with database._connect().begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER strict BEFORE INSERT ON calls WHEN NEW.agent = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    async with running(database, folder) as recorder:
        recorder.finish(record(sid(0), agent="bad", outcome="idle"))
        recorder.finish(record(sid(1), outcome="idle"))
        await writer_of(recorder).settle()
        assert recorder.statistics().lost == 1
        assert database.read(sid(1)).outcome == "idle"


# ---- bugs, and a system without threads --------------------------------------------------------


async def test_a_bug_in_the_databases_thread_sends_records_to_the_spool(
    database, folder, monkeypatch
):
    def broken(records: object) -> None:
        raise MemoryError("planted")

    async with running(database, folder) as recorder:
        with structlog.testing.capture_logs() as lines, monkeypatch.context() as patch:
            patch.setattr(database, "write", broken)
            recorder.finish(record(outcome="idle"))
            await until(lambda: recorder.statistics().spooled_bytes > 0)
        assert [line["event"] for line in lines if line.get("exc_info")][:1] == [
            "writing records failed unexpectedly"
        ]
        await writer_of(recorder).settle()
        assert database.read().outcome == "idle"


async def test_a_bug_in_the_writers_task_is_logged_and_the_task_goes_on(
    database, folder, monkeypatch
):
    async with running(database, folder) as recorder:
        really, failed = writer_of(recorder)._work, []

        async def work() -> None:
            if not failed:
                failed.append(True)
                raise RuntimeError("planted")
            await really()

        monkeypatch.setattr(writer_of(recorder), "_work", work)
        with structlog.testing.capture_logs() as lines:
            recorder.finish(record(outcome="idle"))
            await writer_of(recorder).settle()
    assert [line["task"] for line in lines if line.get("exc_info")] == ["recorder"]
    assert database.written == [SID]


async def test_without_threads_records_wait_and_a_stop_spools_them(database, folder, monkeypatch):
    """As where a container's pids.max is reached: a thread is needed for both places."""

    def start(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with running(database, folder) as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(trio._threads, "start_thread_soon", start)
            for number in range(3):
                recorder.finish(record(sid(number), outcome="idle"))
                await trio.sleep(0.02)
            assert recorder.statistics().waiting == 3
            await writer_of(recorder).aclose()
    assert spooled(folder) == [sid(number) for number in range(3)]
    assert recorder.statistics().lost == 0


# ---- stopping and starting ---------------------------------------------------------------------


async def test_a_stop_writes_what_waits(database, folder):
    async with running(database, folder) as recorder:
        for number in range(120):
            recorder.finish(record(sid(number), outcome="idle"))
    assert database.written == [sid(number) for number in range(120)]
    assert not folder.exists()


@pytest.mark.parametrize("state", ["down", "hanging"])
async def test_a_stop_leaves_in_the_spool_what_cannot_be_written(
    database, folder, monkeypatch, state
):
    # Nearly all of it is for the disk.
    monkeypatch.setattr(writer, "STOP_SECONDS", PATIENCE / 2)
    monkeypatch.setattr(writer, "UNDER_WAY_SHARE", 0.01)
    monkeypatch.setattr(writer, "LAST_WRITE_SECONDS", 0.2)
    async with running(database, folder) as recorder:
        if state == "down":
            database.failing = "down"
        else:
            database.gate.clear()
        for number in range(120):
            recorder.finish(record(sid(number), outcome="idle"))
        await until(lambda: database.attempts)
        began = trio.current_time()
        await writer_of(recorder).aclose()
        assert trio.current_time() - began < NEVER_BLOCKS
    database.failing = ""
    database.gate.set()
    async with running(database, folder) as recorder:
        await writer_of(recorder).settle()
    assert sorted(set(database.written)) == [sid(number) for number in range(120)]
    assert not folder.exists()


async def test_a_hanging_disk_cannot_hold_up_a_stop(database, folder, monkeypatch):
    monkeypatch.setattr(writer, "STOP_SECONDS", 0.5)
    hold, hangs = threading.Event(), threading.Event()

    def fsync(file: int) -> None:
        hangs.set()
        hold.wait(HANGS)

    database.failing = "down"
    try:
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
            patch.setattr(spools.os, "fsync", fsync)
            async with running(database, folder) as recorder:
                recorder.finish(record(outcome="idle"))
                await until(hangs.is_set)
                began = trio.current_time()
                await writer_of(recorder).aclose()
                assert trio.current_time() - began < NEVER_BLOCKS
                with at_once():
                    recorder.finish(record(sid(1), outcome="idle"))
            assert [line["calls"] for line in lines if line["event"] == "records lost"] == [
                [SID],
                [sid(1)],
            ]
    finally:
        hold.set()


async def test_cancelled_it_still_puts_everything_somewhere(database, folder):
    database.failing = "down"
    recorder = recorder_of(database, folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer_of(recorder).run)
        recorder.finish(record(sid(0), outcome="idle"))
        await trio.sleep(0.1)
        recorder.finish(record(sid(1), outcome="idle"))
        nursery.cancel_scope.cancel()
    assert spooled(folder) == [sid(0), sid(1)]


async def test_cancelled_in_mid_write_it_waits_for_that_write(database, folder):
    """As when the demo's call is over: the database is well, and nothing belongs in the spool."""
    recorder = recorder_of(database, folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer_of(recorder).run)
        database.gate.clear()
        attempts = database.attempts
        recorder.finish(record(outcome="idle"))
        await until(lambda: database.attempts > attempts)
        nursery.cancel_scope.cancel()
        threading.Timer(0.2, database.gate.set).start()
    assert SID in database.written
    assert spooled(folder) == []
    assert recorder.statistics().trouble == ""


async def test_records_after_the_end_are_in_the_spool(database, folder):
    async with running(database, folder) as recorder:
        pass
    recorder.finish(record(outcome="idle"))
    assert spooled(folder) == [SID]


async def test_records_before_the_start_are_written(database, folder):
    recorder = recorder_of(database, folder)
    recorder.begin(record())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer_of(recorder).run)
        await writer_of(recorder).settle()
        await writer_of(recorder).aclose()
    assert database.written == [SID]


async def test_never_run_it_closes_all_the_same(database, folder):
    recorder = recorder_of(database, folder)
    recorder.finish(record(outcome="idle"))
    await writer_of(recorder).aclose()
    await writer_of(recorder).aclose()
    assert database.written == [SID]


async def test_it_outlives_the_block_it_serves(tmp_path):
    """Cancelled from outside, the calls' own endings are still stored."""
    settings = RecordSettings(url=f"sqlite:///{tmp_path}/calls.db")
    with trio.CancelScope() as scope:
        recorder = recorder_for(settings)
        async with recorder.running():
            scope.deadline = trio.current_time() + 0.02
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.05)
                recorder.finish(record(outcome="server_shutdown"))
    assert scope.cancelled_caught
    stored = Store(settings.url).get(SID)
    assert stored is not None
    assert stored.outcome == "server_shutdown"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["calls.db"]


async def test_it_starts_without_its_database(tmp_path):
    """The database is down. Calls are still accepted, and their records wait."""
    settings = RecordSettings(url=f"postgresql://me@/calls?host={tmp_path}")
    recorder = recorder_for(settings, tmp_path / "spool")
    async with recorder.running():
        recorder.finish(record(outcome="idle"))
        assert recorder.statistics().trouble
    assert spooled(tmp_path / "spool") == [SID]


async def test_it_does_not_start_with_a_newer_database(database, folder):
    database.prepare()
    with database._connect().begin() as connection:
        connection.execute(sa.update(schema.versions).values(version=99))
    with pytest.raises(StoreError, match="newer bridge"):
        await writer_of(recorder_of(database, folder)).open()


@pytest.mark.parametrize("where", range(60))
async def test_stopped_at_any_moment_nothing_is_lost(tmp_path, where):
    """Cancelled after so many steps of the scheduler: each call is in the database or the spool."""
    database = Database(tmp_path)
    recorder = recorder_of(database, tmp_path / "spool")
    given = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer_of(recorder).run)
            for step in range(where):
                if step % 3 == 0:
                    given.append(sid(step))
                    recorder.finish(record(sid(step), outcome="idle"))
                if step % 20 == 10:
                    database.failing = "" if database.failing else "down"
                await trio.sleep(0.001 if step % 2 else 0)
            scope.cancel()
    left = spooled(tmp_path / "spool") if (tmp_path / "spool").exists() else []
    assert sorted({*database.written, *left}) == given


# ---- several processes -------------------------------------------------------------------------


async def test_several_recorders_share_a_database_and_a_spool(tmp_path, folder):
    databases = [Database(tmp_path) for _ in range(4)]

    async def work(number: int) -> None:
        databases[number].failing = "down" if number % 2 else ""
        async with running(databases[number], folder) as recorder:
            for call in range(25):
                recorder.finish(record(sid(100 * number + call), outcome="idle"))
                await trio.sleep(0.002)
            databases[number].failing = ""
            await writer_of(recorder).settle()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, number)
    assert len(databases[0].list_calls(1000)) == 100
    assert not folder.exists()


# ---- how a call ended --------------------------------------------------------------------------


async def test_an_ending_is_known_here_before_it_is_written(database, folder):
    database.failing = "down"
    async with running(database, folder) as recorder:
        recorder.finish(whole_record())
        assert await recorder.ending_of(SID) == ENDING


async def test_an_ending_is_found_by_another_worker_that_asks_too_early(database, folder, tmp_path):
    async with (
        running(database, folder) as carries,
        running(Database(tmp_path), folder) as asked,
        trio.open_nursery() as nursery,
    ):
        carries.begin(record())
        await writer_of(carries).settle()

        async def end_later() -> None:
            await trio.sleep(0.15)
            carries.finish(whole_record())

        nursery.start_soon(end_later)
        assert await asked.ending_of(SID, within=PATIENCE) == ENDING


async def test_a_leg_without_an_end_has_lost_its_process(database, folder, tmp_path):
    """Before its lease has expired; but a call that was placed, or went on, is not lost."""
    async with (
        running(database, folder) as carried,
        running(Database(tmp_path), folder) as asked,
    ):
        carried.begin(record(legs=[Leg()]))
        carried.begin(record(sid(1), legs=[Leg(), Leg()]))
        carried.note_status(sid(2), "in-progress", 1)
        await writer_of(carried).settle()
        assert await asked.ending_of(SID, 1, within=0.1) == Ending("server_lost")
        assert await asked.ending_of(SID, 2, within=0.1) is None
        assert await asked.ending_of(sid(1), 1, within=0.1) is None
        assert await asked.ending_of(sid(2), 1, within=0.1) is None


async def test_an_unknown_ending_is_waited_for_with_a_deadline(database, folder):
    async with running(database, folder) as recorder:
        began = trio.current_time()
        assert await recorder.ending_of("'; DROP TABLE calls; --", within=0.1) is None
        assert trio.current_time() - began < NEVER_BLOCKS


async def test_without_a_database_an_ending_is_unknown_at_once(tmp_path, folder):
    store = Store(f"sqlite:///{tmp_path}/calls.db")
    recorder = recorder_of(store, folder)
    assert await recorder.ending_of(SID, within=60) is None
    with pytest.raises(StoreUnavailable):
        await recorder.list_calls()


async def test_waiting_records_are_shown_with_stored_ones(database, folder):
    async with running(database, folder) as recorder:
        recorder.begin(record())
        await writer_of(recorder).settle()
        database.gate.clear()
        recorder.finish(whole_record(revision=1))
        shown = await recorder.get(SID)
        assert shown is not None
        assert shown.outcome == "transferred"
        database.gate.set()


# ---- legs and transfers ------------------------------------------------------------------------

BUSY = DialResult("busy")
ANSWERED = DialResult("completed", 61.0)


def handed_over(**changes: Any) -> CallRecord:
    return record(outcome="handed_over", transfer_to="+15551112222", legs=[Leg()], **changes)


async def test_a_later_leg_finds_the_record_of_another_process(database, folder, tmp_path):
    async with (
        running(database, folder) as first,
        running(Database(tmp_path), folder) as second,
    ):
        mine = handed_over(revision=0)
        first.finish(mine)
        await writer_of(first).settle()
        found = await second.recall(SID, within=PATIENCE)
        assert found is not None
        assert (found.outcome, len(found.legs)) == ("handed_over", 1)
        later = continued(found)
        later.outcome = "caller_hung_up"
        second.begin(later)
        await writer_of(second).settle()
        # What the first process still writes comes too late.
        first.finish(mine)
        await writer_of(first).settle()
        stored = await second.get(SID)
        assert stored is not None
        assert stored.outcome == "caller_hung_up"


async def test_a_later_leg_does_not_wait_for_a_database_that_hangs(database, folder, monkeypatch):
    monkeypatch.setattr(database, "get", lambda _sid: database.gate.wait(HANGS) and None)
    async with running(database, folder) as recorder:
        database.gate.clear()
        try:
            began = trio.current_time()
            assert await recorder.recall(SID, within=0.1) is None
            assert trio.current_time() - began < NEVER_BLOCKS
            recorder.finish(handed_over())
            known = await recorder.recall(SID, within=0.1)
            assert known is not None
            assert known.outcome == "handed_over"
        finally:
            database.gate.set()


async def test_the_result_of_a_transfer_is_added_once(database, folder):
    async with running(database, folder) as recorder:
        recorder.finish(handed_over())
        told = partial(recorder.note_dialled, SID, 1, ANSWERED, Outcome.TRANSFERRED)
        assert [await told() for _ in range(3)] == [True, False, False]
        # Nor does the result of an earlier leg change a later one.
        assert not await recorder.note_dialled(SID, 2, BUSY, Outcome.AGENT_ENDED)
        await writer_of(recorder).settle()
        stored = await recorder.get(SID)
        assert stored is not None
        assert (stored.outcome, stored.transfer_status) == ("transferred", "completed")
        assert (stored.transfer_seconds, stored.legs[0].transfer_seconds) == (61.0, 61.0)


async def test_the_result_of_a_transfer_is_added_by_another_process(database, folder, tmp_path):
    async with (
        running(database, folder) as carried,
        running(Database(tmp_path), folder) as asked,
    ):
        carried.finish(handed_over())
        await writer_of(carried).settle()
        assert await asked.note_dialled(SID, 1, BUSY, Outcome.AGENT_ENDED, reason="busy")
        await writer_of(asked).settle()
        stored = await carried.get(SID)
        assert stored is not None
        assert (stored.outcome, stored.reason) == ("agent_ended", "busy")


async def test_an_ending_of_an_earlier_leg_is_not_that_of_a_later_one(database, folder, tmp_path):
    """This process carried the first leg, another one the second."""
    async with (
        running(database, folder) as first,
        running(Database(tmp_path), folder) as second,
    ):
        first.finish(handed_over())
        await writer_of(first).settle()
        assert await first.ending_of(SID, 1) == Ending("handed_over", "+15551112222")
        assert await first.ending_of(SID, 2, within=0.1) is None
        found = await second.recall(SID, within=PATIENCE)
        assert found is not None
        later = continued(found)
        later.legs.append(Leg(at=20))
        later.outcome, later.transfer_to = "agent_ended", ""
        second.finish(later)
        await writer_of(second).settle()
        assert await first.ending_of(SID, 2, within=PATIENCE) == Ending("agent_ended", legs=2)


# ---- retention ---------------------------------------------------------------------------------


async def test_old_calls_and_recordings_are_deleted_at_the_start(database, folder, tmp_path):
    now = datetime.now(UTC)
    recordings = tmp_path / "wav"
    recordings.mkdir()
    database.prepare()
    old, new = (now - timedelta(days=days) for days in (31, 29))
    database._write(
        [
            record(sid(number), revision=1, started_at=old if number < 1100 else new)
            for number in range(1200)
        ]
    )
    for name, days in (("CAold.wav", 31), ("CAnew.wav", 29), ("notes.txt", 31)):
        (recordings / name).touch()
        past = (now - timedelta(days=days)).timestamp()
        os.utime(recordings / name, (past, past))
    async with running(database, folder, retention_days=30, recordings=recordings):
        await until(lambda: len(list(recordings.iterdir())) == 2)
    assert {file.name for file in recordings.iterdir()} == {"CAnew.wav", "notes.txt"}
    assert {one.call_sid for one in database.list_calls(5000)} == {
        sid(number) for number in range(1100, 1200)
    }


async def test_folders_that_were_open_to_all_are_closed(tmp_path):
    """Finding C6: the database's file, and the folders beside it."""
    recordings, spool, file = tmp_path / "wav", tmp_path / "spool", tmp_path / "calls.db"
    for made in (recordings, spool):
        made.mkdir()
        made.chmod(0o777)
    file.touch()
    file.chmod(0o644)
    async with running(Store(f"sqlite:///{file}"), spool, recordings=recordings):
        modes = [path.stat().st_mode & 0o777 for path in (recordings, spool, file)]
        assert modes == [0o770, 0o770, 0o640]


async def test_retention_is_kept_every_day(database, folder, monkeypatch):
    monkeypatch.setattr(writer, "DAY", 0.1)
    old = datetime.now(UTC) - timedelta(days=31)
    async with running(database, folder) as recorder:
        recorder.finish(record(outcome="idle", started_at=old))
        await writer_of(recorder).settle()
        await until(lambda: database.get(SID) is None)


# ---- which recorder ----------------------------------------------------------------------------


async def test_no_address_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = recorder_for(RecordSettings(url=""))
    async with recorder.running():
        assert not recorder.keeps_records
        one = whole_record(outcome="")
        recorder.begin(one)
        one.outcome = "idle"
        recorder.update(one)
        recorder.note_status(SID, "completed", 1)
        recorder.finish(one)
        assert await recorder.get(SID) is None
        assert await recorder.list_calls() == []
        assert await recorder.ending_of(SID) == msgspec.structs.replace(ENDING, outcome="idle")
        assert recorder.statistics().waiting == 0
    assert list(tmp_path.iterdir()) == []


def test_the_spool_is_next_to_the_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near = recorder_for(RecordSettings())
    far = recorder_for(RecordSettings(url="postgresql://me@host/calls"))
    named = recorder_for(RecordSettings(), tmp_path / "else")
    assert writer_of(near)._spool.folder == tmp_path / "calls.db-spool"
    assert writer_of(far)._spool.folder == tmp_path / "calls-spool"
    assert writer_of(named)._spool.folder == tmp_path / "else"
    assert list(tmp_path.iterdir()) == []


# ---- PostgreSQL --------------------------------------------------------------------------------


async def test_postgres_goes_away_and_comes_back_under_load(tmp_path):
    with cluster() as database:
        store = Store(database.url)
        async with running(store, tmp_path / "spool") as recorder:
            for number in range(150):
                if number == 50:
                    await trio.to_thread.run_sync(database.stop)
                if number == 100:
                    await trio.to_thread.run_sync(database.start)
                one = record(sid(number))
                with at_once():
                    recorder.begin(one)
                await trio.sleep(0.002)
                one.outcome = "idle"
                with at_once():
                    recorder.finish(one)
            await writer_of(recorder).settle()
            assert recorder.statistics().lost == 0
        stored = store.list_calls(1000)
        assert sorted(one.call_sid for one in stored) == [sid(number) for number in range(150)]
        assert {one.outcome for one in stored} == {"idle"}
        assert not (tmp_path / "spool").exists()
        store.close()
