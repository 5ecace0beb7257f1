"""A deploy under load: two servers behind HAProxy are restarted, one after the other, while phones
keep calling, and the callers' view of it is recorded.

    python -m tests.benchmarks.rolling [--calls 600] [--callers 40] [--seconds 10] [--rounds 3]
                                       [--busy] [--freeze 7]

Only phones and agents are simulated: `bridge serve` runs twice with one PostgreSQL database, behind
Debian's HAProxy with deploy/haproxy.cfg, with signed webhooks and tickets. The head and the body of
a webhook come in two segments. Each caller places a call, talks for `--seconds` while the agent
talks too, hangs up (in every fourth call the agent does) and calls again. A restart does what a
deploy does: SIGTERM, wait until the server has exited, start it, wait until /readyz answers 200 and
HAProxy calls it UP. Every byte that was said must be heard, both ways.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import trio

from bridge.records.store import Store
from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.phone.phone import (
    CallEndedError,
    PhoneTimeoutError,
    SimulatedPhone,
    TwimlError,
    WebhookError,
)
from bridge.testing.phone.twiml import ConnectStream, Hangup
from bridge.testing.speech import SILENCE
from tests.haproxy import HAProxy, haproxy
from tests.integration.records.postgres import cluster
from tests.ports import free_port

TOKEN = "twilio-token-of-the-rolling-test"
QUIET = Behaviour(greeting="", hears=False, latency_every=0, idle_timeout=0)

# A start takes seconds on a busy machine, a drain as long as the longest call.
PATIENCE = 90.0

# Deadline for the last audio to arrive, generous for a busy machine.
ARRIVES = 30.0

# From the head of a webhook to its body, in seconds: long enough for two segments.
APART = 0.05

# Interval of polling where there is no event to wait for.
CHECKED = 0.05


@dataclass
class Figures:
    """The callers' view, and what the servers did meanwhile."""

    calls: int = 0
    caller_seconds: float = 0.0
    agent_seconds: float = 0.0
    setups: list[float] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    restarts: list[tuple[str, int, float]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    dropped_bytes: int = 0
    reconnects: int = 0

    @property
    def complaints(self) -> list[str]:
        return [*self.refused, *self.cut, *self.lost, *self.faults]

    def print(self) -> None:
        for name, calls, took in self.restarts:
            print(f"restart of {name}: {calls} calls on it, ended {took:.1f} s after SIGTERM")
        said = (
            f"{self.caller_seconds:.0f} s said by callers, {self.agent_seconds:.0f} s by the agent"
        )
        print(f"calls: {self.calls} ({dict(self.outcomes)}), {said}")
        setups = sorted(self.setups)
        print(f"webhook to media socket: median {statistics.median(setups):.3f} s, ", end="")
        print(f"longest {setups[-1]:.3f} s")
        print(f"webhooks refused: {len(self.refused)}; calls cut: {len(self.cut)}; ", end="")
        print(
            f"calls with audio lost: {len(self.lost)} ({self.dropped_bytes} bytes dropped); ",
            end="",
        )
        print(f"faults Twilio would report: {len(self.faults)}; ", end="")
        print(f"agent sessions opened anew: {self.reconnects}")
        for complaint in self.complaints[:20]:
            print(f"  {complaint}", file=sys.stderr)


def words(seed: str, seconds: float) -> bytes:
    """Make speech unique to this seed, without a byte of silence, in whole 20 ms frames."""
    size = round(seconds * 50) * 160
    noise = random.Random(seed).randbytes(size)
    return noise.replace(SILENCE, b"\x01")


class Server:
    """One `bridge serve`, which can be restarted on its address."""

    def __init__(self, name: str, folder: Path, database: str, agent_port: int) -> None:
        self.name = name
        self.address = f"127.0.0.1:{free_port()}"
        self._folder = folder / name
        self._folder.mkdir()
        (self._folder / "config.toml").write_text(
            f'[server]\nbind = "{self.address}"\ndrain_seconds = 300\n'
            f'[deepgram]\nurl = "ws://127.0.0.1:{agent_port}/v1/agent/converse"\n'
            f'[records]\nurl = "{database}"\n'
            '[logging]\nformat = "json"\nlevel = "info"\n'
            # On a busy machine the simulated people talk slowly; that must not end calls.
            "[call]\nidle_seconds = 600\nstall_seconds = 600\n"
            # The prompt tells the simulated agent which caller it talks to.
            '[agent.listen.provider]\ntype = "deepgram"\nmodel = "nova-3"\n'
            '[agent.think]\nprompt = "{caller}"\n'
            '[agent.think.provider]\ntype = "open_ai"\nmodel = "gpt-4o-mini"\n'
            '[agent.speak.provider]\ntype = "deepgram"\nmodel = "aura-2-thalia-en"\n'
        )
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it is ready for calls."""
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {"DEEPGRAM_API_KEY": "dg-test-key", "TWILIO_AUTH_TOKEN": TOKEN}
        with (self._folder / "log").open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                [sys.executable, "-c", "from bridge.cli import main; main()", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self._folder,
                env=environment,
            )
        while not await self._ready():
            assert self._process.poll() is None, self.log()[-1:]
            await trio.sleep(CHECKED)

    async def stop(self) -> tuple[int, float]:
        """Stop it with SIGTERM; return its number of calls then and the seconds until it exited."""
        assert self._process is not None
        began = trio.current_time()
        self.signal(signal.SIGTERM)
        status = await self._process.wait()
        took = trio.current_time() - began
        assert status == 0, f"{self.name} ended with {status}"
        drains = [line for line in self.log() if line.get("event") == "draining"]
        return drains[-1]["calls"], took

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def log(self) -> list[dict[str, Any]]:
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def _ready(self) -> bool:
        async with httpx.AsyncClient() as client:
            try:
                answer = await client.get(f"http://{self.address}/readyz", timeout=5)
            except httpx.HTTPError:
                return False
        return answer.status_code == 200


class Rolling:
    """The callers, and the restarts between them."""

    def __init__(self, load: Load) -> None:
        self.figures = Figures()
        self.agent = SimulatedAgent(self._speak, QUIET)
        self._seconds = load.seconds
        self._numbers = count()
        # Several for one call if a session was lost and bridge opened another.
        self._sessions: dict[str, list[AgentSession]] = {}
        self._said: dict[str, trio.Event] = {}
        self._over = trio.Event()

    async def _speak(self, agent: AgentSession) -> None:
        """Play the agent of one call: talk, and hang up if this call ends that way."""
        await agent.applied.wait()
        assert agent.settings is not None
        caller = agent.settings["agent"]["think"]["prompt"]
        self._sessions.setdefault(caller, []).append(agent)
        await agent.say(caller, words("agent" + caller, self._seconds))
        if ends_with_agent(caller):
            # The caller's task knows when everything has been said and heard.
            await self._said[caller].wait()
            await agent.call_functions([{"name": "end_call"}])
            await agent.close()

    async def placed(self, calls: int) -> None:
        """Wait until so many calls have been placed."""
        while self.figures.calls < calls:  # noqa: ASYNC110  # no event tells it
            await trio.sleep(CHECKED)

    async def caller(self, front: str) -> None:
        """Place one call after another until `enough` is called."""
        await trio.sleep(random.uniform(0, self._seconds))
        while not self._over.is_set():
            number = f"+1555{next(self._numbers):07}"
            try:
                await self._call(front, number)
            except (WebhookError, TwimlError) as error:
                self.figures.refused.append(f"{number}: {error}")
            except (CallEndedError, PhoneTimeoutError) as error:
                self.figures.cut.append(f"{number}: {error}")

    async def _call(self, front: str, number: str) -> None:
        figures, part = self.figures, words("agent" + number, self._seconds)
        said = self._said[number] = trio.Event()
        phone = SimulatedPhone(from_number=number, auth_token=TOKEN, webhook_pause=APART)
        figures.calls += 1
        began = trio.current_time()
        speech = words("caller" + number, self._seconds)
        async with phone.place_call(front) as phone:
            if [type(verb) for verb in phone.verbs] != [ConnectStream]:
                figures.refused.append(f"{number}: {phone.verbs}")
                return
            figures.setups.append(trio.current_time() - began)
            await phone.say(speech)
            await phone.wait_heard(self._seconds)
            with trio.move_on_after(ARRIVES):
                while self._heard_of(number) != speech:  # noqa: ASYNC110  # audio has no event
                    await trio.sleep(CHECKED)
            if ends_with_agent(number):
                said.set()
                await phone.wait_ended()
            else:
                await phone.hang_up()
        if ends_with_agent(number):
            verbs, ending = [ConnectStream, Hangup], "completed"
        else:
            verbs, ending = [ConnectStream], "caller_hung_up"
        if [type(verb) for verb in phone.verbs] != verbs or phone.ending != ending:
            figures.cut.append(f"{number}: {phone.ending}, {phone.verbs}")
        figures.faults += [f"{number}: {fault}" for fault in phone.faults]
        figures.caller_seconds += len(speech) / 8000
        figures.agent_seconds += len(part) / 8000
        if not phone.received_audio.endswith(part):
            figures.lost.append(f"{number}: {len(phone.received_audio)} of {len(part)} heard")
        if (got := self._heard_of(number)) != speech:
            figures.lost.append(f"{number}: the agent heard {len(got)} of {len(speech)}")
        del self._sessions[number], self._said[number]

    def _heard_of(self, number: str) -> bytes:
        """Return the caller's speech as the agent received it, without silence."""
        sessions = self._sessions.get(number, ())
        return b"".join(bytes(one.received_audio) for one in sessions).replace(SILENCE, b"")

    def enough(self) -> None:
        """Let no further call begin."""
        self._over.set()


def ends_with_agent(caller: str) -> bool:
    """Whether the agent ends this call: every fourth, since that adds a webhook to the call."""
    return int(caller[1:]) % 4 == 0


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with a process that wants it as much as the servers do."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Load:
    """So many callers place at least so many calls of so many seconds each. Meanwhile both servers
    are restarted `rounds` times, and at last frozen for `freeze` seconds, in which more callers
    begin to call. `busy`: beside processes that keep every core busy."""

    calls: int = 600
    callers: int = 40
    seconds: float = 10.0
    rounds: int = 3
    freeze: float = 0.0
    busy: bool = False


async def run(load: Load) -> Figures:
    """Restart both servers under this load."""
    folder = Path(tempfile.mkdtemp(prefix="bridge-rolling-"))
    with cluster() as database:
        try:
            async with trio.open_nursery() as nursery:
                rolling = Rolling(load)
                port = await nursery.start(rolling.agent.serve)
                servers = [Server(name, folder, database.url, port) for name in "ab"]
                try:
                    # In sequence: the first creates the tables.
                    for server in servers:
                        await server.start()
                    async with haproxy(*(server.address for server in servers)) as proxy:
                        with busy_cores() if load.busy else nullcontext():
                            await _restart_under_load(rolling, servers, proxy, load)
                    nursery.cancel_scope.cancel(reason="done")
                finally:
                    for server in servers:
                        server.kill()
            figures = rolling.figures
            store = Store(database.url)
            for record in store.list_calls(limit=100_000):
                figures.outcomes[record.outcome] += 1
                figures.dropped_bytes += record.dropped_bytes
                figures.reconnects += record.reconnects
            store.close()
        finally:
            shutil.rmtree(folder)
    return figures


async def _restart_under_load(
    rolling: Rolling, servers: list[Server], proxy: HAProxy, load: Load
) -> None:
    for server in servers:
        await proxy.wait_state(server.name, "UP")
    async with trio.open_nursery() as nursery:
        for _ in range(load.callers):
            nursery.start_soon(rolling.caller, f"http://{proxy.front}")
        # Evenly spread over the calls.
        restarts = [server for _ in range(load.rounds) for server in servers]
        for number, server in enumerate(restarts):
            await rolling.placed(max(load.callers, number * load.calls // len(restarts)))
            with trio.fail_after(PATIENCE):
                had, took = await server.stop()
                rolling.figures.restarts.append((server.name, had, took))
                # Both are needed before the next: that it is ready, and that HAProxy knows.
                await server.start()
                await proxy.wait_state(server.name, "UP")
        if load.freeze:
            # Callers whose calls are frozen do not call again.
            for _ in range(math.ceil(load.callers / 4)):
                nursery.start_soon(rolling.caller, f"http://{proxy.front}")
            await _freeze(servers, load.freeze)
        await rolling.placed(load.calls)
        rolling.enough()
    for server in servers:
        await server.stop()


async def _freeze(servers: list[Server], seconds: float) -> None:
    """Suspend both servers for so long."""
    for server in servers:
        server.signal(signal.SIGSTOP)
    try:
        await trio.sleep(seconds)
    finally:
        for server in servers:
            server.signal(signal.SIGCONT)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="rolling", description="A deploy under load.")
    parser.add_argument("--calls", type=int, default=Load.calls)
    parser.add_argument("--callers", type=int, default=Load.callers)
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="of each call")
    parser.add_argument("--rounds", type=int, default=Load.rounds, help="restarts of each server")
    parser.add_argument("--freeze", type=float, default=0, help="seconds, at last, both servers")
    parser.add_argument("--busy", action="store_true", help="keep every core busy")
    figures = trio.run(run, Load(**vars(parser.parse_args())))
    figures.print()
    if figures.complaints or figures.dropped_bytes:
        sys.exit(1)


if __name__ == "__main__":
    main()
