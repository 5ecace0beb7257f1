"""The account's limit: processes that race, die, and lose their database, on a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from sqlalchemy import create_engine, func, select, text, update
from structlog.testing import capture_logs

from bridge.admission import account_limit as module
from bridge.admission.account_limit import AccountLimit, check_account_limit, leases
from bridge.config.settings import ConfigError
from bridge.records.store import Store
from tests.integration.records.postgres import Cluster
from tests.world import settings

RACER = Path(__file__).with_name("racer.py")
PATIENCE = 60.0

# Longer than any of these machines stalls: a lease expires when a test has it expire.
LEASE = 60.0


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no database that is away."""
    monkeypatch.setattr(module, "RESERVE_SECONDS", 20.0)
    monkeypatch.setattr(module, "CLOSE_SECONDS", 20.0)


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without calls."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/calls.db"
    return fresh(request.getfixturevalue("postgres"))


def fresh(postgres: Cluster) -> str:
    engine = create_engine(postgres.url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS account_calls"))
    engine.dispose()
    return postgres.url


def racer(url: str, lease: float, limit: int, what: str, calls: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(RACER), url, str(lease), str(limit), what, str(calls)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Leases:
    """The rows, as the database has them, and its clock, which this moves instead of waiting."""

    def __init__(self, store: Store) -> None:
        self._engine = store._connect()

    def expiry(self, sid: str) -> float:
        with self._engine.begin() as connection:
            found = select(func.max(leases.c.expires_at)).where(leases.c.call_sid == sid)
            return float(connection.execute(found).scalar_one() or 0.0)

    def age(self, sid: str, seconds: float) -> None:
        """Let so much of a lease's time go by."""
        with self._engine.begin() as connection:
            aged = update(leases).values(expires_at=leases.c.expires_at - seconds)
            assert connection.execute(aged.where(leases.c.call_sid == sid)).rowcount == 1

    async def renewed(self, sid: str) -> None:
        """Wait until the lease lasts longer than it does now."""
        before = self.expiry(sid)
        while self.expiry(sid) <= before:  # noqa: ASYNC110  # a process of its own renews it
            await trio.sleep(0.02)


@pytest.fixture
def rows(url: str) -> Iterator[Leases]:
    store = Store(url)
    yield Leases(store)
    store.close()


@pytest.fixture
def _renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWALS_PER_LEASE", 600)


@asynccontextmanager
async def counting(url: str, lease_seconds: float = LEASE) -> AsyncIterator[AccountLimit]:
    """One process's part in it, running."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            limit = AccountLimit(url, lease_seconds=lease_seconds)
            nursery.start_soon(limit.run)
            yield limit
            nursery.cancel_scope.cancel(reason="the test is over")


async def comes(limit: AccountLimit, sid: str, calls: int) -> None:
    """Try until the call is admitted."""
    while not await limit.reserve(sid, calls):  # noqa: ASYNC110  # another process gives it back
        await trio.sleep(0.02)


# ---- races --------------------------------------------------------------------------------------


async def test_processes_that_race_never_exceed_it(url: str) -> None:
    """What a process says it has is a part of what it holds. Each is admitted again and again, and
    afterwards the limit fits exactly: no race has cost a place."""
    limit, wanted = 3, 20
    racers = [racer(url, LEASE, limit, "race", wanted) for _ in range(3)]
    for one in racers:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    moments: list[tuple[float, int]] = []
    for one in racers:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in racers:
        output, _ = one.communicate(timeout=PATIENCE)
        assert one.returncode == 0
        lines = [line.split() for line in output.splitlines()]
        moments += [(float(at), 1 if what == "+" else -1) for what, _, at in lines]
        assert len(lines) >= 2 * wanted
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    assert most <= limit
    async with counting(url) as mine:
        for number in range(limit):
            await comes(mine, f"CA{number}", limit)
        assert not await mine.reserve("CAone too many", limit)
        assert mine.uncounted == 0


@pytest.mark.usefixtures("_renewed_often")
async def test_a_killed_process_gives_its_calls_back_and_a_living_one_does_not(
    url: str, rows: Leases
) -> None:
    async with counting(url) as mine:
        assert await mine.reserve("CAmine", 3)
        mine.hold("CAmine", 3)
        with racer(url, LEASE, 3, "hold", 5) as other:
            assert other.stdout is not None
            try:
                assert await trio.to_thread.run_sync(other.stdout.readline) == "2\n"
                for sid in ("CAmine", "CAhold-0", "CAhold-1"):
                    await rows.renewed(sid)
                assert not await mine.reserve("CAmore", 3)
            finally:
                other.kill()
        assert not await mine.reserve("CAmore", 3)
        for sid in ("CAhold-0", "CAhold-1"):
            rows.age(sid, LEASE)
        assert await mine.reserve("CAmore", 3)
        assert await mine.reserve("CAmost", 3)
        assert not await mine.reserve("CAone too many", 3)
        assert mine.uncounted == 0


# ---- one process --------------------------------------------------------------------------------


async def test_a_call_that_is_over_makes_room(url: str) -> None:
    async with counting(url) as one, counting(url) as other:
        assert await one.reserve("CA1", 2)
        assert await other.reserve("CA2", 2)
        assert not await one.reserve("CA3", 2)
        other.release("CA2")
        other.release("CA2")
        await comes(one, "CA3", 2)


async def test_asking_twice_for_a_call_takes_one_place(url: str) -> None:
    """Twilio repeats a webhook that was not answered in time, perhaps at another server."""
    async with counting(url) as one, counting(url) as other:
        assert await one.reserve("CA1", 1)
        assert await other.reserve("CA1", 1)
        assert not await one.reserve("CA2", 1)


async def test_the_process_that_carries_the_call_has_its_lease(url: str) -> None:
    """The webhook came to one process and the socket to another: giving up the reservation, the
    first must not make room."""
    async with counting(url) as web, counting(url) as carrier:
        assert await web.reserve("CA1", 1)
        carrier.hold("CA1", 1)
        await settled(carrier)
        web.release("CA1")
        await settled(web)
        assert not await web.reserve("CA2", 1)
        carrier.release("CA1")
        await comes(web, "CA2", 1)


async def settled(limit: AccountLimit) -> None:
    """Wait until the database has been told."""
    while limit._gone or limit._new:  # noqa: ASYNC110
        await trio.sleep(0.01)


@pytest.mark.usefixtures("_renewed_often")
async def test_a_reservation_whose_call_never_comes_makes_room(url: str, rows: Leases) -> None:
    """It is not renewed; nor is it deleted before its time when the others are."""
    async with counting(url) as web, counting(url) as other:
        web.hold("CA0", 2)
        assert await web.reserve("CA1", 2)
        until = rows.expiry("CA1")
        await rows.renewed("CA0")
        assert rows.expiry("CA1") == until
        assert not await other.reserve("CA2", 2)
        rows.age("CA1", module.RESERVED_SECONDS)
        assert await other.reserve("CA2", 2)


async def test_a_higher_limit_takes_effect_with_the_next_call(url: str) -> None:
    async with counting(url) as limit:
        assert await limit.reserve("CA1", 1)
        assert not await limit.reserve("CA2", 1)
        assert await limit.reserve("CA2", 2)


async def test_a_limit_that_is_new_counts_the_calls_that_are_on(url: str) -> None:
    async with counting(url) as limit, counting(url) as other:
        for sid in ("CA1", "CA2"):
            assert await limit.reserve(sid, 0)
            limit.hold(sid, 0)
        await limit.reserve("CA3", 2)
        await settled(limit)
        assert not await other.reserve("CA4", 2)


async def test_at_the_end_everything_is_given_back(url: str) -> None:
    async with counting(url) as limit:
        assert await limit.reserve("CA1", 1)
    async with counting(url) as limit:
        assert await limit.reserve("CA2", 1)


async def test_a_cancelled_webhook_takes_no_place(url: str) -> None:
    async with counting(url) as limit:
        assert await limit.reserve("CA0", 9)
        with trio.move_on_after(0):
            await limit.reserve("CA1", 9)
        limit.release("CA0")
        await comes(limit, "CA2", 1)


async def test_without_a_limit_no_database_is_needed() -> None:
    async with counting("") as limit:
        assert await limit.reserve("CA1", 0)
        limit.hold("CA2", 0)
        limit.release("CA1")
        assert limit.held == 1


# ---- the database is away -----------------------------------------------------------------------


async def test_while_the_database_is_away_calls_come_and_are_counted_later(
    postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.5)
    url = fresh(postgres)
    async with counting(url) as limit, counting(url) as other:
        assert await limit.reserve("CA1", 2)
        assert await other.reserve("CA2", 2)
        limit.hold("CA1", 2)
        other.hold("CA2", 2)
        await settled(limit)
        await settled(other)
        with capture_logs() as logs:
            postgres.stop()
            try:
                for sid in ("CA3", "CA4"):
                    assert await limit.reserve(sid, 2)
                    limit.hold(sid, 2)
                limit.release("CA1")
                assert limit.uncounted == 2
                assert limit.trouble
            finally:
                postgres.start()
            while limit.trouble or other.trouble:  # noqa: ASYNC110
                await trio.sleep(0.02)
        events = [line["event"] for line in logs]
        # Once for each of the two, if it noticed.
        assert 1 <= events.count("account limit: cannot count calls; admitting them") <= 2
        assert 1 <= events.count("account limit: counting calls again") <= 2
        # 2, 3 and 4 are on: one more than there may be.
        assert not await other.reserve("CA5", 3)
        limit.release("CA3")
        await settled(limit)
        assert not await other.reserve("CA5", 2)
        limit.release("CA4")
        await comes(other, "CA5", 2)


async def test_a_database_that_hangs_makes_one_caller_wait_and_not_for_long(
    postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 3600.0)
    url = fresh(postgres)
    async with counting(url) as limit:
        assert await limit.reserve("CA1", 2)
        assert limit._store is not None
        # A second for one caller; for each of a hundred it would be more than PATIENCE.
        monkeypatch.setattr(module, "RESERVE_SECONDS", 1.0)
        with limit._store.exclusive(module._LOCK):  # somebody keeps the lock
            assert await limit.reserve("CA2", 2)
            assert limit.trouble == "no answer in time"
            for number in range(100):
                assert await limit.reserve(f"CAmore{number}", 200)
        assert limit.uncounted == 101


async def test_a_bug_in_the_thread_costs_one_count_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)

    def broken(*_: object) -> bool:
        raise RuntimeError("planted")

    async with counting(f"sqlite:///{tmp_path}/calls.db", 0.1) as limit:
        with capture_logs() as lines, monkeypatch.context() as patch:
            patch.setattr(limit, "_take", broken)
            assert await limit.reserve("CAone", 1), "no caller is refused for a bug"
            assert limit.trouble == "planted"
        assert [line["event"] for line in lines if line.get("exc_info")] == [
            "account limit: unexpected error"
        ]
        while limit.trouble:  # noqa: ASYNC110
            await trio.sleep(0.01)
        limit.hold("CAone", 1)
        while await limit.reserve("CAtwo", 1):
            limit.release("CAtwo")
            await trio.sleep(0.01)


async def test_a_bug_in_its_task_is_logged_and_the_task_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = AccountLimit(f"sqlite:///{tmp_path}/calls.db")
    really, failed = limit._keep, []

    async def keep() -> None:
        if not failed:
            failed.append(True)
            raise MemoryError("planted")
        await really()

    monkeypatch.setattr(limit, "_keep", keep)
    with capture_logs() as lines, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limit.run)
            limit.hold("CAone", 1)
            while limit._new:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel(reason="the test is over")
    assert [line["task"] for line in lines if line.get("exc_info")] == ["account limit"]


def test_a_limit_needs_a_place_to_count() -> None:
    with pytest.raises(ConfigError, match=r"limits\.account_calls: .* records\.url"):
        check_account_limit(settings(limits={"account_calls": 10}))
    check_account_limit(settings())
    check_account_limit(
        settings(limits={"account_calls": 10}, records={"url": "sqlite:///calls.db"})
    )
