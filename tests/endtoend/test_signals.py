"""SIGTERM, SIGINT and sudden death: real processes, real sockets, live calls.

The server runs as it is run in production, in every way it can be: `bridge serve` with one process
and with two, plain hypercorn with none, one and two workers. The phones and the agent are in the
test. What a server did is read from its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from bridge.simulator.agent import AgentSession, SimulatedAgent
from bridge.simulator.phone import SimulatedPhone
from bridge.simulator.speech import SILENCE
from bridge.simulator.twiml import Hangup, Say
from tests.world import QUIET

# For a machine that does other things at the same time; a test that works needs a few seconds.
PATIENCE = 60.0

# As long as nobody wants it to end: longer than any test.
LONG = 300

# Without silence, so that silence filled in by a stalled machine can be told from it.
WORDS = bytes(range(1, 201)) * 20


@dataclass(frozen=True)
class Mode:
    """A way to run the server: its name, and how many processes carry calls."""

    name: str
    workers: int
    serve: bool

    @property
    def has_parent(self) -> bool:
        return not (self.serve and self.workers == 1) and self.name != "hypercorn -w 0"

    def command(self) -> list[str]:
        if self.serve:
            return [sys.executable, "-c", "from bridge.cli import main; main()", "serve"]
        workers = self.name.rpartition(" ")[2]
        options = ["--worker-class", "trio", "--bind", "127.0.0.1:0", "--workers", workers]
        return [sys.executable, "-m", "hypercorn", *options, "bridge:app"]


SERVE = Mode("serve", 1, serve=True)
SERVE_2 = Mode("serve, 2 workers", 2, serve=True)
HYPERCORN_0 = Mode("hypercorn -w 0", 1, serve=False)
HYPERCORN_1 = Mode("hypercorn -w 1", 1, serve=False)
HYPERCORN_2 = Mode("hypercorn -w 2", 2, serve=False)
ALL = [SERVE, SERVE_2, HYPERCORN_0, HYPERCORN_1, HYPERCORN_2]
WITHOUT_PARENT = [SERVE, HYPERCORN_0]
HYPERCORNS_PARENT = [HYPERCORN_1, HYPERCORN_2]
TWO = [SERVE_2, HYPERCORN_2]


def modes(*wanted: Mode) -> Any:
    return pytest.mark.parametrize("mode", wanted, ids=lambda mode: mode.name)


class Server:
    """A running server. `lines` is its log, `other` whatever else it wrote to standard error."""

    def __init__(self, process: trio.Process, agent: SimulatedAgent) -> None:
        self.process = process
        self.agent = agent
        self.base_url = ""
        self.lines: list[dict[str, Any]] = []
        self.other: list[str] = []
        self._changed = trio.Event()
        self._gone = trio.Event()

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Follow standard error until the last process that has it is gone."""
        rest = b""
        while received := await stream.receive_some():
            *lines, rest = (rest + received).split(b"\n")
            for line in filter(None, lines):
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    self.other.append(line.decode(errors="replace"))
            self._changed.set()
            self._changed = trio.Event()
        self._gone.set()
        self._changed.set()

    async def logged(self, event: str, count: int = 1, **facts: Any) -> dict[str, Any]:
        """Wait for the `count`-th line about an event that has these facts."""
        while True:
            found = self.find(event, **facts)
            if len(found) >= count:
                return found[count - 1]
            assert not self._gone.is_set(), f"{event}: never logged; {self.lines} {self.other}"
            await self._changed.wait()

    def find(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        """The lines about an event (by the beginning of its words) that have these facts."""
        return [
            line
            for line in self.lines
            if line["event"].startswith(event) and facts.items() <= line.items()
        ]

    async def ended(self) -> int:
        """Wait until the server has ended, its workers too; its exit status."""
        status = await self.process.wait()
        await self._gone.wait()
        return status

    async def gone(self) -> None:
        """Wait until no process is left that has our pipe."""
        await self._gone.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        self.process.send_signal(number)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all processes, the parent first, as systemd and terminals do."""
        self.signal(number)
        for pid in self.workers():
            os.kill(pid, number)

    def workers(self) -> list[int]:
        """The processes that carry calls, the oldest first."""
        children = [pid for pid in _children(self.process.pid) if b"tracker" not in _command(pid)]
        return children or [self.process.pid]

    def phone(self) -> SimulatedPhone:
        """Strict: what Twilio would complain about fails the test."""
        return SimulatedPhone(strict=True)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[tuple[SimulatedPhone, AgentSession]]:
        """A call that is on: both sides have heard each other."""
        number = self.agent.opened + 1
        async with self.phone().place_call(self.base_url) as phone:
            session = await self.agent.wait_for_session(number)
            await session.applied.wait()
            await talk(phone, session)
            yield phone, session

    async def get(self, path: str) -> int:
        """The status of a page."""
        host, _, port = self.base_url.removeprefix("http://").partition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = bytes(await stream.receive_some())
        return int(answer.split()[1])


async def talk(phone: SimulatedPhone, session: AgentSession) -> None:
    """Both sides say something, and both are heard."""
    heard, said = phone.heard_seconds, session.received_audio.replace(SILENCE, b"").count(WORDS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(phone.say, WORDS)
        nursery.start_soon(session.say, "words", WORDS)
    await phone.wait_heard(heard + len(WORDS) / 8000)
    while session.received_audio.replace(SILENCE, b"").count(WORDS) <= said:
        await session.wait_until(lambda: True)
        await trio.sleep(0.02)  # audio wakes nobody


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command's name is in brackets, and may have anything in it.
                facts = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(facts[1]) == parent and facts[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def write_config(folder: Path, agent_port: int, mode: Mode, **server: Any) -> None:
    values = {"bind": "127.0.0.1:0", "drain_seconds": LONG, **server}
    if mode.serve:
        values["workers"] = mode.workers
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    (folder / "config.toml").write_text(
        "\n".join(
            [
                "[server]",
                *lines,
                "[deepgram]",
                f'url = "ws://127.0.0.1:{agent_port}/v1/agent/converse"',
                "[logging]",
                'format = "json"',
            ]
        )
    )


@asynccontextmanager
async def running(mode: Mode, folder: Path, **server: Any) -> AsyncIterator[Server]:
    """A server that is ready for calls; whatever happens, nothing of it is left afterwards."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment["DEEPGRAM_API_KEY"] = "dg-test-key-0123456789"
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            agent = SimulatedAgent(behaviour=QUIET)
            port = await nursery.start(agent.serve)
            write_config(folder, port, mode, **server)
            process = await trio.lowlevel.open_process(
                mode.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=environment,
            )
            assert process.stderr is not None
            it = Server(process, agent)
            pids = {process.pid}
            try:
                nursery.start_soon(it.read, process.stderr)
                for number in range(mode.workers):
                    running_on = await it.logged("Running on", number + 1)
                it.base_url = running_on["event"].split()[2]
                if mode is SERVE_2:
                    await it.logged("worker serves", 2)
                pids |= set(it.workers())
                yield it
                assert it.find("call ended", outcome="internal_error") == []
            finally:
                pids |= set(it.workers())
                for line in it.find("worker started"):
                    pids.add(line["pid"])
                for pid in pids:
                    if _command(pid) and b"python" in _command(pid):
                        os.kill(pid, signal.SIGKILL)
                with trio.move_on_after(10, shield=True):
                    await process.wait()
            nursery.cancel_scope.cancel(reason="the test is over")


async def draining(it: Server, workers: int) -> None:
    """Wait until every worker drains: from now on no new call is taken."""
    await it.logged("draining", workers, logger="bridge.server.stopping")


async def assert_refuses_calls(it: Server) -> None:
    assert await it.get("/readyz") == 503
    assert await it.get("/healthz") == 200
    async with it.phone().place_call(it.base_url) as late:
        await late.wait_ended()
    assert [type(verb) for verb in late.verbs] == [Say, Hangup]
    assert late.ending == "completed"


# ---- SIGTERM ------------------------------------------------------------------------------------


@modes(*ALL)
async def test_sigterm_with_nothing_live(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        assert await it.get("/readyz") == 200
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert it.other == []


@pytest.mark.parametrize("everybody", [False, True], ids=["to the parent", "to all processes"])
@modes(*ALL)
async def test_sigterm_lets_a_live_call_go_on(mode: Mode, tmp_path: Path, everybody: bool) -> None:
    """It ends long before drain_seconds are over, because the call does."""
    if everybody and not mode.has_parent:
        return
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            (it.signal_all if everybody else it.signal)(signal.SIGTERM)
            await draining(it, mode.workers if everybody or not mode.has_parent else 1)
            await it.logged("draining", calls=1)
            if mode.workers == 1:
                await assert_refuses_calls(it)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0
        ending = await it.logged("call ended")
        assert ending["outcome"] == "caller_hung_up"
        assert it.other == []
