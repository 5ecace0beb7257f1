"""Servers in processes of their own, run in every way they are run in production.

    async with running(SERVE_2, tmp_path) as server, server.call() as (phone, session):
        server.signal(signal.SIGTERM)

The phones and the agent are in the test; what a server did is read from its log.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from bridge.testing.agent.server import AgentSession, SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.speech import SILENCE
from tests.world import API_TOKEN, AUTH_TOKEN, QUIET

# For a machine that does other things at the same time; a test that works needs a few seconds.
PATIENCE = 60.0

# drain_seconds unless a test chooses them: longer than any test.
LONG = 300

# Without silence, so that silence filled in by a stalled machine can be told from it.
WORDS = bytes(range(1, 201)) * 20


@dataclass(frozen=True)
class Mode:
    """A way to run the server: its name, and how many processes carry calls."""

    name: str
    workers: int
    serve: bool

    def command(self) -> list[str]:
        if self.serve:
            return [sys.executable, "-c", "from bridge.cli import main; main()", "serve"]
        workers = self.name.rpartition(" ")[2]
        options = ["--worker-class", "trio", "--bind", "127.0.0.1:0", "--workers", workers]
        return [sys.executable, "-m", "hypercorn", *options, "bridge.asgi:app"]


SERVE = Mode("serve", 1, serve=True)
SERVE_2 = Mode("serve, 2 workers", 2, serve=True)
HYPERCORN_0 = Mode("hypercorn -w 0", 1, serve=False)
HYPERCORN_1 = Mode("hypercorn -w 1", 1, serve=False)
HYPERCORN_2 = Mode("hypercorn -w 2", 2, serve=False)


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

    async def wrote(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait for the one line beside the log that begins with the pattern."""
        while not (found := [match for line in self.other if (match := pattern.match(line))]):
            assert not self._gone.is_set(), f"{pattern}: never written; {self.other}"
            await self._changed.wait()
        (one,) = found
        return one

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
        children = children_of(self.process.pid)
        # multiprocessing has a helper of its own.
        carrying = [pid for pid in children if b"resource_tracker" not in command_of(pid)]
        return carrying or [self.process.pid]

    def phone(self, *, strict: bool = True) -> SimulatedPhone:
        """Strict: what Twilio would complain about fails the test."""
        return SimulatedPhone(strict=strict, auth_token=AUTH_TOKEN)

    @asynccontextmanager
    async def call(
        self, *, strict: bool = True
    ) -> AsyncIterator[tuple[SimulatedPhone, AgentSession]]:
        """A call that is on: both sides have heard each other."""
        number = self.agent.opened + 1
        async with self.phone(strict=strict).place_call(self.base_url) as phone:
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


Talk = tuple[SimulatedPhone, AgentSession, int]


async def end_of(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """While it lasts, that process does nothing, and what comes in is another's."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while _facts(pid)[0] != "T":  # noqa: ASYNC110  # the kernel tells only its parent
            await trio.sleep(0.01)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def a_call_on_each(it: Server) -> AsyncIterator[tuple[Talk, Talk]]:
    """Two calls on two workers: phone, agent's session and the worker's process of each."""
    first, second = it.workers()
    async with AsyncExitStack() as stack:
        async with stopped(second):
            one = await stack.enter_async_context(it.call(strict=False))
        async with stopped(first):
            other = await stack.enter_async_context(it.call())
        yield (*one, first), (*other, second)


async def talk(phone: SimulatedPhone, session: AgentSession, worker: int = 0) -> None:
    """Both sides say something, and both are heard."""
    heard, said = phone.heard_seconds, session.received_audio.replace(SILENCE, b"").count(WORDS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(phone.say, WORDS)
        nursery.start_soon(session.say, "words", WORDS)
    await phone.wait_heard(heard + len(WORDS) / 8000)
    while session.received_audio.replace(SILENCE, b"").count(WORDS) <= said:  # noqa: ASYNC110
        await trio.sleep(0.02)  # audio wakes nobody


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _facts(pid: int) -> list[str]:
    """State, parent and so on of a process; the state of one that is gone is X."""
    try:
        # The command's name is in brackets, and may have anything in it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def children_of(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    facts = {pid: _facts(pid) for pid in pids}
    return sorted(pid for pid in pids if facts[pid][0] not in "ZX" and facts[pid][1] == str(parent))


def write_config(folder: Path, agent_port: int, mode: Mode, more: str = "", **server: Any) -> None:
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
                more,
            ]
        )
    )


@asynccontextmanager
async def running(
    mode: Mode,
    folder: Path,
    *,
    agent: SimulatedAgent | None = None,
    more: str = "",
    prefix: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
    **server: Any,
) -> AsyncIterator[Server]:
    """A server that is ready for calls; whatever happens, nothing of it is left afterwards.

    `more` is appended to its configuration, whose last table is `[logging]`; `prefix` goes before
    its command and `env` into its environment.
    """
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment["DEEPGRAM_API_KEY"] = "dg-test-key-0123456789"
    environment["TWILIO_AUTH_TOKEN"] = AUTH_TOKEN
    environment["BRIDGE_API_TOKEN"] = API_TOKEN
    environment.update(env or {})
    with trio.fail_after(patience):
        async with trio.open_nursery() as nursery:
            agent = agent or SimulatedAgent(behaviour=QUIET)
            port = await nursery.start(agent.serve)
            write_config(folder, port, mode, more, **server)
            process = await trio.lowlevel.open_process(
                [*prefix, *mode.command()],
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
                    if command_of(pid) and b"python" in command_of(pid):
                        os.kill(pid, signal.SIGKILL)
                with trio.move_on_after(10, shield=True):
                    await process.wait()
            nursery.cancel_scope.cancel(reason="the test is over")
