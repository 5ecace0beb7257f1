"""A stage for endings: the real server on real sockets, lines that fail as lines do, and an account
of what is left.

    async with scene() as stage:
        async with stage.call() as phone:
            ...
            began = trio.current_time()
            await phone.hang_up()
            await stage.ended("caller_hung_up", since=began)

When the stage is struck, everything that the calls needed must be gone: tasks, descriptors, the
agent's sessions, the calls' slots; and there must be one "call ended" line for each call.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import SplitResult

import msgspec
import structlog
import trio
from hypercorn.config import Config
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection

from bridge.config.file import FixedConfig
from bridge.http.app import create_app
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.agent.server import Behaviour, Script, SimulatedAgent, silent
from bridge.testing.phone.phone import SimulatedPhone
from tests.world import AUTH_TOKEN, QUIET, SECRETS, open_media_socket, settings

TEARDOWN = 1.0  # what the stage's calls have as call.teardown_seconds

# What a busy machine may add to any time here. The exact bounds are proven on the virtual clock;
# what has no bound at all, these tests find just as well.
SLACK = 15.0

# Nothing on a stage takes longer, and what does is a test that hangs.
PATIENCE = 90.0

# The smallest buffers the kernel gives: a peer that does not read is felt within a second of audio.
SMALL = 2048

USING = settings(call={"teardown_seconds": TEARDOWN})

# What a failing agent may be worth besides.
EXCUSED = ("agent lost, reconnecting", "agent not reached, trying again", "agent stalls")

# How calls end that go as they should.
NORMAL = ("caller_hung_up", "agent_ended", "server_shutdown")


# Linux's, which Python's socket module does not name.
_SO_ATTACH_FILTER = 26
_BPF_RETURN = 6


class Line(trio.abc.HalfCloseableStream):
    """One end of a TCP connection, which can fail in each way that TCP connections do.

    `over` is set when the other end has closed it, or it broke.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.over = trio.Event()
        self._listening = trio.CancelScope()
        self._deaf = self._mute = False
        self._closed = trio.Event()

    def stop_reading(self) -> None:
        """From now on what comes stays in the kernel's buffers, and fills them."""
        self._deaf = True
        self._listening.cancel(reason="the test: stop reading")

    def stop_writing(self) -> None:
        """From now on what is written gets nowhere, and nobody notices."""
        self._mute = True

    def vanish(self) -> None:
        """As when a cable is cut: nothing comes and nothing goes, and there is no FIN."""
        self.stop_reading()
        self.stop_writing()

    def cut(self) -> None:
        """As when a cable is cut, for the kernels too: nothing that is sent here is acknowledged.

        A filter that lets nothing through, https://docs.kernel.org/networking/filter.html
        """
        self.vanish()
        nothing = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
        program = struct.pack("HL", 1, ctypes.addressof(nothing))
        self.stream.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def half_close(self) -> None:
        """Send a FIN, and go on reading."""
        self.stop_writing()
        self.stream.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send a RST, if there is still somebody to send it to."""
        if self.stream.socket.fileno() == -1:
            return
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()
        self._closed.set()
        self.over.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._deaf:
            with trio.CancelScope() as self._listening:
                try:
                    data = await self.stream.receive_some(max_bytes)
                except trio.BrokenResourceError:
                    self.over.set()
                    raise
                if not data:
                    self.over.set()
                return data
        await self._closed.wait()
        raise trio.ClosedResourceError("the test has let go of the line")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._mute:
            await trio.lowlevel.checkpoint()
        else:
            await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        if not self._mute:
            await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        if not self._mute:
            await self.stream.send_eof()

    async def aclose(self) -> None:
        self._closed.set()
        await self.stream.aclose()


class Log:
    """What structlog and `logging` were told, with the times on Trio's clock."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._came = trio.Event()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take every line from now on; nobody else gets it."""
        # In place, because loggers may have been bound already.
        processors = structlog.get_config()["processors"]
        before = list(processors)
        handler = logging.Handler()
        handler.emit = self._take_record  # type: ignore[method-assign]
        processors[:] = [self._take]
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            processors[:] = before
            logging.getLogger().removeHandler(handler)

    def endings(self) -> list[dict[str, Any]]:
        """The lines that say that a call ended, and how."""
        return [line for line in self.lines if line["event"] == "call ended"]

    async def wait_for_endings(self, number: int) -> list[dict[str, Any]]:
        while len(self.endings()) < number:
            self._came = trio.Event()
            await self._came.wait()
        return self.endings()

    def complaints(self) -> list[str]:
        """The events of all lines above info. That this machine stalls now and then is not the
        server's doing."""
        return [
            line["event"]
            for line in self.lines
            if line["level"] not in ("debug", "info") and "watchdog" not in line["logger"]
        ]

    def tracebacks(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("exc_info")]

    def _take(self, logger: Any, level: str, line: Mapping[str, Any]) -> Any:
        self._add({**line, "level": level, "logger": getattr(logger, "name", "")})
        raise structlog.DropEvent

    def _take_record(self, record: logging.LogRecord) -> None:
        facts = {"event": record.getMessage(), "exc_info": record.exc_info, "logger": record.name}
        self._add({**facts, "level": record.levelname.lower()})

    def _add(self, line: dict[str, Any]) -> None:
        if line.get("exc_info"):
            # In words: the exception would keep alive what it went through.
            line["exc_info"] = repr(line["exc_info"])
        with suppress(RuntimeError):  # in a thread there is no such time
            line["at"] = trio.current_time()
            self._came.set()
        self.lines.append(line)


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def task_names() -> Counter[str]:
    """The tasks of this Trio run, Trio's own left out, by name."""
    names: Counter[str] = Counter()
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        names[task.name] += 1
        for nursery in task.child_nurseries:
            waiting += nursery.child_tasks
    return names


class Stage:
    """The server, its agent and the log. `address` is where phones call; `lines` are the phones'
    connections, webhooks included, in order, and `agent_lines` the agent's. `swallowed` has what
    was raised in calls.
    """

    def __init__(self, app: Any, agent: SimulatedAgent, *, small_buffers: bool) -> None:
        self.app = app
        self.agent = agent
        self.address = ""
        self.log = Log()
        self.lines: list[Line] = []
        self.agent_lines: list[Line | trio.SocketStream] = []
        self.swallowed: list[str] = []
        self._small_buffers = small_buffers
        self._watch()

    def _watch(self) -> None:
        """Note what was raised in a call, even if its outcome does not tell of it."""
        carrying = self.calls.carrying

        @contextmanager
        def watched(call: Any) -> Iterator[None]:
            with carrying(call):
                yield
            report = call.report
            if isinstance(report.cause, BaseExceptionGroup):
                self.swallowed.append(f"{report.outcome}: {report.cause.exceptions!r}")

        self.calls.carrying = watched

    @property
    def calls(self) -> Any:
        """The live calls."""
        return self.app.extensions["bridge"].calls

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def phone(self, **options: Any) -> SimulatedPhone:
        """A phone on lines of ours. It is strict: what Twilio would warn about fails the test."""
        ours = {"strict": True, "open_stream": self.open_line, "auth_token": AUTH_TOKEN}
        return SimulatedPhone(**{**ours, **options})

    def call(self, **options: Any) -> AbstractAsyncContextManager[SimulatedPhone]:
        """Place a call. When this is left, the caller hangs up."""
        return self.phone(**options).place_call(self.address)

    async def open_line(self, host: str, port: int, tls: bool = False) -> Line:
        """Connect, as a phone does."""
        sock = trio.socket.socket()
        try:
            if self._small_buffers:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            await sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        self.lines.append(Line(trio.SocketStream(sock)))
        return self.lines[-1]

    @asynccontextmanager
    async def media_socket(self) -> AsyncIterator[tuple[WebSocketConnection, Line]]:
        """A phone's socket without a phone: what is said on it is up to the test."""
        line = await self.open_line("127.0.0.1", self.port)
        try:
            async with trio.open_nursery() as nursery:
                address = f"127.0.0.1:{self.port}"
                yield await open_media_socket(nursery, line, address), line
                nursery.cancel_scope.cancel(reason="the test has let go of the socket")
        finally:
            await trio.aclose_forcefully(line)

    async def ended(
        self,
        outcome: str,
        *,
        since: float,
        within: float = TEARDOWN,
        reason: str = "",
        number: int = 1,
    ) -> dict[str, Any]:
        """Wait until `number` calls have ended and return the last one's line: its `outcome`, a
        `reason` with these words in it, and no later than `within` seconds after `since`."""
        line = (await self.log.wait_for_endings(number))[number - 1]
        assert line["outcome"] == outcome, line
        assert reason in line["reason"], line
        took = line["at"] - since
        assert took <= within + SLACK, f"the call ended after {took:.3f} s"
        return line

    async def struck(self, tasks: Counter[str], files: int) -> None:
        """Wait until nothing is left of the calls."""

        def left() -> str:
            more = task_names() - tasks
            return ", ".join(
                [f"{count} of task {name}" for name, count in more.items()]
                + [f"{descriptors() - files} descriptors"] * (descriptors() > files)
                + [f"{len(self.calls)} calls"] * (len(self.calls) > 0)
                + [f"{self.agent.active} sessions"] * (self.agent.active > 0)
            )

        with trio.move_on_after(SLACK):
            await until(lambda: not left())
        assert not left(), f"left behind: {left()}"
        assert self.agent.failures == []


@asynccontextmanager
async def scene(
    script: Script = silent,
    behaviour: Behaviour | Callable[[int], Behaviour] = QUIET,
    using: Any = USING,
    *,
    calls: int | None = 1,
    small_buffers: bool = False,
    failing_agent_lines: bool = False,
    keep_alive: float | None = None,
) -> AsyncIterator[Stage]:
    """Set the stage, and strike it after `calls` calls, or any number of them if that is None.

    With `small_buffers` a peer that does not read is soon felt; with `failing_agent_lines` the
    agent's ends of its connections are `Line`s.
    """
    before = descriptors()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            agent = SimulatedAgent(script, behaviour)  # type: ignore[arg-type]

            async def serve_agent(stream: trio.SocketStream) -> None:
                line = Line(stream) if failing_agent_lines else stream
                stage.agent_lines.append(line)
                await agent.serve_stream(line)

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            if small_buffers:
                listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            await nursery.start(trio.serve_listeners, serve_agent, listeners)
            agent_port = listeners[0].socket.getsockname()[1]
            chosen = msgspec.structs.replace(
                using,
                deepgram=msgspec.structs.replace(
                    using.deepgram, url=f"ws://127.0.0.1:{agent_port}/v1/agent/converse"
                ),
                server=msgspec.structs.replace(using.server, bind="127.0.0.1:0"),
            )
            to_agent = _small_connection if small_buffers else None
            app = create_app(FixedConfig(chosen), SECRETS, open_stream=to_agent)
            stage = Stage(app, agent, small_buffers=small_buffers)
            config = hypercorn_config(chosen)
            if keep_alive is not None:
                config.keep_alive_timeout = keep_alive
            if small_buffers:
                _make_small(config)
            stop = trio.Event()
            async with trio.open_nursery() as house:
                (stage.address,) = await house.start(partial(serve, app, config, shutdown=stop))
                with stage.log.listening():
                    # The server says that it has started before its last tasks have.
                    await wait_all_tasks_blocked()
                    tasks, files = task_names(), descriptors()
                    yield stage
                    await stage.struck(tasks, files)
                    _account(stage.log, calls)
                    # Not even what is hidden behind a normal outcome.
                    assert not stage.swallowed, stage.swallowed
                stop.set()
            nursery.cancel_scope.cancel(reason="the test is over")
    assert descriptors() <= before


def _account(log: Log, calls: int | None) -> None:
    """One line says how each call ended; a normal end is not worth more than that."""
    outcomes = [line["outcome"] for line in log.endings()]
    assert calls in (None, len(outcomes)), outcomes
    assert not log.tracebacks(), log.tracebacks()
    failed = [outcome for outcome in outcomes if outcome not in NORMAL]
    complaints = [event for event in log.complaints() if event not in EXCUSED]
    assert complaints == ["call ended"] * len(failed), complaints


def _make_small(config: Config) -> None:
    """Give the server's sockets the smallest send buffers; connections inherit the listeners'."""
    create = config.create_sockets

    def create_small() -> Any:
        sockets = create()
        for sock in sockets.insecure_sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        return sockets

    config.create_sockets = create_small  # type: ignore[method-assign]


async def _small_connection(target: SplitResult) -> trio.SocketStream:
    """Connect to the agent with the smallest send buffer."""
    sock = trio.socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        await sock.connect((target.hostname, target.port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def until(what: Callable[[], object]) -> None:
    """Wait for something that nobody tells of; how long is up to the deadline around it."""
    while not what():  # noqa: ASYNC110 - there is no event
        await trio.sleep(0.005)


async def until_closed(socket: WebSocketConnection) -> int:
    """Read what comes until the other end closes; the code it closes with."""
    try:
        while True:
            await socket.get_message()
    except ConnectionClosed as closed:
        return 1006 if closed.reason is None else int(closed.reason.code)


async def at_once(*actions: Callable[[], Awaitable[object]]) -> None:
    """Do all of this in the same moment."""
    async with trio.open_nursery() as nursery:
        for action in actions:
            nursery.start_soon(action)
