"""A long run of many calls that come and go: do tasks, descriptors, memory or delay drift?

    python -m tests.benchmarks.soak [--minutes 10] [--calls 20] [--json]

The server runs in one process, phones and agents in another, each on a core of its own. `--calls`
calls are live at any time; each lasts from some seconds to a minute, carries numbered frames both
ways, and ends in one of three ways: the caller hangs up, the caller's line is lost, the agent hangs
up. Another call replaces it. Each minute is a row of the output.

Exit status 1 when a frame was lost, duplicated or reordered, a call ended unexpectedly, the server
logged an error, or it holds a task or a descriptor after the last call. Memory and delay are
printed, not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import msgspec
import trio

from bridge.testing.load import machine
from bridge.testing.load.ends import AgentEnd, PhoneEnd, Target, place_call
from bridge.testing.load.flow import FRAME_NS, Flow, Integrity, Window
from bridge.testing.load.generator import SETTLE, TEAR_DOWN, Schedule, exact_loop
from bridge.testing.load.summary import at_share
from bridge.testing.load.wire import WireError
from tests.benchmarks.churn import Server, _settled, running
from tests.benchmarks.server import ServerError, stop
from tests.world import AUTH_TOKEN

PERIOD: Final = 60.0
"""Seconds of one row."""

SHORTEST: Final = 5.0
LONGEST: Final = 60.0
"""The length of a call, in seconds, evenly spread; at most a row."""

PATIENCE: Final = 20.0
"""The server's timeout for agents and phones, in seconds, generous for a busy machine."""

SET_UP: Final = 60.0
"""Deadline from a call's webhook to its agent. Calls are set up one at a time."""

SLACK: Final = 60.0
"""A row may arrive this much later than its period."""


# ---- the generator, in a process of its own ------------------------------------------------------


class Soak:
    """Keeps `calls` calls live, and reports every `period` seconds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._dice = random.Random(options.seed)
        self._window = Window(begins=0, ends=float("inf"))
        self._schedule = Schedule(self._window)
        self._target = Target(options.server, AUTH_TOKEN)
        self._ready: asyncio.Queue[AgentEnd] = asyncio.Queue()
        # One set-up at a time, so that each session is known to belong to its call.
        self._placing = asyncio.Lock()
        self._flows: set[tuple[Flow, Flow]] = set()
        self._total, self._beyond, self._down = array("q"), array("q"), array("q")
        self._integrity = Integrity()
        self._ways: Counter[str] = Counter()
        self._unclosed = 0
        self._numbers = iter(range(2**32))
        self._over = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.socket(fileno=self._options.agent_fd)
        server = await loop.create_server(lambda: AgentEnd(self._ready.put_nowait), sock=listener)
        self._schedule.run()
        async with server, asyncio.TaskGroup() as group:
            for _ in range(self._options.calls):
                group.create_task(self._caller())
            began = time.monotonic()
            for row in range(1, self._options.rows + 1):
                await asyncio.sleep(began + row * self._options.period - time.monotonic())
                self._report("row")
            self._over.set()
        self._schedule.stop()
        self._report("end")

    async def _caller(self) -> None:
        while not self._over.is_set():
            await self._call(next(self._numbers))

    async def _call(self, number: int) -> None:
        async with self._placing, asyncio.timeout(SET_UP):
            phone = await place_call(self._target)
            ready = asyncio.ensure_future(self._ready.get())
            first: set[asyncio.Future[Any]] = {ready, phone.closed}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                ready.cancel()
                raise WireError("the server ended a call before it had an agent for it")
            agent = ready.result()
        up, down = Flow(number, self._window), Flow(number, self._window)
        phone.uplink = agent.uplink = up
        phone.downlink = agent.downlink = down
        self._flows.add((up, down))
        start = time.monotonic_ns() + self._dice.randrange(FRAME_NS)
        speaking = [
            self._schedule.add(start, phone.speak),
            self._schedule.add(start + FRAME_NS // 2, agent.speak),
        ]
        longest = min(LONGEST, self._options.period)
        stay = self._dice.uniform(min(SHORTEST, longest / 2), longest)
        over = asyncio.ensure_future(self._over.wait())
        await asyncio.wait(
            {over, phone.closed, agent.closed}, timeout=stay, return_when=asyncio.FIRST_COMPLETED
        )
        over.cancel()
        for one in speaking:
            self._schedule.remove(one)
        await self._settle(phone, agent, up, down)
        await self._end(phone, agent)
        self._take(up, down)
        self._flows.discard((up, down))
        self._integrity.add(up.integrity)
        self._integrity.add(down.integrity)

    async def _settle(self, phone: PhoneEnd, agent: AgentEnd, up: Flow, down: Flow) -> None:
        """Wait for frames in flight; one that has not arrived after SETTLE counts as lost."""
        until = time.monotonic() + SETTLE
        while time.monotonic() < until and not (up.complete and down.complete):
            if phone.closed.done() or agent.closed.done():
                return
            await asyncio.sleep(0.01)

    async def _end(self, phone: PhoneEnd, agent: AgentEnd) -> None:
        if phone.closed.done() or agent.closed.done():
            way = "ended unexpectedly"
        else:
            way = self._dice.choice(["hung up"] * 4 + ["line lost", "agent lost"])
        self._ways[way] += 1
        if way == "hung up":
            phone.stop()
        elif way == "agent lost":
            agent.close()
        else:
            phone.abort()
        _, still_open = await asyncio.wait({phone.closed, agent.closed}, timeout=TEAR_DOWN)
        self._unclosed += len(still_open)
        phone.abort()
        agent.abort()

    def _take(self, up: Flow, down: Flow) -> None:
        """Collect the delays of this row so far and clear them in the flows."""
        self._total += up.totals
        self._beyond += up.beyond_framing
        self._down += down.totals
        up.totals, up.beyond_framing, down.totals = array("q"), array("q"), array("q")

    def _report(self, kind: str) -> None:
        for up, down in self._flows:
            self._take(up, down)
        late = sorted(self._schedule.lateness)
        report = {
            "kind": kind,
            "to_agent_ms": _percentiles(self._total),
            "beyond_ms": _percentiles(self._beyond),
            "to_phone_ms": _percentiles(self._down),
            "late_ms": at_share(late, 0.99),
            "integrity": vars(self._integrity),
            "ways": self._ways,
            "unclosed": self._unclosed,
        }
        self._total, self._beyond, self._down = array("q"), array("q"), array("q")
        self._schedule.lateness = array("q")
        print(msgspec.json.encode(report).decode(), flush=True)
        # Here, between two rows, so that it does not delay measured frames.
        gc.collect()


def _percentiles(delays: Sequence[int]) -> list[float]:
    ordered = sorted(delays)
    return [round(at_share(ordered, share), 3) for share in (0.5, 0.99, 1.0)]


# ---- the program ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One period: delays in ms as median, 99th percentile and longest; memory in KB."""

    minute: float
    ended: int
    tasks: int
    descriptors: int
    memory_kb: float
    cpu_ms_per_call_second: float
    to_agent: list[float]
    beyond: list[float]
    to_phone: list[float]
    late: float
    damaged: int


def line(row: Row) -> str:
    """Format a row."""
    up, down = row.beyond, row.to_phone
    return (
        f"{row.minute:6.1f}  {row.ended:6}  {row.tasks:5}  {row.descriptors:4}"
        f"  {row.memory_kb / 1024:6.1f}  {row.cpu_ms_per_call_second:6.1f}"
        f"  {up[0]:6.2f} {up[1]:7.2f}  {down[0]:6.2f} {down[1]:7.2f}"
        f"  {row.late:6.2f}  {row.damaged:7}"
    )


HEAD: Final = (
    "minute   calls  tasks  desc  mem MB  CPU ms  to agent p50/p99  to phone p50/p99"
    "    late  damaged"
)


def drift(rows: Sequence[Row]) -> list[str]:
    """Compare the first half of the rows with the second, without the first row, in which the
    server imports, allocates and fills caches.
    """
    steady = rows[1:]
    if len(steady) < 2:
        return ["drift: too few rows to compare"]
    half = len(steady) // 2
    early, late = steady[:half], steady[-half:]

    def change(name: str, of: Any, unit: str, form: str = ".2f") -> str:
        before, after = (statistics.median(map(of, part)) for part in (early, late))
        return f"{name} {before:{form}} to {after:{form}}{unit}"

    return [
        "drift, first half to second: "
        + ", ".join(
            (
                change("tasks", lambda row: row.tasks, "", ".0f"),
                change("descriptors", lambda row: row.descriptors, "", ".0f"),
                change("memory", lambda row: row.memory_kb / 1024, " MB", ".1f"),
                change("to agent p99", lambda row: row.beyond[1], " ms"),
                change("to phone p99", lambda row: row.to_phone[1], " ms"),
                change("CPU", lambda row: row.cpu_ms_per_call_second, " ms/call-s", ".1f"),
            )
        )
    ]


def judge(end: dict[str, Any], before: tuple[int, int], after: tuple[int, int]) -> list[str]:
    """List what is wrong at the end; `before` and `after` are tasks and descriptors when idle."""
    found = Integrity(**end["integrity"])
    wrong = []
    if found.faults:
        wrong.append(
            f"audio damaged: {found.lost} frames lost, {found.duplicated} duplicated,"
            f" {found.reordered} out of order, {found.foreign} foreign"
        )
    if not found.sent:
        wrong.append("no audio was sent")
    if alone := end["ways"].get("ended unexpectedly", 0):
        wrong.append(f"{alone} calls ended unexpectedly")
    if end["unclosed"]:
        wrong.append(f"{end['unclosed']} sockets were left open")
    if after[0] > before[0]:
        wrong.append(f"{after[0] - before[0]} tasks more than before")
    if after[1] > before[1]:
        wrong.append(f"{after[1] - before[1]} descriptors more than before")
    return wrong


async def soak(options: argparse.Namespace) -> int:
    """Run the soak, print it, and return the exit status."""
    server_core, generator_core = machine.cores()
    facts = machine.facts()
    say = (lambda *_: None) if options.json else partial(print, flush=True)
    say(", ".join(f"{name} {value}" for name, value in facts.items()))
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as agents:
        agents.set_inheritable(True)
        url = f"ws://127.0.0.1:{agents.getsockname()[1]}/v1/agent/converse"
        async with running(url, patience=PATIENCE, core=server_core) as server:
            rows, end, states, complaints = await _run(
                options, server, agents.fileno(), generator_core, say
            )
    before, after = states
    wrong = judge(end, before, after)
    wrong += [f"the server logged: {words}" for words in complaints[:5]]
    frames = end["integrity"]["sent"]
    ways = ", ".join(f"{count} {way}" for way, count in sorted(end["ways"].items()))
    if options.json:
        document = {
            "machine": facts,
            "rows": [asdict(row) for row in rows],
            "frames": end["integrity"],
            "ways": end["ways"],
            "before": before,
            "after": after,
            "wrong": wrong,
        }
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        print(*drift(rows), sep="\n")
        print(f"calls: {ways}; {frames} frames, {Integrity(**end['integrity']).faults} damaged")
        print(
            f"without calls: {before[0]} tasks and {before[1]} descriptors before,"
            f" {after[0]} and {after[1]} after"
        )
    for complaint in wrong:
        print(f"WRONG: {complaint}", file=sys.stderr)
    return 1 if wrong else 0


async def _run(
    options: argparse.Namespace, server: Server, agent_fd: int, core: int | None, say: Any
) -> tuple[list[Row], dict[str, Any], tuple[tuple[int, int], tuple[int, int]], list[str]]:
    before = await server.tasks(), server.descriptors()
    process = await trio.lowlevel.open_process(
        [
            *(sys.executable, "-m", "tests.benchmarks.soak", "--generate"),
            *("--calls", str(options.calls), "--seed", options.seed),
            *("--rows", str(options.rows), "--period", str(options.period)),
            *("--server", server.address, "--agent-fd", str(agent_fd)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=[agent_fd],
    )
    rows: list[Row] = []
    end: dict[str, Any] = {}
    say(f"{options.calls} live calls, {options.rows} rows of {options.period:g} s\n{HEAD}")
    try:
        machine.pin(process.pid, core)
        cpu, at = machine.cpu_seconds(server.pid), time.monotonic()
        async for report in _reports(process, options.period + SLACK):
            if report["kind"] == "end":
                end = report
                continue
            used, now = machine.cpu_seconds(server.pid), time.monotonic()
            row = Row(
                minute=round((len(rows) + 1) * options.period / 60, 2),
                ended=sum(report["ways"].values()),
                tasks=await server.tasks(),
                descriptors=server.descriptors(),
                memory_kb=machine.rss_kb(server.pid),
                cpu_ms_per_call_second=1000 * (used - cpu) / (now - at) / options.calls,
                to_agent=report["to_agent_ms"],
                beyond=report["beyond_ms"],
                to_phone=report["to_phone_ms"],
                late=report["late_ms"],
                damaged=Integrity(**report["integrity"]).faults,
            )
            cpu, at = used, now
            rows.append(row)
            say(line(row))
        await process.wait()
    finally:
        await stop(process)
    if not end:
        raise ServerError(f"the generator ended with {process.returncode} before its report")
    # Kept-alive connections of webhooks are no leak; everything of the calls must be closed.
    await _settled(server, before)
    after = await server.tasks(), server.descriptors()
    complaints = [
        f"{entry['event']} ({entry.get('reason', '')})"
        for entry in server.log()
        if entry["level"] in ("error", "critical")
    ]
    return rows, end, (before, after), complaints


async def _reports(process: trio.Process, patience: float) -> AsyncIterator[dict[str, Any]]:
    """The generator's reports, each within `patience` seconds. Raises ServerError."""
    assert process.stdout is not None
    rest = b""
    while True:
        piece = b""
        with trio.move_on_after(patience) as scope:
            piece = bytes(await process.stdout.receive_some())
        if scope.cancelled_caught:
            raise ServerError(f"the generator printed nothing for {patience:g} s")
        if not piece:
            return
        *whole, rest = (rest + piece).split(b"\n")
        for one in whole:
            yield msgspec.json.decode(one)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.soak",
        description="Run many calls for a long time and show what drifts.",
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--calls", type=int, default=20, help="live calls at any time")
    parser.add_argument("--period", type=float, default=PERIOD, help="seconds of one row")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--agent-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        return _generate(options)
    if options.calls < 1 or options.period <= 0 or options.minutes <= 0:
        parser.error("at least one call, and more than 0 seconds")
    options.rows = max(1, round(options.minutes * 60 / options.period))
    try:
        return trio.run(soak, options)
    except* ServerError as group:
        for error in group.exceptions:
            print(f"soak: {error}", file=sys.stderr)
    return 1


async def _soak(options: argparse.Namespace) -> None:
    await Soak(options).run()


def _generate(options: argparse.Namespace) -> int:
    # A garbage collection between frames would be measured as the server's delay.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=exact_loop) as runner:
            runner.run(_soak(options))
    except* (WireError, OSError, TimeoutError) as group:
        print(f"soak: {group.exceptions[0]!r}", file=sys.stderr)
        os._exit(1)  # without closing the other calls' sockets
    return 0


if __name__ == "__main__":
    sys.exit(main())
