"""The load generator: both ends of many calls in one process, on an absolute schedule.

Each frame is due at a time fixed at the start, not 20 ms after the frame before, and a late one is
sent at once. The lateness shows whether the generator kept up, and whether the figures are valid.

It runs on asyncio instead of Trio, because it must cost less than what it measures. Every step has
a deadline.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import select
import selectors
import socket
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bridge.testing.load import machine
from bridge.testing.load.ends import AgentEnd, PhoneEnd, RefusedError, Target, place_call
from bridge.testing.load.flow import FRAME_NS, Flow, Integrity, Window
from bridge.testing.load.wire import WireError

WARM_UP: Final = 2.0
"""Seconds of full load that do not count: first calls import, allocate and fill caches."""

SET_UP_EACH: Final = 10.0
"""Seconds one call may take from webhook to SettingsApplied, on the busiest machine."""

SETTLE: Final = 3.0
"""Seconds that the last frames may take to arrive; the server holds two seconds of audio."""

TEAR_DOWN: Final = 10.0
"""Seconds for all sockets to be closed after the callers hung up."""

GOLDEN: Final = (math.sqrt(5) - 1) / 2

if sys.platform == "linux":

    class ExactSelector(selectors.EpollSelector):
        """Epoll that wakes up on time. Epoll rounds up to milliseconds, which bunches frames that
        are due one after the other, and bunched frames are cheaper to serve.
        """

        def select(self, timeout: float | None = None) -> list[Any]:
            """Select like the base class, but with microsecond timeouts."""
            if timeout is not None and timeout > 0:
                # An epoll descriptor can itself be waited for.
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

else:
    ExactSelector = selectors.DefaultSelector


def exact_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop with exact timers."""
    loop = asyncio.SelectorEventLoop(ExactSelector())
    # Ends of sockets are checked where they matter; after a failure there are many of them, and
    # the first has been reported.
    loop.set_exception_handler(lambda *_: None)
    return loop


@dataclass(frozen=True)
class LoadPlan:
    """The plan of a load.

    `agent_socket` listens where the server's `deepgram.url` points: the generator is then the agent
    as well, and measures delays and damage both ways. Without it, it is only the phones.
    `server_pid` is a process of this machine, `server_core` the core it is pinned to.
    `strict`: a call that is refused or ends by itself is an error, and not a figure.
    `agent` makes the agent's end of a session. With `echo` each phone expects its own audio back,
    from an agent that returns it or from a server that needs no agent, and round trips are measured
    in place of one-way delays.
    """

    target: Target
    calls: int
    seconds: float
    frame_ms: int = 60
    agent_socket: socket.socket | None = None
    server_pid: int | None = None
    server_core: int | None = None
    strict: bool = True
    warm_up: float = WARM_UP
    agent: Callable[[Callable[[AgentEnd], None]], AgentEnd] = AgentEnd
    echo: bool = False


class Schedule:
    """Calls functions every 20 ms, each at its own phase, until stopped."""

    def __init__(self, window: Window) -> None:
        self._loop = asyncio.get_running_loop()
        self._window = window
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._removed: set[int] = set()
        self._timer: asyncio.Handle | None = None
        self._running = False
        self.lateness = array("q")

    def add(self, first: int, send: Callable[[], None]) -> int:
        """Call `send` from `first` on (monotonic ns); return a number for `remove`."""
        number = next(self._numbers)
        heapq.heappush(self._due, (first, number, send))
        if self._running and self._timer is None:
            self._timer = self._loop.call_soon(self.run)
        return number

    def remove(self, number: int) -> None:
        """Stop calling the function with this number."""
        self._removed.add(number)

    def run(self) -> None:
        """Start; continues in the background."""
        self._running, self._timer = True, None
        due = self._due
        while due and (now := time.monotonic_ns()) >= due[0][0]:
            at, number, send = due[0]
            if number in self._removed:
                heapq.heappop(due)
                self._removed.remove(number)
                continue
            send()
            heapq.heapreplace(due, (at + FRAME_NS, number, send))
            if self._window.begins <= at < self._window.ends:
                self.lateness.append(now - at)
        if due:
            self._timer = self._loop.call_at(due[0][0] / 1e9, self.run)

    def stop(self) -> None:
        """Stop sending frames."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()


class Load:
    """Carries a number of calls once and measures them.

    `on_measuring` is called when the measurement begins.
    """

    def __init__(self, plan: LoadPlan, on_measuring: Callable[[], None] = lambda: None) -> None:
        self._plan = plan
        self._on_measuring = on_measuring
        self._window = Window()
        self._ready: asyncio.Queue[AgentEnd] = asyncio.Queue()
        self._phones: list[PhoneEnd] = []
        self._agents: list[AgentEnd] = []
        self._uplinks: list[Flow] = []
        self._downlinks: list[Flow] = []
        self._trips: list[Flow] = []
        self._refusals: list[str] = []
        self._setup_ns: list[int] = []

    async def run(self) -> dict[str, Any]:
        """Place the calls, measure, hang up; return the raw figures, times in ns.

        Raises WireError, TimeoutError or OSError when a call fails.
        """
        idle_kb = self._rss()
        server = await self._serve_agent()
        try:
            await self._set_up()
            if not self._phones:
                raise WireError(f"no call was admitted: {self._refusals[0]}")
            schedule = self._begin()
            used = await self._measure()
            schedule.stop()
            await self._settle()
            ended = sum(end.closed.done() for end in self._phones)
            unclosed = await self._hang_up()
        finally:
            for end in (*self._phones, *self._agents):
                end.abort()
            if server is not None:
                server.close()
        directions = {
            "uplink": self._uplinks,
            "downlink": self._downlinks,
            "round_trip": self._trips,
        }
        integrity = {name: Integrity() for name in directions}
        for name, flows in directions.items():
            for flow in flows:
                integrity[name].add(flow.integrity)
        return {
            **used,
            "idle_kb": idle_kb,
            "uplink_beyond_ns": _all(flow.beyond_framing for flow in self._uplinks),
            "uplink_total_ns": _all(flow.totals for flow in self._uplinks),
            "downlink_total_ns": _all(flow.totals for flow in self._downlinks),
            "round_trip_ns": _all(flow.totals for flow in self._trips),
            "lateness_ns": sorted(schedule.lateness),
            "integrity": {name: vars(found) for name, found in integrity.items()},
            "unexpected": sum(phone.unexpected for phone in self._phones),
            "unclosed": unclosed,
            "admitted": len(self._phones),
            "refusals": self._refusals,
            "ended_early": ended,
            "setup_ns": sorted(self._setup_ns),
            "first_audio_ns": sorted(
                phone.first_audio_at - phone.placed_at
                for phone in self._phones
                if phone.first_audio_at is not None
            ),
        }

    async def _serve_agent(self) -> asyncio.Server | None:
        if self._plan.agent_socket is None:
            return None
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            lambda: self._plan.agent(self._ready.put_nowait), sock=self._plan.agent_socket
        )

    async def _set_up(self) -> None:
        """Set the calls up one at a time, so that each session can be matched to its call."""
        for number in range(self._plan.calls):
            try:
                async with asyncio.timeout(SET_UP_EACH):
                    await self._set_up_one(number)
            except RefusedError as refusal:
                if self._plan.strict:
                    raise
                self._refusals.append(str(refusal))
                while not self._ready.empty():
                    # Prewarmed for a call that was then refused: it belongs to no call.
                    self._ready.get_nowait().abort()

    async def _set_up_one(self, number: int) -> None:
        phone = await place_call(self._plan.target)
        # Known from here on, so that whatever happens its socket is closed.
        self._phones.append(phone)
        up = phone.uplink = Flow(number, self._window)
        if self._plan.echo:
            phone.downlink = up
            self._trips.append(up)
        if self._plan.agent_socket is not None:
            ready = asyncio.ensure_future(self._ready.get())
            first: set[asyncio.Future[Any]] = {ready, phone.closed}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                ready.cancel()
                raise WireError("the server ended a call before it had an agent for it")
            agent = ready.result()
            self._agents.append(agent)
            if not self._plan.echo:
                down = Flow(number, self._window)
                agent.uplink = up
                phone.downlink = agent.downlink = down
                self._uplinks.append(up)
                self._downlinks.append(down)
        self._setup_ns.append(time.monotonic_ns() - phone.placed_at)

    def _begin(self) -> Schedule:
        """Start all callers and agents speaking, each at its own phase."""
        schedule = Schedule(self._window)
        start = time.monotonic_ns() + FRAME_NS
        # Multiples of the golden ratio spread any number of calls evenly, over the 20 ms of a
        # frame and over the longer frames that the server fills with them.
        spread = self._plan.frame_ms * 1e6
        for number, phone in enumerate(self._phones):
            schedule.add(start + int(spread * (number * GOLDEN % 1)), phone.speak)
        for number, agent in enumerate(() if self._plan.echo else self._agents):
            schedule.add(start + int(spread * ((number * GOLDEN + 0.5) % 1)), agent.speak)
        schedule.run()
        return schedule

    async def _measure(self) -> dict[str, float | None]:
        core = self._plan.server_core
        await self._sleep(self._plan.warm_up)
        seconds = self._plan.seconds
        began = time.monotonic_ns()
        self._window.begins, self._window.ends = began, began + seconds * 1e9
        self._on_measuring()
        before = self._cpu(), machine.core_busy_seconds(core), time.process_time()
        await self._sleep(seconds)
        took = (time.monotonic_ns() - began) / 1e9
        after = self._cpu(), machine.core_busy_seconds(core), time.process_time()
        return {
            "seconds": took,
            "server_cpu": _difference(before[0], after[0]),
            "server_core_busy": _difference(before[1], after[1]),
            "generator_cpu": after[2] - before[2],
            "loaded_kb": self._rss(),
        }

    def _cpu(self) -> float | None:
        pid = self._plan.server_pid
        return None if pid is None else machine.cpu_seconds(pid)

    def _rss(self) -> float | None:
        pid = self._plan.server_pid
        return None if pid is None else machine.rss_kb(pid)

    async def _sleep(self, seconds: float) -> None:
        """Sleep; if strict, raise when a socket closes during a call."""
        if not self._plan.strict:
            await asyncio.sleep(seconds)
            return
        ends: Sequence[PhoneEnd | AgentEnd] = [*self._phones, *self._agents]
        done, _ = await asyncio.wait(
            {end.closed for end in ends}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for closed in done:
            raise WireError(f"a call ended by itself: {closed.exception() or 'closed by server'}")

    async def _settle(self) -> None:
        """Wait for the frames on their way."""
        flows = [*self._uplinks, *self._downlinks, *self._trips]
        deadline = time.monotonic() + SETTLE
        # Polled, once at the end: an event would cost something for every frame before.
        while time.monotonic() < deadline and not all(  # noqa: ASYNC110
            flow.complete for flow in flows
        ):
            await asyncio.sleep(0.01)

    async def _hang_up(self) -> int:
        """All callers hang up; return how many sockets the server left open."""
        for phone in self._phones:
            phone.stop()
            if self._plan.echo and self._plan.agent_socket is None:
                phone.close()  # as Twilio does; only bridge is tested for closing it first
        closed = {end.closed for end in (*self._phones, *self._agents)}
        _, still_open = await asyncio.wait(closed, timeout=TEAR_DOWN)
        return len(still_open)


def _all(parts: Iterable[Iterable[int]]) -> list[int]:
    return sorted(delay for part in parts for delay in part)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
