"""SIGTERM, SIGINT and sudden death: real processes, real sockets, live calls.

The server runs as it is run in production, in every way it can be: `bridge serve` with one process
and with two, plain hypercorn with none, one and two workers. The phones and the agent are in the
test. What a server did is read from its log.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from bridge.server.stopping import SAME_REQUEST_SECONDS
from bridge.testing.agent.server import AgentSession, SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say
from bridge.testing.speech import SILENCE
from tests.world import AUTH_TOKEN, QUIET

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
ALL = [SERVE, SERVE_2, HYPERCORN_0, HYPERCORN_1, HYPERCORN_2]
HYPERCORNS_PARENT = [HYPERCORN_1, HYPERCORN_2]
TWO = [SERVE_2, HYPERCORN_2]


WITH_PARENT = [SERVE_2, HYPERCORN_1, HYPERCORN_2]


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
        children = _children(self.process.pid)
        # multiprocessing has a helper of its own.
        carrying = [pid for pid in children if b"resource_tracker" not in _command(pid)]
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


def _command(pid: int) -> bytes:
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


def _children(parent: int) -> list[int]:
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
                    if _command(pid) and b"python" in _command(pid):
                        os.kill(pid, signal.SIGKILL)
                with trio.move_on_after(10, shield=True):
                    await process.wait()
            nursery.cancel_scope.cancel(reason="the test is over")


async def draining(it: Server, workers: int) -> None:
    """Wait until so many workers drain: they take no new calls."""
    await it.logged("draining", workers, logger="bridge.server.stopping")


async def assert_refuses_calls(it: Server) -> None:
    assert await it.get("/readyz") == 503
    assert await it.get("/healthz") == 200
    async with it.phone().place_call(it.base_url) as late:
        await late.wait_ended()
    assert [type(verb) for verb in late.verbs] == [Say, Hangup]
    assert late.ending == "completed"


def assert_was_shut_down(phone: SimulatedPhone) -> None:
    """The call ended from our side, and what Twilio asked then was answered."""
    assert [type(verb) for verb in phone.verbs] == [ConnectStream, Hangup]
    assert phone.ending == "completed"


def told_goodbye(session: AgentSession) -> bool:
    return any(message["type"] == "InjectAgentMessage" for _, message in session.messages)


# ---- SIGTERM ------------------------------------------------------------------------------------


@modes(*ALL)
async def test_sigterm_with_nothing_live(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        assert await it.get("/readyz") == 200
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert it.other == []


@pytest.mark.parametrize(
    ("mode", "everybody"),
    [*((mode, False) for mode in ALL), *((mode, True) for mode in WITH_PARENT)],
    ids=lambda value: value.name if isinstance(value, Mode) else "all" if value else "one",
)
async def test_sigterm_lets_a_live_call_go_on(mode: Mode, everybody: bool, tmp_path: Path) -> None:
    """And the server ends when it ends. `everybody`: all processes get it, as from systemd."""
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            (it.signal_all if everybody else it.signal)(signal.SIGTERM)
            await draining(it, mode.workers)
            await assert_refuses_calls(it)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0
        assert it.find("call ended") == it.find("call ended", outcome="caller_hung_up")
        assert not told_goodbye(session)
        assert it.other == []


@modes(*ALL)
async def test_when_drain_seconds_are_over_the_agent_says_goodbye(
    mode: Mode, tmp_path: Path
) -> None:
    async with running(mode, tmp_path, drain_seconds=1) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGTERM)
            await session.wait_until(lambda: told_goodbye(session))
            await phone.wait_ended()
        assert_was_shut_down(phone)
        assert phone.heard_seconds > len(WORDS) / 8000
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="server_shutdown")) == 1
        assert it.other == []


@modes(SERVE, SERVE_2, HYPERCORN_0)
async def test_a_second_sigterm_ends_the_calls_at_once(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGTERM)
            await draining(it, mode.workers)
            await trio.sleep(SAME_REQUEST_SECONDS + 0.1)  # sooner, and it is the same request
            it.signal(signal.SIGTERM)
            await phone.wait_ended()
        assert_was_shut_down(phone)
        assert not told_goodbye(session)
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="server_shutdown")) == 1
        assert it.other == []


@modes(*HYPERCORNS_PARENT)
async def test_hypercorns_parent_cannot_stop_its_workers_at_once(
    mode: Mode, tmp_path: Path
) -> None:
    """However often SIGTERM comes, and to whom: the call goes on."""
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            for _ in range(3):
                it.signal_all(signal.SIGTERM)
                await trio.sleep(SAME_REQUEST_SECONDS + 0.1)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


@modes(*TWO)
async def test_with_calls_on_both_workers_neither_is_cut(mode: Mode, tmp_path: Path) -> None:
    """The first worker ends when its call does. Hypercorn's parent then wants the other's end."""
    async with running(mode, tmp_path) as it, a_call_on_each(it) as (one, other):
        it.signal(signal.SIGTERM)
        await draining(it, 2)
        await talk(*one)
        await talk(*other)
        await one[0].hang_up()
        await end_of(one[2])
        await talk(*other)
        await assert_refuses_calls(it)
        await other[0].hang_up()
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 2
        assert it.other == []


# ---- SIGINT -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "everybody", "status"),
    [
        (SERVE, False, 130),
        (SERVE_2, False, 130),
        (SERVE_2, True, 130),
        (HYPERCORN_0, False, 0),
        (HYPERCORN_1, True, 0),
        (HYPERCORN_2, True, 0),
    ],
    ids=lambda value: value.name if isinstance(value, Mode) else str(value),
)
@pytest.mark.parametrize("after_sigterm", [False, True], ids=["first", "after SIGTERM"])
async def test_sigint_ends_the_calls_at_once(
    mode: Mode, everybody: bool, status: int, after_sigterm: bool, tmp_path: Path
) -> None:
    """`everybody`: all processes get it, as from a terminal."""
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            if after_sigterm:
                it.signal(signal.SIGTERM)
                await draining(it, mode.workers)
            (it.signal_all if everybody else it.signal)(signal.SIGINT)
            await phone.wait_ended()
        assert_was_shut_down(phone)
        assert not told_goodbye(session)
        assert await it.ended() == status
        assert len(it.find("call ended", outcome="server_shutdown")) == 1
        assert it.other == []


@modes(*HYPERCORNS_PARENT)
async def test_sigint_to_hypercorns_parent_alone_drains(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGINT)
            await draining(it, mode.workers)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0


# ---- sudden death -------------------------------------------------------------------------------


async def test_a_killed_worker_is_replaced_and_the_others_calls_go_on(tmp_path: Path) -> None:
    async with running(SERVE_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        os.kill(one[2], signal.SIGKILL)
        began = trio.current_time()
        ended = await it.logged("worker ended")
        assert (ended["pid"], ended["status"]) == (one[2], -signal.SIGKILL)
        await one[0].wait_ended()
        await talk(*other)
        replacement = (await it.logged("worker serves", 3))["pid"]
        print(f"worker killed: another serves after {trio.current_time() - began:.2f} s")
        assert replacement in it.workers()
        async with stopped(other[2]), it.call() as (phone, _):
            await phone.hang_up()
        await talk(*other)
        await other[0].hang_up()
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert it.other == []


async def test_when_a_worker_of_hypercorns_is_killed_the_others_drain(tmp_path: Path) -> None:
    """Hypercorn starts no other: it ends, but not before the calls."""
    async with running(HYPERCORN_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        os.kill(one[2], signal.SIGKILL)
        await draining(it, 1)
        await assert_refuses_calls(it)
        await talk(*other)
        await other[0].hang_up()
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


@modes(*HYPERCORNS_PARENT)
async def test_sighup_makes_hypercorn_drain_and_begin_anew(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGHUP)
            await draining(it, mode.workers)
            await assert_refuses_calls(it)
            await talk(phone, session)
            await phone.hang_up()
        await it.logged("Running on", 2 * mode.workers)
        assert await it.get("/readyz") == 200
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


async def test_one_worker_can_be_drained_and_replaced(tmp_path: Path) -> None:
    """By hand: SIGTERM to it alone."""
    async with running(SERVE_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        os.kill(one[2], signal.SIGTERM)
        await draining(it, 1)
        await talk(*one)
        await one[0].hang_up()
        ended = await it.logged("worker ended")
        assert (ended["pid"], ended["status"]) == (one[2], 0)
        await it.logged("worker serves", 3)
        await talk(*other)
        assert await it.get("/readyz") == 200
        await other[0].hang_up()
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0


@modes(*WITH_PARENT)
async def test_workers_drain_and_end_when_their_parent_is_killed(
    mode: Mode, tmp_path: Path
) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGKILL)
            await draining(it, mode.workers)
            await assert_refuses_calls(it)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == -signal.SIGKILL
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


async def test_a_worker_that_hangs_does_not_hold_the_server(tmp_path: Path) -> None:
    """It can do nothing at all, and is killed when its time is over."""
    async with running(SERVE_2, tmp_path) as it, stopped(it.workers()[0]):
        it.signal(signal.SIGINT)
        assert await it.ended() == 130
        assert len(it.find("worker took too long; killing it")) == 1


# ---- what cannot be served ----------------------------------------------------------------------


async def end_of_serve(folder: Path) -> tuple[int, list[str]]:
    """Run `bridge serve` to its end; its status and what it wrote."""
    result = await trio.run_process(
        SERVE.command(),
        capture_stderr=True,
        check=False,
        cwd=folder,
        env={
            "DEEPGRAM_API_KEY": "dg-test-key-0123456789",
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "PATH": os.environ.get("PATH", ""),
        },
    )
    return result.returncode, result.stderr.decode().splitlines()


@modes(SERVE, SERVE_2)
async def test_an_address_in_use_is_a_failure_in_one_line(mode: Mode, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        write_config(tmp_path, 9, mode, bind=address)
        with trio.fail_after(PATIENCE):
            status, lines = await end_of_serve(tmp_path)
    assert status == 1
    assert [line for line in lines if not line.startswith("{")] == [
        f"bridge: cannot listen on {address}: Address already in use; choose another with --bind"
    ]


@modes(SERVE, SERVE_2)
async def test_a_broken_configuration_is_reported_once(mode: Mode, tmp_path: Path) -> None:
    write_config(tmp_path, 9, mode, drain_secondz=1)
    with trio.fail_after(PATIENCE):
        status, lines = await end_of_serve(tmp_path)
    assert status == 2
    (line,) = lines
    assert line.startswith("bridge: config.toml")
    assert "drain_seconds" in line


async def test_a_broken_edit_ends_no_call_and_is_mended(tmp_path: Path) -> None:
    """Also when a worker dies before anybody notices: the others serve, and starts are tried."""
    async with running(SERVE_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        config = tmp_path / "config.toml"
        good = config.read_text()
        config.write_text("[server\n")
        os.kill(one[2], signal.SIGKILL)
        await it.logged("worker ended", status=2)
        await talk(*other)
        config.write_text(good)
        await it.logged("worker serves", 3)
        await other[0].hang_up()
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert {line.partition(":")[0] for line in it.other} == {"bridge"}
