"""Stalls of the loop: which are told of, how, and what is left behind.

Time is the test's, so that a machine that stalls of its own accord changes nothing; only the
thread's looking takes real time. `TestForReal` is on the real clock.
"""

from __future__ import annotations

import ctypes
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
import trio
from structlog.contextvars import bind_contextvars
from trio.testing import MockClock

from bridge.log import configure
from bridge.server import watchdog
from bridge.server.watchdog import STACK_CHARACTERS, THRESHOLD, watching

LONG = 60.0  # seconds: never reached, unless the test fails


class Clock:
    """The watchdog's clock, which only a test moves. `looks` counts the thread's looks at it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        if is_watchdog(threading.current_thread()):
            self.looks += 1
        return self.now

    def block_until_looked(self) -> None:
        """Block this thread, and the loop with it, until the watchdog's has looked once more.

        A look may have been under way, and a second one ends after the first is complete.
        """
        give_up, looks = time.monotonic() + LONG, self.looks + 2
        while self.looks < looks:
            assert time.monotonic() < give_up
            time.sleep(0.005)


class Log(io.StringIO):
    """What the log writes."""

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    @property
    def stalls(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "event loop stalled"]

    def block_until(self, lines: int, words: str = "") -> None:
        """Block this thread, and the loop with it, until the log has so many lines with `words`."""
        give_up = time.monotonic() + LONG
        while sum(words in str(event) for event in self.events) < lines:
            assert time.monotonic() < give_up
            time.sleep(0.005)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "_now", clock)
    return clock


@pytest.fixture
def log() -> Iterator[Log]:
    """The log, in JSON; afterwards logging is as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    log = Log()
    configure(format="json", stream=log)
    yield log
    root.setLevel(level)
    root.handlers[:] = handlers
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watchdog, "STOP_SECONDS", LONG)
    before = set(threading.enumerate())
    yield
    assert {thread for thread in threading.enumerate() if is_watchdog(thread)} <= before


def is_watchdog(thread: threading.Thread) -> bool:
    return thread.name == "bridge watchdog"


def watchdogs() -> int:
    return sum(map(is_watchdog, threading.enumerate()))


@pytest.fixture
def stall(clock: Clock, log: Log) -> Callable[[float], None]:
    """Code that blocks for so long and is seen at it."""

    def look_up_the_customer(seconds: float) -> None:
        clock.now += seconds
        log.block_until(len(log.events) + 1)

    return look_up_the_customer


async def rest() -> None:
    """Let the loop finish the pass."""
    for _ in range(3):
        await trio.lowlevel.checkpoint()


class TestAStall:
    async def test_is_told_of_while_it_lasts_and_when_it_is_over(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        stalls: list[float] = []
        with watching(on_stall=stalls.append):
            await rest()
            stall(0.3)
            assert [event["event"] for event in log.events] == ["event loop stalled"]
            assert stalls == []
            await rest()
        during, after = log.events
        assert during["level"] == "warning"
        assert during["seconds"] == 0.3
        assert "test_is_told_of_while_it_lasts_and_when_it_is_over" in during["task"]
        assert after["level"] == "info"
        assert after["event"] == "event loop runs again"
        assert after["seconds"] == 0.3
        assert stalls == [pytest.approx(0.3)]

    async def test_shows_the_function_and_its_callers(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        with watching():
            await rest()
            stall(0.3)
        frames = log.stalls[0]["stack"].split(" < ")
        blocked = next(i for i, frame in enumerate(frames) if "look_up_the_customer" in frame)
        assert frames[blocked].startswith("stall.look_up_the_customer (server/test_watchdog.py:")
        assert frames[blocked + 1].startswith(
            "TestAStall.test_shows_the_function_and_its_callers (server/test_watchdog.py:"
        )

    async def test_names_the_task_and_its_call(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        async def call(sid: str) -> None:
            bind_contextvars(call_sid=sid)
            await trio.sleep_forever()

        async def culprit() -> None:
            bind_contextvars(call_sid="CA2")
            await rest()
            stall(0.3)
            await rest()
            nursery.cancel_scope.cancel()

        with watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, "CA1", name="receiver")
                nursery.start_soon(culprit, name="agent reader")
                nursery.start_soon(call, "CA3", name="receiver")
        during, after = log.events
        assert (during["task"], during["call_sid"]) == ("agent reader", "CA2")
        assert "call_sid" not in after

    async def test_between_tasks_has_no_name(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        with watching():
            await rest()
            trio.lowlevel.current_trio_token().run_sync_soon(stall, 0.3)
            await rest()
            await trio.testing.wait_all_tasks_blocked()
        assert len(log.stalls) == 1
        assert "look_up_the_customer" in log.stalls[0]["stack"]

    async def test_may_consist_of_several_steps(
        self, clock: Clock, stall: Callable[[float], None], log: Log
    ) -> None:
        """All that can run does, before the loop looks at I/O again: it is the sum that hurts."""
        stalls: list[float] = []
        steps = 0

        async def step() -> None:
            nonlocal steps
            steps += 1
            if steps < 4:
                clock.now += 0.03
            else:
                stall(0.03)

        with watching(on_stall=stalls.append):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(step)
        assert stalls == [pytest.approx(0.12)]

    async def test_as_long_as_the_threshold_is_one(
        self, clock: Clock, stall: Callable[[float], None]
    ) -> None:
        stalls: list[float] = []
        clock.now = 0.0
        with watching(on_stall=stalls.append, threshold=0.25):
            await rest()
            clock.now += 0.2
            await rest()
            stall(0.25)
            await rest()
        assert stalls == [0.25]

    async def test_is_one_however_long_it_lasts(
        self, clock: Clock, stall: Callable[[float], None], log: Log
    ) -> None:
        def go_on() -> None:
            clock.now += 0.3
            clock.block_until_looked()

        with watching():
            await rest()
            stall(0.3)
            for _ in range(5):
                go_on()
            await rest()
        assert [event["seconds"] for event in log.events] == [0.3, 1.8]

    async def test_and_another_are_two(self, stall: Callable[[float], None], log: Log) -> None:
        stalls: list[float] = []
        with watching(on_stall=stalls.append):
            for seconds in (0.3, 37.0):
                await rest()
                stall(seconds)
                await rest()
        assert [event["seconds"] for event in log.events] == [0.3, 0.3, 37, 37]
        assert stalls == pytest.approx([0.3, 37.0])

    async def test_from_the_first_moment_to_the_last(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        stalls: list[float] = []
        with watching(on_stall=stalls.append):
            stall(0.3)
        assert stalls == [pytest.approx(0.3)]
        assert len(log.events) == 2

    async def test_that_was_not_observed_is_counted_all_the_same(
        self, clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when C code holds Python's lock and the loop goes on before the thread gets it."""
        monkeypatch.setattr(watchdog._Watch, "look", lambda _watch: None)
        stalls: list[float] = []
        with watching(on_stall=stalls.append):
            await rest()
            clock.now += 0.3
            await rest()
        (only,) = log.events
        assert only["event"] == "event loop stalled"
        assert only["level"] == "warning"
        assert only["seconds"] == 0.3
        assert only["stack"].startswith("unknown")
        assert stalls == [pytest.approx(0.3)]

    async def test_that_ends_as_the_thread_looks_is_told_of_once(
        self, clock: Clock, log: Log
    ) -> None:
        """What the thread saw may belong to the next pass: it keeps quiet."""
        watch = watchdog._Watch(None, THRESHOLD)
        since = clock.now
        clock.now += 0.3
        watch.before_io_wait(0)
        watch.after_io_wait(0)
        watch._tell(since, clock.now, late=0)
        (only,) = log.events
        assert only["stack"].startswith("unknown")

    async def test_is_counted_next_time_when_counting_it_failed(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        stalls: list[float] = []

        def count(seconds: float) -> None:
            stalls.append(seconds)
            if len(stalls) == 1:
                raise RuntimeError("no such metric")

        with watching(on_stall=count):
            for _ in range(2):
                await rest()
                stall(0.3)
                await rest()
        assert len(stalls) == 2
        assert sum("no such metric" in event.get("exception", "") for event in log.events) == 1


class TestNoStall:
    async def test_short_steps_that_never_let_the_loop_rest(self, clock: Clock, log: Log) -> None:
        stalls: list[float] = []
        with watching(on_stall=stalls.append):
            while clock.looks < 4:
                clock.now += 0.09
                await trio.lowlevel.checkpoint()
        assert stalls == []
        assert log.events == []

    async def test_waiting_for_io(self, clock: Clock, log: Log) -> None:
        """However long: hours without a call, or with the machine asleep."""

        class Hours(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                clock.now += 3600

        hours = Hours()
        with watching():
            trio.lowlevel.add_instrument(hours)  # after the watchdog's, so called after it
            with trio.fail_after(LONG):
                while clock.looks < 4:  # noqa: ASYNC110  # it is the thread that looks
                    await trio.sleep(0.02)
            trio.lowlevel.remove_instrument(hours)
        assert clock.now >= 4600
        assert log.events == []

    async def test_hours_on_trios_own_clock(
        self, clock: Clock, log: Log, autojump_clock: MockClock
    ) -> None:
        with watching():
            for _ in range(10):
                await trio.sleep(3600)
        assert trio.current_time() >= 36_000
        assert log.events == []


class TestWatching:
    async def test_leaves_nothing_behind(self) -> None:
        with watching():
            assert watchdogs() == 1
        assert watchdogs() == 0
        with pytest.raises(KeyError):  # as for any that is not there
            trio.lowlevel.remove_instrument(watchdog._Watch(None, THRESHOLD))

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    async def test_leaves_nothing_behind_an_exception(self, error: type[BaseException]) -> None:
        with pytest.raises(error), watching():
            raise error
        assert watchdogs() == 0

    async def test_leaves_nothing_behind_a_cancellation(self) -> None:
        with trio.CancelScope() as scope, watching():
            scope.cancel()
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert watchdogs() == 0

    async def test_leaves_no_instrument_behind(self, clock: Clock, log: Log) -> None:
        with watching():
            await rest()
        clock.now += 0.3
        await rest()
        assert log.events == []

    async def test_leaves_no_instrument_where_no_thread_can_be_started(
        self, clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def start(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start"), watching():
                pytest.fail("not watching, and yet inside")
        clock.now += 0.3
        await rest()
        assert log.events == []

    async def test_may_lose_its_instrument(
        self, clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trio drops an instrument that raises; leaving is not to fail for that."""
        with watching(on_stall=fail), monkeypatch.context() as patch:
            patch.setattr(logging.getLogger("trio.abc.Instrument"), "disabled", True)
            patch.setattr(watchdog._Watch, "_over", fail)
            clock.now += 0.3
            await rest()
        assert watchdogs() == 0

    async def test_ends_though_the_log_is_stuck(
        self, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unstuck, writing = threading.Event(), threading.Event()

        class Stuck:
            def warning(self, *_: object, **__: object) -> None:
                writing.set()
                unstuck.wait(LONG)

            def info(self, *_: object, **__: object) -> None:
                pass

        monkeypatch.setattr(watchdog, "log", Stuck())
        monkeypatch.setattr(watchdog, "STOP_SECONDS", 0.05)
        with watching():
            clock.now += 0.3
            assert writing.wait(LONG)
        (thread,) = filter(is_watchdog, threading.enumerate())
        unstuck.set()
        thread.join(LONG)
        assert not thread.is_alive()

    async def test_may_be_nested(self, stall: Callable[[float], None], log: Log) -> None:
        outer: list[float] = []
        inner: list[float] = []
        with watching(on_stall=outer.append):
            with watching(on_stall=inner.append, threshold=0.5):
                await rest()
                stall(0.3)
                await rest()
            await rest()
            stall(0.6)
            await rest()
        assert outer == pytest.approx([0.3, 0.6])
        assert inner == []

    async def test_may_come_again(self, stall: Callable[[float], None]) -> None:
        stalls: list[float] = []
        for _ in range(2):
            with watching(on_stall=stalls.append):
                await rest()
                stall(0.3)
                await rest()
        assert stalls == pytest.approx([0.3, 0.3])

    def test_is_for_a_loop(self) -> None:
        with pytest.raises(RuntimeError), watching():
            pytest.fail("no loop, and yet inside")
        assert watchdogs() == 0

    async def test_watches_the_loop_it_is_in(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        """Which need not be in the main thread."""
        stalls: list[float] = []

        async def elsewhere() -> None:
            with watching(on_stall=stalls.append):
                await rest()
                stall(0.3)
                await rest()

        await trio.to_thread.run_sync(trio.run, elsewhere)
        assert stalls == [pytest.approx(0.3)]
        assert "look_up_the_customer" in log.stalls[0]["stack"]


def fail(*_: object) -> None:
    raise ValueError("an instrument's mistake")


class TestTheLine:
    async def test_is_one_line_in_the_console(
        self, stall: Callable[[float], None], log: Log, clock: Clock
    ) -> None:
        console = io.StringIO()
        configure(format="console", stream=console)

        def block() -> None:
            clock.now += 0.3
            give_up = time.monotonic() + LONG
            while not console.getvalue() and time.monotonic() < give_up:
                time.sleep(0.005)

        with watching():
            block()
        line, rest = console.getvalue().split("\n", 1)
        assert "warning  event loop stalled" in line
        assert "block (server/test_watchdog.py:" in line
        assert rest.count("\n") == 1

    async def test_is_bounded(self, log: Log, clock: Clock) -> None:
        def recurse(depth: int) -> None:
            if depth:
                recurse(depth - 1)
            else:
                clock.now += 0.3
                log.block_until(1)

        with watching():
            recurse(300)
        stack = log.stalls[0]["stack"]
        assert stack.endswith(" < …")
        assert len(stack) < STACK_CHARACTERS * 1.2
        assert "test_is_bounded.recurse (server/test_watchdog.py:" in stack

    async def test_has_no_control_characters_of_a_names(self, log: Log, clock: Clock) -> None:
        def block() -> None:
            clock.now += 0.3
            log.block_until(1)

        block.__code__ = block.__code__.replace(
            co_qualname="\x1b[31m\nforged" + "x" * STACK_CHARACTERS
        )
        with watching():
            block()
        assert log.getvalue().count("\n") == 2
        assert "\x1b" not in log.stalls[0]["stack"]

    async def test_says_when_the_watchdog_itself_was_held_up(
        self, stall: Callable[[float], None], log: Log
    ) -> None:
        """Then the stack may be the one just after; and no code but the machine may be to blame."""
        with watching():
            await rest()
            stall(37.0)
        assert log.stalls[0]["watchdog_late_seconds"] > 36


class TestForReal:
    """On the real clock. The machine may add stalls of its own, so only the meant one counts."""

    async def test_time_sleep(self, log: Log) -> None:
        stalls: list[float] = []

        def forgot_to_await() -> None:
            time.sleep(0.3)
            log.block_until(1, "forgot_to_await")  # on a machine too busy to run the thread

        with watching(on_stall=stalls.append):
            await trio.sleep(0.01)
            forgot_to_await()
            await trio.sleep(0.01)
        assert max(stalls) >= 0.3
        assert sum("forgot_to_await" in event["stack"] for event in log.stalls) == 1

    async def test_c_code_that_holds_pythons_lock(self, log: Log) -> None:
        """The thread cannot look before it is over: with or without a stack, it is counted."""
        stalls: list[float] = []
        hold = ctypes.PyDLL(None).usleep
        with watching(on_stall=stalls.append):
            await trio.sleep(0.01)
            hold(300_000)
            await trio.sleep(0.01)
        assert max(stalls) >= 0.3
        assert max(event["seconds"] for event in log.stalls) >= 0.3
