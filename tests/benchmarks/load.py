"""The load generator: both ends of many calls in one process, on an absolute schedule.

    python -m tests.benchmarks.load --calls 25 --seconds 10 --server 127.0.0.1:5000
        --server-pid 1234 --agent-fd 7

`relay` starts it. It prints "measuring" when the measured time begins and one line of JSON at the
end; a failure is one line on standard error and exit code 1. Every step has a deadline.

The schedule knows no "20 ms after the last frame": each frame is due at a time fixed from the
start, and a late one is sent at once. How late says whether the generator kept up, and with it
whether the figures are worth anything.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import math
import select
import selectors
import socket
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from tests.benchmarks import machine
from tests.benchmarks.ends import AgentEnd, PhoneEnd, place_call
from tests.benchmarks.flow import FRAME_NS, Flow, Integrity, Window
from tests.benchmarks.wire import WireError

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
        """Epoll that wakes up on time. Epoll counts in milliseconds, rounded up; that bunches
        frames which are due one after the other, and bunched frames are cheaper to serve.
        """

        def select(self, timeout: float | None = None) -> list[Any]:
            """As the base class does, but to the microsecond."""
            if timeout is not None and timeout > 0:
                # An epoll descriptor can itself be waited for.
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

else:
    ExactSelector = selectors.DefaultSelector


class Schedule:
    """Calls functions every 20 ms, each at its own phase, until told to stop."""

    def __init__(self, window: Window) -> None:
        self._loop = asyncio.get_running_loop()
        self._window = window
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.lateness = array("q")

    def add(self, first: int, send: Callable[[], None]) -> None:
        """From `first` on, in ns of the monotonic clock."""
        heapq.heappush(self._due, (first, len(self._due), send))

    def run(self) -> None:
        """Begin, and go on in the background."""
        due = self._due
        while (now := time.monotonic_ns()) >= due[0][0]:
            at, order, send = due[0]
            send()
            heapq.heapreplace(due, (at + FRAME_NS, order, send))
            if self._window.begins <= at < self._window.ends:
                self.lateness.append(now - at)
        self._timer = self._loop.call_at(due[0][0] / 1e9, self.run)

    def stop(self) -> None:
        """No frame is sent any more."""
        if self._timer is not None:
            self._timer.cancel()


class Load:
    """A number of calls, carried once, and what was measured on the way."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        host, _, port = options.server.rpartition(":")
        self._host, self._port = host, int(port)
        self._window = Window()
        self._ready: asyncio.Queue[AgentEnd] = asyncio.Queue()
        self._phones: list[PhoneEnd] = []
        self._agents: list[AgentEnd] = []
        self._uplinks: list[Flow] = []
        self._downlinks: list[Flow] = []

    async def run(self) -> dict[str, Any]:
        """Place the calls, measure, hang up; return the figures as `relay` takes them.

        Raises WireError, TimeoutError or OSError when a call does not go as calls go.
        """
        loop = asyncio.get_running_loop()
        # What ends a socket is looked at where it matters; after a failure there are many, and the
        # first has been told in one line.
        loop.set_exception_handler(lambda *_: None)
        idle_kb = machine.rss_kb(self._options.server_pid)
        listener = socket.socket(fileno=self._options.agent_fd)
        server = await loop.create_server(lambda: AgentEnd(self._ready.put_nowait), sock=listener)
        try:
            await self._set_up()
            schedule = self._begin()
            used = await self._measure()
            schedule.stop()
            await self._settle()
            unclosed = await self._hang_up()
        finally:
            server.close()
        integrity = {"uplink": Integrity(), "downlink": Integrity()}
        for name, flows in (("uplink", self._uplinks), ("downlink", self._downlinks)):
            for flow in flows:
                integrity[name].add(flow.integrity)
        return {
            **used,
            "idle_kb": idle_kb,
            "uplink_beyond_ns": _all(flow.beyond_framing for flow in self._uplinks),
            "uplink_total_ns": _all(flow.totals for flow in self._uplinks),
            "downlink_total_ns": _all(flow.totals for flow in self._downlinks),
            "lateness_ns": sorted(schedule.lateness),
            "integrity": integrity,
            "unexpected": sum(phone.unexpected for phone in self._phones),
            "unclosed": unclosed,
        }

    async def _set_up(self) -> None:
        """One call after the other, so that each session is known to belong to its call."""
        for number in range(self._options.calls):
            async with asyncio.timeout(SET_UP_EACH):
                phone = await place_call(self._host, self._port)
                ready = asyncio.ensure_future(self._ready.get())
                first: set[asyncio.Future[Any]] = {ready, phone.closed}
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                if not ready.done():
                    raise WireError("the server ended a call before it had an agent for it")
                agent = ready.result()
            up, down = Flow(number, self._window), Flow(number, self._window)
            phone.uplink = agent.uplink = up
            phone.downlink = agent.downlink = down
            self._phones.append(phone)
            self._agents.append(agent)
            self._uplinks.append(up)
            self._downlinks.append(down)

    def _begin(self) -> Schedule:
        """Callers and agents begin to speak, as if they had never heard of each other."""
        schedule = Schedule(self._window)
        start = time.monotonic_ns() + FRAME_NS
        # Multiples of the golden ratio spread any number of calls evenly, over the 20 ms of a
        # frame and over the longer frames that the server fills with them.
        spread = self._options.frame_ms * 1e6
        for number, (phone, agent) in enumerate(zip(self._phones, self._agents, strict=True)):
            phase = number * GOLDEN % 1
            schedule.add(start + int(spread * phase), phone.speak)
            schedule.add(start + int(spread * ((phase + 0.5) % 1)), agent.speak)
        schedule.run()
        return schedule

    async def _measure(self) -> dict[str, float | None]:
        pid, core = self._options.server_pid, self._options.server_core
        await self._sleep(WARM_UP)
        seconds = self._options.seconds
        began = time.monotonic_ns()
        self._window.begins, self._window.ends = began, began + seconds * 1e9
        print("measuring", flush=True)
        before = machine.cpu_seconds(pid), machine.core_busy_seconds(core), time.process_time()
        await self._sleep(seconds)
        took = (time.monotonic_ns() - began) / 1e9
        after = machine.cpu_seconds(pid), machine.core_busy_seconds(core), time.process_time()
        busy = None if after[1] is None or before[1] is None else after[1] - before[1]
        return {
            "seconds": took,
            "server_cpu": after[0] - before[0],
            "server_core_busy": busy,
            "generator_cpu": after[2] - before[2],
            "loaded_kb": machine.rss_kb(pid),
        }

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up and say so when a socket closes under a call."""
        ends: Sequence[PhoneEnd | AgentEnd] = [*self._phones, *self._agents]
        done, _ = await asyncio.wait(
            {end.closed for end in ends}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for closed in done:
            raise WireError(f"a call ended by itself: {closed.exception() or 'closed by server'}")

    async def _settle(self) -> None:
        """Wait for the frames on their way."""
        flows = [*self._uplinks, *self._downlinks]
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
        closed = {end.closed for end in (*self._phones, *self._agents)}
        _, still_open = await asyncio.wait(closed, timeout=TEAR_DOWN)
        for end in (*self._phones, *self._agents):
            end.abort()
        return len(still_open)


def _all(parts: Any) -> list[int]:
    return sorted(delay for part in parts for delay in part)


def main() -> None:
    """Run one load from the command line."""
    parser = argparse.ArgumentParser(prog="load", description="Load for tests.benchmarks.relay.")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--frame-ms", type=int, default=60)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--server-pid", type=int, required=True)
    parser.add_argument("--server-core", type=int)
    parser.add_argument("--agent-fd", type=int, required=True)
    options = parser.parse_args()
    # A collection in the middle would be taken for the server's delay.
    gc.disable()
    try:
        with asyncio.Runner(
            loop_factory=lambda: asyncio.SelectorEventLoop(ExactSelector())
        ) as runner:
            result = runner.run(Load(options).run())
    except TimeoutError:
        sys.exit("load: a call was not set up in time")
    except (WireError, OSError) as error:
        sys.exit(f"load: {error}")
    result["integrity"] = {name: vars(found) for name, found in result["integrity"].items()}
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
