"""Many calls, each ended in a random way, and what the server still holds afterwards.

    python -m tests.benchmarks.churn [--calls 1000] [--at-once 20] [--seed 1]

The server is `bridge serve` in a process of its own, on real sockets; this process simulates phones
and agents. Phones hang up, lose their connection, reset it, close half of it or stop answering, at
any moment from the webhook on; agents refuse, stay silent, fail, close, reset, never answer, never
close. Afterwards the idle server must look as it did before the first call. The exit status is 1 if
it holds a descriptor, a task, a call or memory, or has logged a traceback.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.load import machine
from bridge.testing.phone.phone import SimulatedPhone, TwimlError, WebhookError
from tests.benchmarks.server import (
    LOOPBACK,
    START_SECONDS,
    ServerError,
    environment,
    stop,
)
from tests.endtoend.scene import Line
from tests.ports import free_port
from tests.world import AUTH_TOKEN, QUIET, open_media_socket

SETTLE_SECONDS: Final = 30.0
"""Deadline for the last calls to end, after the last phone has disconnected."""

REPORT_EVERY: Final = 100
IDLE_SECONDS: Final = 3.0
IDLE_CPU: Final = 0.02
"""The share of a core that an idle server may use; its watchdog reads the clock."""

GROWTH_KB: Final = 8 * 1024
"""The growth of the server's memory that is allowed after the first quarter of calls. The
allocator's noise is a few MB; a thousand leaked calls would be hundreds."""

_COMMAND: Final = (
    sys.executable,
    "-c",
    "from tests.benchmarks.churn import serve; serve()",
    "serve",
)

TEARDOWN_SECONDS: Final = 1.0
CONNECT_TIMEOUT: Final = 1.0

STORY: Final = bytes(n % 251 for n in range(8000 * 5))


# ---- random peers -------------------------------------------------------------------------------


def agents_behaviour(seed: str) -> Callable[[int], Behaviour]:
    """Choose the agent's behaviour on its n-th connection."""

    def choose(number: int) -> Behaviour:
        dice = random.Random(f"{seed} agent {number}")
        knobs: dict[str, Any] = {"linger": 5.0, "speed": dice.choice([0.0, 1.0, 4.0])}
        if dice.random() < 0.4:
            knobs |= dice.choice(
                [
                    {"reject_status": 401},
                    {"reject_status": 429},
                    {"reject_status": 500},
                    {"answers_handshake": False},
                    {"sends_welcome": False},
                    {"applies_settings": False},
                    {"settings_error": "INVALID_SETTINGS"},
                    {"settings_applied_delay": 0.3},
                    {"answers_close": False},
                    {"closes_tcp": False},
                    {"stops_reading_after": 0.1, "linger": 1.5},
                ]
            )
        return msgspec.structs.replace(QUIET, **knobs)

    return choose


def agents_script(seed: str) -> Callable[[AgentSession], Any]:
    """Choose what the agent does in its n-th session."""

    async def act(agent: AgentSession) -> None:
        dice = random.Random(f"{seed} session {agent.number}")
        if dice.random() < 0.7:
            await agent.say("Once upon a time. There was a call.", STORY[: dice.randrange(40_000)])
        await trio.sleep(dice.uniform(0, 0.5))
        match dice.randrange(8):
            case 0:
                await agent.close(dice.choice([1000, 1011]))
            case 1:
                await agent.reset()
            case 2:
                await agent.error("INTERNAL_SERVER_ERROR", close=dice.random() < 0.5)
            case 3:
                await agent.call_functions([{"name": "look_it_up"}])
            case 4:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(agent.say, "A story.", STORY)
                    await trio.sleep(0.1)
                    await agent.user_started_speaking()
            case _:
                pass

    return act


async def random_call(address: str, dice: random.Random) -> str:
    """Place a call and end it in a random way after a random time; return the way."""
    lines: list[Line] = []

    async def open_line(host: str, port: int, tls: bool = False) -> Line:
        lines.append(Line(await trio.open_tcp_stream(host, port)))
        return lines[-1]

    way = dice.choice(
        ["hang up"] * 4 + ["wait"] * 2 + ["drop", "reset", "half close", "vanish", "deaf", "early"]
    )
    stay = dice.uniform(0, 0.8)
    if way == "early":
        await _leave_early(await open_line(*_host_and_port(address)), dice)
        return way
    phone = SimulatedPhone(
        open_stream=open_line, silence_frames=dice.random() < 0.8, auth_token=AUTH_TOKEN
    )
    try:
        async with phone.place_call(address):
            with trio.move_on_after(stay):
                await phone.wait_ended()
            if phone.ending is None:
                await _leave(phone, lines[-1], way)
    except (WebhookError, TwimlError):
        return "refused"
    return way


async def _leave(phone: SimulatedPhone, line: Line, way: str) -> None:
    match way:
        case "hang up":
            await phone.hang_up()
        case "drop":
            await phone.drop()
        case "wait":
            with trio.move_on_after(2.0):
                await phone.wait_ended()
        case "reset":
            line.reset()
            await phone.drop()
        case "half close":
            line.half_close()
            with trio.move_on_after(2.0):
                await line.over.wait()
            await phone.drop()
        case "deaf":
            line.stop_reading()
            await phone.hang_up()
        case "vanish":
            line.vanish()
            with trio.move_on_after(1.0):
                await phone.wait_ended()
            line.reset()
            await phone.drop()


async def _leave_early(line: Line, dice: random.Random) -> None:
    """Open the media socket and disconnect before `start`, or before the upgrade is answered."""
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(dice.choice([0.0, 0.002, 1.0])):
                socket = await open_media_socket(nursery, line, "bridge")
                await socket.send_message('{"event":"connected"}')
            if dice.random() < 0.5:
                line.reset()
            nursery.cancel_scope.cancel(reason="leaving early")
    except* Exception:
        pass  # how the library reports the disconnect does not matter here
    finally:
        await trio.aclose_forcefully(line)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition("/")[2].partition(":")
    return host, int(port)


@dataclass
class Churn:
    """Calls `address`, `at_once` calls at a time. `ways` counts how the calls ended."""

    address: str
    at_once: int
    seed: str
    begun: int = 0
    done: int = 0
    ways: Counter[str] = field(default_factory=Counter)

    async def run(self, calls: int, on_done: Callable[[int], None] = lambda done: None) -> None:
        """Make `calls` calls. `on_done` gets the number of calls made so far, after each."""

        async def caller() -> None:
            while self.begun < last:
                self.begun += 1
                dice = random.Random(f"{self.seed} phone {self.begun}")
                self.ways[await random_call(self.address, dice)] += 1
                self.done += 1
                on_done(self.done)

        last = self.begun + calls
        async with trio.open_nursery() as nursery:
            for _ in range(self.at_once):
                nursery.start_soon(caller)


# ---- the server ---------------------------------------------------------------------------------


def serve() -> None:
    """Run `bridge serve`, which on SIGUSR1 also prints its number of tasks."""
    from bridge.cli import main

    def count(*_: object) -> None:
        # Python runs signal handlers in the main thread, which is Trio's.
        print(trio.lowlevel.current_statistics().tasks_living, flush=True)

    signal.signal(signal.SIGUSR1, count)
    main()


@dataclass(frozen=True)
class Server:
    """The server under test, as seen from outside."""

    pid: int
    address: str
    folder: Path

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def tasks(self) -> int:
        """Return its number of Trio tasks."""
        told = self.folder / "stdout"
        before = told.read_text()
        os.kill(self.pid, signal.SIGUSR1)
        with trio.fail_after(10):
            while not (more := told.read_text()[len(before) :]).endswith("\n"):  # noqa: ASYNC110
                await trio.sleep(0.01)
        return int(more)

    async def metrics(self) -> dict[str, float]:
        """GET /metrics, by series."""
        stream = await trio.open_tcp_stream(*_host_and_port(self.address))
        async with stream:
            request = b"GET /metrics HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n\r\n"
            await stream.send_all(request)
            answer = b""
            with trio.fail_after(10):
                while piece := await stream.receive_some():
                    answer += piece
        lines = answer.partition(b"\r\n\r\n")[2].decode().splitlines()
        pairs = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    def log(self) -> list[dict[str, Any]]:
        """Return its log so far; a line that is not JSON comes from a crash."""
        lines = []
        for line in (self.folder / "stderr").read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"event": line, "level": "critical"})
        return lines


@asynccontextmanager
async def running(
    agent_url: str, *, patience: float = CONNECT_TIMEOUT, core: int | None = None
) -> AsyncIterator[Server]:
    """Start a server whose agent is at `agent_url`; stop it on leaving.

    `patience` is the server's timeout, in seconds, for agents to connect and for phones to send
    `start`.
    """
    with tempfile.TemporaryDirectory(prefix="bridge-churn-") as directory:
        folder = Path(directory)
        address = f"{LOOPBACK}:{free_port()}"
        config = folder / "config.toml"
        config.write_text(
            f'[server]\nbind = "{address}"\nmax_calls = 400\n'
            f'[deepgram]\nurl = "{agent_url}"\nconnect_timeout = {patience}\n'
            f"connect_budget = {max(8.0, 2 * patience)}\n"
            f'[records]\nurl = "sqlite:///{folder}/calls.db"\n'
            f"[call]\nteardown_seconds = {TEARDOWN_SECONDS}\nstart_timeout = {patience}\n"
            '[logging]\nlevel = "info"\nformat = "json"\n'
        )
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as errors:
            process = await trio.lowlevel.open_process(
                _COMMAND,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                cwd=Path.cwd(),
                env=environment(config, AUTH_TOKEN),
            )
        server = Server(process.pid, f"http://{address}", folder)
        machine.pin(process.pid, core)
        try:
            with trio.fail_after(START_SECONDS):
                while process.poll() is None:
                    with suppress(OSError):
                        await server.metrics()
                        break
                    await trio.sleep(0.05)
            if process.poll() is None:
                yield server
            if process.poll() is not None:
                last = (folder / "stderr").read_text()[-1000:]
                raise ServerError(f"the server ended with {process.returncode}: {last}")
        finally:
            await stop(process)


# ---- the program --------------------------------------------------------------------------------


async def churn(calls: int, at_once: int, seed: str) -> list[str]:
    """Run the churn, print its course, and return what is wrong with the server."""
    async with trio.open_nursery() as nursery:
        agent = SimulatedAgent(agents_script(seed), agents_behaviour(seed), keep_sessions=1)
        port = await nursery.start(agent.serve)
        async with running(f"ws://127.0.0.1:{port}/v1/agent/converse") as server:
            # Allocations that only the first calls make are no leak.
            warm = Churn(server.address, 1, f"{seed} warm-up")
            await warm.run(5)
            await _settled(server)
            wrong = await _measure(server, Churn(server.address, at_once, seed), calls)
        nursery.cancel_scope.cancel(reason="done")
    return wrong


async def _measure(server: Server, calls: Churn, number: int) -> list[str]:
    before = await server.tasks(), server.descriptors()
    counted = Counter(line.get("outcome") for line in _endings(server))
    memory = [machine.rss_kb(server.pid)]
    print(f"before: {before[0]} tasks, {before[1]} descriptors, {memory[0] / 1024:.1f} MB")
    began, cpu = time.monotonic(), machine.cpu_seconds(server.pid)

    def on_done(done: int) -> None:
        if done % REPORT_EVERY == 0:
            memory.append(machine.rss_kb(server.pid))
            print(f"{done:6} calls: {memory[-1] / 1024:.1f} MB, {server.descriptors()} descriptors")

    await calls.run(number, on_done)
    settled = await _settled(server, before)
    seconds = time.monotonic() - began
    cpu = machine.cpu_seconds(server.pid) - cpu
    after = await server.tasks(), server.descriptors()
    metrics = await server.metrics()
    idle = machine.cpu_seconds(server.pid)
    await trio.sleep(IDLE_SECONDS)
    idle = (machine.cpu_seconds(server.pid) - idle) / IDLE_SECONDS
    memory.append(machine.rss_kb(server.pid))

    endings = _endings(server)
    outcomes = Counter(line.get("outcome") for line in endings) - counted
    alarms = [line for line in server.log() if line["level"] in ("error", "critical")]
    tracebacks = [line for line in server.log() if "Traceback" in json.dumps(line)]
    early = len(memory) // 4
    growth = memory[-1] - memory[early] if len(memory) > 4 else 0.0
    print(f"after:  {after[0]} tasks, {after[1]} descriptors, {memory[-1] / 1024:.1f} MB")
    print(f"phones: {_listed(calls.ways)}")
    print(f"calls:  {_listed(outcomes)}; {metrics['bridge_calls_active']:.0f} live")
    print(f"teardown: {_slowest(metrics)}")
    print(f"memory: {growth:+.0f} KB since the first quarter")
    print(
        f"{seconds:.1f} s, {1000 * cpu / number:.1f} ms of CPU a call, idle: {idle:.2%} of a core"
    )

    wrong = []
    if not settled or after[0] > before[0]:
        wrong.append(f"{after[0] - before[0]} tasks more than before")
    if after[1] > before[1]:
        wrong.append(f"{after[1] - before[1]} descriptors more than before")
    if metrics["bridge_calls_active"]:
        wrong.append("calls are still live")
    if growth > GROWTH_KB:
        wrong.append("the memory grows")
    if idle > IDLE_CPU:
        wrong.append("the idle server is busy")
    wrong += [f"logged at {line['level']}: {_in_short(line)}" for line in alarms]
    wrong += [f"a traceback: {_in_short(line)}" for line in tracebacks if line not in alarms]
    return wrong


async def _settled(server: Server, like: tuple[int, int] = (10**6, 10**6)) -> bool:
    """Wait until no call is live and the server has no more tasks and descriptors than `like`.

    Returns False after SETTLE_SECONDS.
    """
    with trio.move_on_after(SETTLE_SECONDS):
        while True:
            metrics = await server.metrics()
            now = await server.tasks(), server.descriptors()
            if not metrics["bridge_calls_active"] and now[0] <= like[0] and now[1] <= like[1]:
                return True
            await trio.sleep(0.1)
    return False


def _endings(server: Server) -> list[dict[str, Any]]:
    return [line for line in server.log() if line["event"] == "call ended"]


def _slowest(metrics: dict[str, float]) -> str:
    """What the histogram of teardowns says of the slowest of them."""
    name = "bridge_teardown_seconds"
    count = metrics.get(f"{name}_count", 0.0)
    bounds = sorted(
        (float(series.partition('le="')[2].rstrip('"}')), value)
        for series, value in metrics.items()
        if series.startswith(f"{name}_bucket")
    )
    most = next((bound for bound, value in bounds if value >= count), math.inf)
    mean = metrics.get(f"{name}_sum", 0.0) / count if count else 0.0
    return f"{count:.0f}, mean {mean:.3f} s, all within {most:g} s"


def _in_short(line: dict[str, Any]) -> str:
    """A line of the log, with the last words of its traceback."""
    facts = [line["event"], line.get("outcome"), line.get("reason")]
    words = [part for part in str(line.get("exception", "")).splitlines() if "Error" in part]
    return ", ".join(str(fact) for fact in [*facts, *words[-1:]] if fact)[:300]


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def main() -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.churn")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--seed", default="1")
    options = parser.parse_args()
    wrong: list[str] = []
    try:
        wrong = trio.run(partial(churn, options.calls, options.at_once, options.seed))
    except* ServerError as group:
        wrong += map(str, group.exceptions)
    for complaint in wrong:
        print(f"WRONG: {complaint}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
