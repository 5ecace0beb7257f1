"""Hypercorn's server nursery with connections in memory, and a peer that says what it likes.

The peer writes bytes, not messages: most of what these tests send no client library would. With
`stock` the connections are hypercorn's own, without our remedies.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.protocol.http_stream
import hypercorn.protocol.ws_stream
import hypercorn.trio.run
import hypercorn.trio.tcp_server
import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, TextMessage

from bridge.server.hypercorn.install import install

install()

UPGRADE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0
) -> bytes:
    """One short frame as a client sends it, or should not; masked with zeros."""
    head = (0x80 if fin else 0) | rsv << 4 | opcode, (0x80 if mask else 0) | len(payload)
    return bytes(head) + (bytes(4) if mask else b"") + payload


def use_stock_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take our remedies out of hypercorn again."""
    stream = hypercorn.protocol.ws_stream.WSStream
    request = hypercorn.protocol.http_stream.HTTPStream
    monkeypatch.setattr(hypercorn.protocol.h11, "HTTPStream", request)
    monkeypatch.setattr(hypercorn.protocol.h2, "HTTPStream", request)
    monkeypatch.setattr(hypercorn.protocol.h11, "WSStream", stream)
    monkeypatch.setattr(hypercorn.protocol.h2, "WSStream", stream)
    monkeypatch.setattr(hypercorn.protocol, "H11Protocol", hypercorn.protocol.h11.H11Protocol)
    monkeypatch.setattr(hypercorn.trio.run, "TCPServer", hypercorn.trio.tcp_server.TCPServer)


class Peer:
    """The other end of one connection. `websocket` frames messages once the upgrade is done."""

    def __init__(self, stream: Any, server_stream: Any) -> None:
        self.stream = stream
        self.server_stream = server_stream
        self.websocket = Connection(ConnectionType.CLIENT)
        self.head = b""

    async def write(self, data: bytes) -> None:
        """Write, and let the server do all it can with that."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await trio.testing.wait_all_tasks_blocked()

    async def upgrade(self, headers: bytes = b"", path: bytes = b"/ws") -> bytes:
        """Ask for a websocket; return the head of the answer."""
        await self.stream.send_all(UPGRADE.replace(b"/ws", path, 1) + headers + b"\r\n")
        while b"\r\n\r\n" not in self.head:
            data = await self.stream.receive_some(65536)
            if not data:
                return self.head
            self.head += data
        self.head, _, rest = self.head.partition(b"\r\n\r\n")
        if rest:
            self.websocket.receive_data(rest)
        return self.head

    async def say(self, *messages: str | bytes) -> None:
        """Send messages, all in one segment."""
        await self.write(self.frames(*messages))

    def frames(self, *messages: str | bytes) -> bytes:
        return b"".join(
            self.websocket.send(TextMessage(data=m) if isinstance(m, str) else BytesMessage(data=m))
            for m in messages
        )

    async def hear(self) -> Event | None:
        """Return the next event, whole messages only; None when the connection is over."""
        text = ""
        while True:
            for event in self.websocket.events():
                if not isinstance(event, Message):
                    return event
                text += event.data if isinstance(event.data, str) else event.data.decode()
                if event.message_finished:
                    return TextMessage(data=text)
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self.websocket.receive_data(data)

    async def hear_close(self) -> int | None:
        """Return the code of the Close frame, past all else; None for an end without one."""
        while (event := await self.hear()) is not None:
            if isinstance(event, CloseConnection):
                return event.code
        return None

    async def hang_up(self) -> None:
        """Say Close, in one segment with nothing else."""
        await self.write(self.websocket.send(CloseConnection(code=1000)))

    def reset(self) -> None:
        """Be gone, in both directions, without a word."""
        self.stream.send_stream.close()
        self.stream.receive_stream.close()

    def stop_reading(self) -> Callable[[], None]:
        """Let every write of the server's block; call what is returned to let it go on."""
        sending = self.server_stream.send_stream
        deliver: Callable[[], Awaitable[None]] = sending.send_all_hook
        reading = trio.Event()

        async def blocked() -> None:
            await reading.wait()
            await deliver()

        sending.send_all_hook = blocked
        return reading.set


class Server:
    """What hypercorn's `worker_serve` has once it listens: a nursery with a task per connection."""

    def __init__(self, app: Any, config: Config, nursery: trio.Nursery) -> None:
        self._app = wrap_app(app, 0, "asgi")
        self.config = config
        self._nursery = nursery
        self._context = WorkerContext(None)

    @property
    def connections(self) -> int:
        """How many connections have a task."""
        return len(self._nursery.child_tasks)

    async def stop(self) -> None:
        """Begin the shutdown as hypercorn does."""
        await self._context.terminated.set()
        self._nursery.cancel_scope.deadline = trio.current_time() + self.config.graceful_timeout

    def connect(self) -> Peer:
        """Accept a connection."""
        ours, theirs = trio.testing.memory_stream_pair()
        theirs.socket = _NoSocket()  # type: ignore[attr-defined]
        # Looked up at every connection, as hypercorn does.
        kind: type[TCPServer] = hypercorn.trio.run.TCPServer  # type: ignore[attr-defined]
        state = ConnectionState({})
        connection = kind(self._app, self.config, self._context, state, theirs)  # type: ignore[arg-type]
        self._nursery.start_soon(connection.run)
        return Peer(ours, theirs)

    async def live_call(self) -> Peer:
        """Connect a websocket that echoes, to notice whether the server lives."""
        peer = self.connect()
        assert b" 101 " in await peer.upgrade()
        return peer


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[Server]:
    """Serve `app`; on leaving, all connections are cancelled. Raises what a connection raised."""
    config = Config()
    config.errorlog = None
    for name, value in options.items():
        setattr(config, name, value)
    # On the virtual clock, a test that waits in vain ends at once.
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            yield Server(app, config, nursery)
            nursery.cancel_scope.cancel(reason="the test is over")


class _NoSocket:
    family = 2

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 5000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 50000


def length_header(announced: int) -> bytes:
    """The head of a masked binary frame that announces any length at all."""
    return b"\x82\xff" + struct.pack("!Q", announced) + bytes(4)
