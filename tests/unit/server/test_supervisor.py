"""The supervisor's decisions on the virtual clock, with workers that are tasks.

Real processes are started, stopped and killed in tests/endtoend/test_signals.py.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from itertools import count, pairwise

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock
from trio.testing import wait_all_tasks_blocked

from bridge.server import supervisor as module
from bridge.server.stopping import SLACK_SECONDS
from bridge.server.supervisor import (
    FIRST_DELAY,
    KILL_SECONDS,
    LONGEST_DELAY,
    SERVED_WELL_SECONDS,
    START_SECONDS,
    START_TRIES,
    ProcessWorker,
    Supervisor,
)

STOP_NOW_SECONDS = 5.0
DRAIN_SECONDS = 70.0
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


class FakeWorker:
    """A worker that does what the test says. `signals` are those it was sent, with their times."""

    _pids = count(100)

    def __init__(self) -> None:
        self.pid = next(self._pids)
        self.started_at = trio.current_time()
        self.ended_at = 0.0
        self.signals: list[tuple[float, signal.Signals]] = []
        self.status: int | None = None
        self.closed = False
        self.survives_kill = False
        self._ended = trio.Event()
        self._say, self._said = trio.open_memory_channel[float](10)

    # What the supervisor does.

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.status is not None
        return self.status

    def send_signal(self, number: signal.Signals) -> None:
        self.signals.append((trio.current_time(), number))
        if number == KILL and not self.survives_kill:
            self.end(-KILL)

    async def report(self) -> float | None:
        try:
            return await self._said.receive()
        except trio.EndOfChannel:
            return None

    def close(self) -> None:
        self.closed = True

    # What the test does.

    def say(self, seconds: float = DRAIN_SECONDS) -> None:
        """Report, for the first time that it serves."""
        self._say.send_nowait(seconds)

    def end(self, status: int) -> None:
        self.status = status
        self.ended_at = trio.current_time()
        self._say.close()
        self._ended.set()

    @property
    def asked(self) -> list[signal.Signals]:
        return [number for _, number in self.signals]


class Shop:
    """A supervisor and the workers it has started; the i-th start is `behaves(worker, i)`'s."""

    def __init__(self, workers: int) -> None:
        self.workers: list[FakeWorker] = []
        self.supervisor = Supervisor(self._start, workers, stop_now_seconds=STOP_NOW_SECONDS)
        self.status: int | None = None
        self.ended_at = 0.0
        self.immediately: Sequence[int | str | OSError] = ()

    async def run(self) -> None:
        self.status = await self.supervisor.run()
        self.ended_at = trio.current_time()

    async def _start(self) -> FakeWorker:
        await trio.lowlevel.checkpoint()
        worker = FakeWorker()
        self.workers.append(worker)
        fate = self.immediately[len(self.workers) - 1 :][:1]
        match fate:
            case ["serves"]:
                worker.say()
            case [int(status)]:
                worker.end(status)
            case [OSError() as error]:
                raise error
        return worker

    @property
    def live(self) -> list[FakeWorker]:
        return [worker for worker in self.workers if worker.status is None]


async def shop(nursery: trio.Nursery, workers: int = 2, *, serve: bool = True) -> Shop:
    """A supervisor with so many workers, all serving unless the test has other plans."""
    made = Shop(workers)
    nursery.start_soon(made.run)
    await wait_all_tasks_blocked()
    assert len(made.workers) == workers
    if serve:
        for worker in made.workers:
            worker.say()
        await wait_all_tasks_blocked()
    return made


# ---- the end ------------------------------------------------------------------------------------


async def test_drain_is_passed_on_and_waited_for(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery)
    it.supervisor.drain("SIGTERM")
    it.supervisor.drain("SIGTERM")
    assert [worker.asked for worker in it.workers] == [[TERM], [TERM]]
    first, second = it.workers
    first.end(0)
    await trio.sleep(DRAIN_SECONDS - 1)
    assert it.status is None
    second.end(0)
    await wait_all_tasks_blocked()
    assert it.status == 0
    assert len(it.workers) == 2
    assert all(worker.closed for worker in it.workers)


async def test_an_immediate_stop_is_passed_on(autojump_clock: Clock, nursery: trio.Nursery) -> None:
    it = await shop(nursery)
    it.supervisor.stop_now("SIGINT")
    it.supervisor.stop_now("SIGINT")
    it.supervisor.drain("SIGTERM")
    assert [worker.asked for worker in it.workers] == [[INT], [INT]]
    for worker in it.workers:
        worker.end(0)
    await wait_all_tasks_blocked()
    assert it.status == 0


async def test_an_immediate_stop_may_follow_a_drain(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery, 1)
    it.supervisor.drain("SIGTERM")
    await trio.sleep(10)
    it.supervisor.stop_now("a second SIGTERM")
    (worker,) = it.workers
    assert worker.asked == [TERM, INT]


async def test_a_worker_gets_the_time_it_says_it_needs(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """When it drains it knows best: the configuration may have changed since it started."""
    it = await shop(nursery, 1)
    (worker,) = it.workers
    began = trio.current_time()
    it.supervisor.drain("SIGTERM")
    worker.say(600)
    await trio.sleep(600)
    assert worker.asked == [TERM]
    await trio.sleep(SLACK_SECONDS + 1)
    assert worker.signals[1:] == [(pytest.approx(began + 600 + SLACK_SECONDS), KILL)]
    assert it.status == 0


async def test_a_worker_that_hangs_while_draining_is_killed(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery)
    began = trio.current_time()
    it.supervisor.drain("SIGTERM")
    it.workers[0].end(0)
    await trio.sleep(DRAIN_SECONDS + 10)
    assert it.workers[1].asked == [TERM, KILL]
    assert it.ended_at - began == pytest.approx(DRAIN_SECONDS + SLACK_SECONDS)
    assert it.status == 0


async def test_a_worker_that_hangs_at_an_immediate_stop_is_killed(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery, 1)
    it.supervisor.drain("SIGTERM")
    await trio.sleep(1)
    began = trio.current_time()
    it.supervisor.stop_now("a second SIGTERM")
    await trio.sleep(STOP_NOW_SECONDS + 10)
    assert it.workers[0].asked == [TERM, INT, KILL]
    assert it.ended_at - began == pytest.approx(STOP_NOW_SECONDS + SLACK_SECONDS)


async def test_nobody_waits_for_what_cannot_be_killed(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery, 1)
    it.workers[0].survives_kill = True
    began = trio.current_time()
    it.supervisor.stop_now("SIGINT")
    await trio.sleep(100)
    assert it.ended_at - began == pytest.approx(STOP_NOW_SECONDS + SLACK_SECONDS + KILL_SECONDS)
    assert it.workers[0].closed


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_worker_that_does_not_serve_yet_is_ended(
    autojump_clock: Clock, nursery: trio.Nursery, at_once: bool
) -> None:
    """By SIGTERM, which needs no handler; whoever dies of it dies as expected."""
    it = await shop(nursery, serve=False)
    (it.supervisor.stop_now if at_once else it.supervisor.drain)("a signal")
    assert [worker.asked for worker in it.workers] == [[TERM], [TERM]]
    with capture_logs() as logs:
        for worker in it.workers:
            worker.end(-TERM)
        await wait_all_tasks_blocked()
    assert it.status == 0
    assert {line["log_level"] for line in logs} == {"info"}


async def test_a_worker_that_begins_to_serve_too_late_is_told_again(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery, 1, serve=False)
    (worker,) = it.workers
    it.supervisor.stop_now("SIGINT")
    worker.say()
    await wait_all_tasks_blocked()
    assert worker.asked == [TERM, INT]
    worker.end(0)
    await wait_all_tasks_blocked()
    assert it.status == 0


async def test_a_worker_whose_start_is_under_way_is_told(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = Shop(1)
    nursery.start_soon(it.run)
    it.supervisor.drain("SIGTERM")
    await wait_all_tasks_blocked()
    assert [worker.asked for worker in it.workers] in ([], [[TERM]])
    for worker in it.workers:
        worker.end(-TERM)
    await wait_all_tasks_blocked()
    assert it.status == 0


async def test_cancelled_it_lets_go_of_every_worker(autojump_clock: Clock) -> None:
    """They see it, and drain."""
    async with trio.open_nursery() as nursery:
        it = await shop(nursery)
        nursery.cancel_scope.cancel(reason="the test")
    assert all(worker.closed for worker in it.workers)
    assert [worker.asked for worker in it.workers] == [[], []]


# ---- replacing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "level"), [(-KILL, "error"), (1, "error"), (0, "info")], ids=str
)
async def test_a_worker_that_ends_is_replaced_and_the_others_never_notice(
    autojump_clock: Clock, nursery: trio.Nursery, status: int, level: str
) -> None:
    """Status 0 is one that an operator has asked to drain."""
    it = await shop(nursery)
    victim, other = it.workers
    with capture_logs() as logs:
        victim.end(status)
        await trio.sleep(FIRST_DELAY + 0.1)
    assert len(it.workers) == 3
    assert it.live == [other, it.workers[2]]
    assert other.asked == []
    (line,) = [line for line in logs if line["event"] == "worker ended"]
    assert (line["pid"], line["status"], line["log_level"]) == (victim.pid, status, level)


async def test_one_that_dies_again_and_again_is_replaced_more_and_more_slowly(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery, 1)
    for _ in range(10):
        (worker,) = it.live
        worker.say()
        await wait_all_tasks_blocked()
        worker.end(1)
        await trio.sleep(LONGEST_DELAY + 1)
    waits = [later.started_at - earlier.ended_at for earlier, later in pairwise(it.workers)]
    assert waits[:4] == pytest.approx([n * FIRST_DELAY for n in (1, 2, 4, 8)])
    assert waits[-1] == pytest.approx(LONGEST_DELAY)


async def test_after_a_long_life_the_next_is_replaced_quickly(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery, 1)
    for _ in range(5):
        it.live[0].say()
        await trio.sleep(SERVED_WELL_SECONDS + 1)
        it.live[0].end(1)
        await trio.sleep(FIRST_DELAY + 0.1)
        assert len(it.live) == 1


async def test_nothing_is_started_once_the_end_is_asked_for(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery)
    first, second = it.workers
    first.end(1)
    await wait_all_tasks_blocked()
    it.supervisor.drain("SIGTERM")
    second.end(0)
    await trio.sleep(LONGEST_DELAY)
    assert len(it.workers) == 2
    assert it.status == 0


async def test_one_that_hangs_at_its_start_is_killed_and_replaced(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = await shop(nursery, serve=False)
    it.workers[0].say()
    await trio.sleep(START_SECONDS + FIRST_DELAY + 1)
    assert [worker.asked for worker in it.workers[:2]] == [[], [KILL]]
    assert len(it.workers) == 3


# ---- a server that cannot start -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "status"),
    [(2, 2), (1, 1), (0, 1), (-KILL, 128 + 9), (OSError(12, "no memory"), 1)],
    ids=str,
)
@pytest.mark.parametrize("workers", [1, 2, 8])
async def test_when_no_worker_can_start_the_server_ends_with_its_status(
    autojump_clock: Clock, fate: int | OSError, status: int, workers: int
) -> None:
    it = Shop(workers)
    it.immediately = [fate] * 100
    with trio.fail_after(60):
        await it.run()
    assert it.status == status
    assert len(it.workers) <= max(START_TRIES, workers) + workers


async def test_starts_that_fail_while_others_serve_are_tried_again(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """A broken edit of the configuration must not end calls that go on."""
    it = Shop(2)
    it.immediately = ["serves", "serves", *[2] * 6, "serves"]
    nursery.start_soon(it.run)
    await wait_all_tasks_blocked()
    it.workers[1].end(-KILL)
    await trio.sleep(10 * LONGEST_DELAY)
    assert it.status is None
    assert len(it.workers) == 9
    assert it.live == [it.workers[0], it.workers[8]]
    assert it.workers[0].asked == []


async def test_a_start_that_works_begins_the_count_anew(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    it = Shop(1)
    it.immediately = [2, 2, "serves", 2, 2, "serves"]
    nursery.start_soon(it.run)
    await trio.sleep(LONGEST_DELAY)
    it.workers[2].end(1)
    await trio.sleep(2 * LONGEST_DELAY)
    assert it.status is None
    assert it.live == [it.workers[5]]


# ---- the lifeline -------------------------------------------------------------------------------


async def test_what_a_worker_says_is_read_line_by_line() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    worker = ProcessWorker(None, stream)  # type: ignore[arg-type]
    with trio.fail_after(10), theirs:
        theirs.sendall(b"12.5\n7")
        assert await worker.report() == 12.5
        theirs.sendall(b"1.0\n")
        assert await worker.report() == 71.0
        theirs.close()
        assert await worker.report() is None
    worker.close()


@pytest.mark.parametrize("nonsense", [b"x" * module.REPORT_BYTES * 4, b"ready\n"])
async def test_a_worker_that_talks_nonsense_is_not_listened_to(nonsense: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    worker = ProcessWorker(None, stream)  # type: ignore[arg-type]
    with trio.fail_after(10), theirs:
        theirs.sendall(nonsense)
        assert await worker.report() is None
    worker.close()
