"""hypercorn's failures that would end calls, and that `bridge.server.hypercorn` prevents them.

Tests named `the_trap_is_real` run hypercorn without the remedy: when one of them fails, a new
release has fixed the bug, and the remedy can be removed.
"""

from __future__ import annotations

import copy
import os
import socket
import struct
import sys
from collections.abc import Iterator, MutableMapping
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import hypercorn.trio
import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.protocol.events import Body
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from structlog.testing import capture_logs
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from bridge.http import media_socket
from bridge.server.hypercorn import connection as guarded
from bridge.server.hypercorn.connection import (
    CONNECTION_KEY,
    MAX_MESSAGE_BYTES,
    WRITE_TIMEOUT,
    GuardedTCPServer,
)
from bridge.transport.websocket import WebSocket
from tests.unit.server import malformed
from tests.unit.server.echo import Echo, handled_by
from tests.unit.server.wire import UPGRADE, Peer, frame, serving, use_stock_hypercorn
from tests.world import in_memory

Clock = trio.testing.MockClock

# Longer than any timeout of hypercorn and bridge: what remains after it would never end.
FOR_EVER = 1000.0

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stock_hypercorn(monkeypatch)


# ---- one connection's failure is its own ---------------------------------------------------


@pytest.mark.parametrize("case", malformed.ALL)
async def test_no_peer_harms_another_call(autojump_clock: Clock, case: str, logs: Any) -> None:
    """Whatever one peer sends, a call on another connection goes on, and when the peer is gone no
    task of its connection is left."""
    async with serving(Echo().app) as server:
        call = await server.live_call()
        peer = server.connect()
        for segment in malformed.ALL[case]:
            await peer.write(segment)
        await call.say("still there?")
        assert await call.hear() == TextMessage(data="still there?")
        peer.reset()
        await trio.sleep(FOR_EVER)
        assert server.connections == 1
        await call.say("and now?")
        assert await call.hear() == TextMessage(data="and now?")


@pytest.mark.parametrize("case", sorted(malformed.FATAL))
async def test_the_trap_is_real_one_connection_ends_the_server(
    autojump_clock: Clock, case: str, logs: Any, stock: None
) -> None:
    """Without the remedy the same bytes end the nursery that all connections live in."""

    async def attack() -> None:
        async with serving(Echo().app) as server:
            await server.live_call()
            peer = server.connect()
            for segment in malformed.ALL[case]:
                await peer.write(segment)

    with pytest.raises(ExceptionGroup):
        await attack()


async def test_a_call_outlives_every_malformed_input(autojump_clock: Clock) -> None:
    """The real application carries a call, byte for byte, past all of the corpus."""
    words = bytes(n % 251 for n in range(4000))
    async with in_memory() as world:
        open_stream = world.phone_options["open_stream"]
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            for segments in malformed.ALL.values():
                stream = await open_stream("127.0.0.1", 5000, False)
                for segment in segments:
                    await stream.send_all(segment.replace(b"/ws", b"/media-stream"))
                await trio.sleep(0.1)
                await trio.aclose_forcefully(stream)
            await phone.say(words)
            await phone.hang_up()
        await world.quiet()
    assert words in bytes(session.received_audio)


async def test_the_application_is_told_when_its_peer_breaks_the_protocol(
    autojump_clock: Clock, logs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in hypercorn's protocol code is a disconnect to the application, not a cancel."""
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append((await receive())["type"])

    async def explode(self: Any, event: Any) -> None:
        if isinstance(event, Body):
            raise KeyError("a bug of hypercorn's")
        await handle(self, event)

    handle = HTTPStream.handle
    monkeypatch.setattr(HTTPStream, "handle", explode)
    async with serving(app) as server:
        peer = server.connect()
        await peer.write(POST)
        await peer.write(b"body")
        assert told == ["http.disconnect"]
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
    (entry,) = logs
    assert entry["event"] == "connection failed while reading"
    assert entry["log_level"] == "warning"
    assert "KeyError" in entry["error"]


async def test_cancelled_passes(autojump_clock: Clock, logs: Any) -> None:
    """The guard contains errors, never cancellation: a cancelled server ends at once."""
    async with serving(Echo().app) as server:
        await server.live_call()
        await server.live_call()
        server._nursery.cancel_scope.cancel(reason="test")
    assert trio.current_time() == 0
    assert not [entry for entry in logs if entry["log_level"] == "warning"]


@pytest.mark.parametrize("grouped", [False, True])
async def test_keyboard_interrupt_passes(autojump_clock: Clock, grouped: bool, logs: Any) -> None:
    """Ctrl-C that arrives in the code of a call ends the server, in a group or bare."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if grouped:
            raise BaseExceptionGroup("nursery", [KeyboardInterrupt()])
        raise KeyboardInterrupt

    with pytest.raises(BaseExceptionGroup) as caught:
        await _ask_for_a_websocket(app)
    assert caught.group_contains(KeyboardInterrupt)


async def test_the_trap_is_real_keyboard_interrupt_is_lost(
    autojump_clock: Clock, stock: None
) -> None:
    """Without the remedy hypercorn logs a KeyboardInterrupt from a nursery and serves on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise BaseExceptionGroup("nursery", [KeyboardInterrupt()])

    await _ask_for_a_websocket(app)


async def _ask_for_a_websocket(app: Any) -> None:
    async with serving(app) as server:
        await server.connect().write(UPGRADE + b"\r\n")


# ---- every write ends ----------------------------------------------------------------------


async def fall_silent(peer: Peer) -> None:
    """Say nothing more."""


async def say_fin(peer: Peer) -> None:
    await peer.stream.send_eof()


async def say_close(peer: Peer) -> None:
    await peer.stream.send_all(frame(malformed.CLOSE, b"\x03\xe8"))


async def reset(peer: Peer) -> None:
    peer.reset()


ENDINGS = [fall_silent, say_fin, say_close, reset]


@pytest.mark.parametrize("then", ENDINGS)
@pytest.mark.parametrize("send_timeout", [float("inf"), 0.5])
async def test_a_peer_that_stops_reading_is_given_up(
    autojump_clock: Clock, then: Any, send_timeout: float, logs: Any
) -> None:
    """A write ends after WRITE_TIMEOUT, and the application is told that the peer is gone: however
    the peer goes on, and also if the sender has been cancelled by then."""
    echo = Echo()
    echo.send_timeout = send_timeout
    async with serving(echo.app) as server:
        peer = server.connect()
        await peer.upgrade(path=b"/flood")
        peer.stop_reading()
        await trio.sleep(1)
        began = trio.current_time()
        await then(peer)
        await trio.sleep(WRITE_TIMEOUT + 1)
        assert len(echo.told) == 1
        assert echo.told[0] - began <= WRITE_TIMEOUT
        assert server.connections == 0


class Download:
    """An ASGI application that answers a request with more and more, until it is told that the
    peer is gone: at `told`, in seconds of Trio's clock."""

    def __init__(self) -> None:
        self.told: list[float] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # as an application without start-up does

        async def keep_sending() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(3200), "more_body": True})
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_sending)
            while (await receive())["type"] != "http.disconnect":
                pass
            self.told.append(trio.current_time())
            nursery.cancel_scope.cancel(reason="the peer is gone")


@pytest.mark.parametrize("then", [fall_silent, say_fin, reset])
async def test_a_download_that_is_not_read_is_given_up(
    autojump_clock: Clock, then: Any, logs: Any
) -> None:
    """A write through hypercorn ends after WRITE_TIMEOUT, however the peer goes on."""
    download = Download()
    async with serving(download) as server:
        peer = server.connect()
        peer.stop_reading()
        await peer.write(GET)
        await then(peer)
        await trio.sleep(WRITE_TIMEOUT + 1)
        assert len(download.told) == 1
        assert download.told[0] <= WRITE_TIMEOUT
        assert server.connections == 0


@pytest.mark.parametrize("then", [fall_silent, say_fin])
async def test_the_trap_is_real_a_download_that_is_not_read_cannot_be_given_up(
    autojump_clock: Clock, then: Any, stock: None
) -> None:
    """Without the remedy neither a time-out nor a cancelled server ends the write."""
    async with serving(Download()) as server:
        peer = server.connect()
        read_on = peer.stop_reading()
        await peer.write(GET)
        await then(peer)
        await server.stop()
        with trio.CancelScope(shield=True):
            await trio.sleep(FOR_EVER)
        assert server.connections == 1
        read_on()


async def test_a_failed_write_of_a_cancelled_sender_is_not_lost(
    autojump_clock: Clock, logs: Any
) -> None:
    """The application hears of a broken connection when the write that broke was cancelled."""
    assert await _told_of_a_broken_write()


async def test_the_trap_is_real_a_failed_write_of_a_cancelled_sender_is_lost(
    autojump_clock: Clock, stock: None
) -> None:
    """Without the remedy the application is never told."""
    assert not await _told_of_a_broken_write()


async def _told_of_a_broken_write() -> bool:
    """Break a write after two seconds, its sender being cancelled after half a second."""
    told = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal told
        await receive()
        with trio.move_on_after(0.5):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        told = (await receive())["type"] == "http.disconnect"

    async def break_later() -> None:
        await trio.sleep(2)
        raise trio.BrokenResourceError("as TCP_USER_TIMEOUT does")

    async with serving(app) as server:
        peer = server.connect()
        peer.server_stream.send_stream.send_all_hook = break_later
        await peer.write(GET)
        await trio.sleep(FOR_EVER)
    return told


def _connection() -> tuple[Peer, GuardedTCPServer]:
    """A connection without a running task, to write to."""
    ours, theirs = trio.testing.memory_stream_pair()
    app: Any = None
    connection = GuardedTCPServer(app, Config(), WorkerContext(None), ConnectionState({}), theirs)
    return Peer(ours, theirs), connection


async def test_shutdown_is_bounded_with_a_peer_that_stops_reading(
    autojump_clock: Clock, logs: Any
) -> None:
    """The server ends at most WRITE_TIMEOUT after its graceful timeout."""
    async with serving(Echo().app, graceful_timeout=1) as server:
        peer = server.connect()
        await peer.upgrade(path=b"/flood")
        peer.stop_reading()
        await trio.testing.wait_all_tasks_blocked()
        await server.stop()
        await trio.sleep_forever()
    assert trio.current_time() <= 1 + WRITE_TIMEOUT


async def test_frames_of_concurrent_senders_stay_whole(autojump_clock: Clock, logs: Any) -> None:
    """Senders take turns, and one that is cancelled leaves a whole frame or none."""

    async def handler(socket: WebSocket) -> None:
        async def sender(letter: str, patience: float) -> None:
            while True:
                with trio.move_on_after(patience):
                    await socket.send(letter * 500)

        async with trio.open_nursery() as nursery:
            for letter, patience in (("a", 0.7), ("b", 1.3), ("c", 100.0)):
                nursery.start_soon(sender, letter, patience)

    async with serving(handled_by(handler)) as server:
        peer = server.connect()
        _trickle(peer)
        await peer.upgrade()
        heard = []
        for _ in range(100):
            event = await peer.hear()
            assert isinstance(event, TextMessage)
            heard.append(event.data)
    assert {text[0] for text in heard} == {"a", "b", "c"}
    assert all(text == text[0] * 500 for text in heard)


def _trickle(peer: Peer) -> None:
    """Let the server's writes take time, a few bytes each tenth of a second."""
    whole = peer.server_stream.send_stream.send_all

    async def send_all(data: bytes) -> None:
        for start in range(0, len(data), 90):
            await whole(data[start : start + 90])
            await trio.sleep(0.1)

    peer.server_stream.send_all = send_all


# ---- every connection ends -----------------------------------------------------------------


async def test_a_handler_may_leave_with_messages_unread(autojump_clock: Clock, logs: Any) -> None:
    """A phone that goes on sending after the call cannot hold the connection open."""
    echo = Echo()
    async with serving(echo.app) as server:
        peer = server.connect()
        await peer.upgrade(path=b"/deaf")
        for number in range(30):
            await peer.say(f"message {number}")
        echo.leave.set()
        await trio.sleep(FOR_EVER)
        assert server.connections == 0


async def _connections_after(request: bytes) -> int:
    async with serving(Echo().app) as server:
        peer = server.connect()
        await peer.write(request)
        await trio.sleep(FOR_EVER)
        return server.connections


ANSWERED = {
    "bad handshake": UPGRADE.replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Kex") + b"\r\n",
    "idle after an answer": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "connection: close": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("case", ANSWERED)
async def test_an_answered_connection_does_not_stay_open(
    autojump_clock: Clock, case: str, logs: Any
) -> None:
    """A refused handshake closes the connection, and so does an answer that says so; after another
    the connection is closed when it has been idle for a while."""
    assert await _connections_after(ANSWERED[case]) == 0


@pytest.mark.parametrize("case", ANSWERED)
async def test_the_trap_is_real_an_answered_connection_stays_open(
    autojump_clock: Clock, case: str, stock: None
) -> None:
    """Without the remedy all of them stay as long as the peer likes: nothing closes the first,
    and quart-trio cancels the task that would close the others or start their timer."""
    assert await _connections_after(ANSWERED[case]) == 1


async def test_frames_before_the_accept_are_a_disconnect(autojump_clock: Clock, logs: Any) -> None:
    """A handler that has not accepted yet is told, and does not wait without end."""
    assert await _told_of_early_frames() is True


async def test_the_trap_is_real_frames_before_the_accept_are_not_reported(
    autojump_clock: Clock, stock: None
) -> None:
    """Without the remedy the handler waits on a websocket that hypercorn has written off."""
    assert await _told_of_early_frames() is False


async def _told_of_early_frames() -> bool:
    told = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal told
        await receive()
        # Settings are read here, for example: the accept comes later than the request.
        event = await receive()
        told = event["type"] == "websocket.disconnect"

    async with serving(app) as server:
        peer = server.connect()
        await peer.write(UPGRADE + b"\r\n")
        await peer.write(frame(malformed.TEXT, b"early"))
        await trio.sleep(FOR_EVER)
    return told


async def test_a_request_on_a_connection_accepted_just_before_the_shutdown_is_answered(
    autojump_clock: Clock,
) -> None:
    assert await _answer_after_the_shutdown() == b"HTTP/1.1 200"


async def test_the_trap_is_real_a_connection_accepted_just_before_the_shutdown_is_closed(
    autojump_clock: Clock, stock: None
) -> None:
    """Without the remedy it counts as idle, and the caller hears an application error."""
    assert await _answer_after_the_shutdown() == b""


async def _answer_after_the_shutdown() -> bytes:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with serving(app) as server:
        peer = server.connect()
        await trio.testing.wait_all_tasks_blocked()
        await server.stop()
        await trio.testing.wait_all_tasks_blocked()
        await peer.write(GET)
        answer = bytes(await peer.stream.receive_some(12))
        # Neither that connection nor one that asks for nothing delays the end.
        server.connect()
        await trio.sleep(server.config.graceful_timeout - 0.1)
        assert server.connections == 0
    return answer


# ---- what is negotiated, and how much ------------------------------------------------------

OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


@pytest.mark.parametrize("raw", [False, True])
async def test_compression_is_refused(autojump_clock: Clock, raw: bool, logs: Any) -> None:
    """A cancelled send must not corrupt the stream, so no send depends on the one before; also
    where hypercorn is told to leave the names of headers as they came."""
    async with serving(Echo().app, h11_pass_raw_headers=raw) as server:
        peer = server.connect()
        head = await peer.upgrade(OFFER)
        assert b" 101 " in head
        assert b"extensions" not in head.lower()
        await peer.say("plain")
        assert await peer.hear() == TextMessage(data="plain")


async def test_the_trap_is_real_compression_is_accepted(autojump_clock: Clock, stock: None) -> None:
    """Without the remedy hypercorn accepts it whenever it is offered."""
    async with serving(Echo().app) as server:
        assert b"permessage-deflate" in await server.connect().upgrade(OFFER)


async def test_a_message_too_big_ends_its_own_connection(autojump_clock: Clock, logs: Any) -> None:
    """64 KiB pass; one byte more is answered with 1009, the handler is told at once, the rest of
    the message is not collected, and other calls go on."""
    echo = Echo()
    async with serving(echo.app) as server:
        call = await server.live_call()
        peer = await server.live_call()
        await peer.say("x" * MAX_MESSAGE_BYTES)
        assert await peer.hear() == TextMessage(data="x" * MAX_MESSAGE_BYTES)
        await peer.say("x" * (MAX_MESSAGE_BYTES + 1))
        assert await peer.hear_close() == 1009
        assert await peer.hear() is None
        assert echo.told == [0.0]
        assert server.connections == 1
        await call.say("hello")
        assert await call.hear() == TextMessage(data="hello")


@pytest.mark.parametrize("chosen", [None, 1000, 16 * 1024 * 1024])
async def test_an_operators_limit_stays(autojump_clock: Clock, chosen: int | None) -> None:
    """Only what was left at hypercorn's default is replaced."""
    options = {} if chosen is None else {"websocket_max_message_size": chosen}
    async with serving(Echo().app, **options) as server:
        await server.live_call()
        assert server.config.websocket_max_message_size == (chosen or MAX_MESSAGE_BYTES)
    assert Config.websocket_max_message_size > MAX_MESSAGE_BYTES


async def test_a_copied_scope_leads_to_the_same_guard() -> None:
    """ProxyFixMiddleware copies the scope, deeply; a socket cannot be copied."""
    _, connection = _connection()
    assert copy.deepcopy({"state": {CONNECTION_KEY: connection}}) == {
        "state": {CONNECTION_KEY: connection}
    }


# ---- on real sockets -----------------------------------------------------------------------


class _RealServer:
    def __init__(self, port: int, stop: trio.Event) -> None:
        self.port = port
        self.stop = stop

    async def connect(self, receive_buffer: int | None = None) -> trio.SocketStream:
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self.port))
        return trio.SocketStream(sock)

    async def upgrade(self, path: bytes = b"/ws", **options: Any) -> trio.SocketStream:
        stream = await self.connect(**options)
        await stream.send_all(UPGRADE.replace(b"/ws", path, 1) + b"\r\n")
        assert (await stream.receive_some(12)).startswith(b"HTTP/1.1 101")
        return stream


async def _start(app: Any, nursery: trio.Nursery) -> _RealServer:
    """Start hypercorn with small send buffers, which connections inherit from the listener."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.graceful_timeout = 0.2
    create = config.create_sockets

    def with_small_buffers() -> Any:
        sockets = create()
        for sock in sockets.insecure_sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sockets

    config.create_sockets = with_small_buffers  # type: ignore[method-assign]
    stop = trio.Event()
    addresses = await nursery.start(
        partial(hypercorn.trio.serve, app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
    )
    return _RealServer(int(addresses[0].rpartition(":")[2]), stop)


def _reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def test_a_zero_window_is_given_up(monkeypatch: pytest.MonkeyPatch, logs: Any) -> None:
    """On TCP as in memory: the kernel's buffers full, the handler is told after WRITE_TIMEOUT."""
    monkeypatch.setattr(media_socket, "WRITE_TIMEOUT", 0.3)
    echo = Echo()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server = await _start(echo.app, nursery)
            stream = await server.upgrade(b"/flood", receive_buffer=4096)
            began = trio.current_time()
            await echo.somebody_told.wait()
            assert 0.3 <= echo.told[0] - began < 30
            server.stop.set()
            await stream.aclose()


async def test_a_zero_window_does_not_hold_up_the_shutdown(
    monkeypatch: pytest.MonkeyPatch, logs: Any
) -> None:
    """`serve` returns within its graceful timeout and one write's."""
    monkeypatch.setattr(media_socket, "WRITE_TIMEOUT", 0.5)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server = await _start(Echo().app, nursery)
            stream = await server.upgrade(b"/flood", receive_buffer=4096)
            server.stop.set()
            began = trio.current_time()
        assert trio.current_time() - began < 30
        await stream.aclose()


async def test_a_download_with_a_zero_window_is_given_up(
    monkeypatch: pytest.MonkeyPatch, logs: Any
) -> None:
    """What hypercorn writes, on TCP as in memory."""
    monkeypatch.setattr(guarded, "WRITE_TIMEOUT", 0.3)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server = await _start(Download(), nursery)
            stream = await server.connect(receive_buffer=4096)
            await stream.send_all(GET)
            await trio.sleep(0.1)
            server.stop.set()
        await stream.aclose()


async def test_the_trap_is_real_a_zero_window_holds_up_the_shutdown(logs: Any, stock: None) -> None:
    """Without the remedy `serve` outlasts its graceful timeout until the peer resets."""
    download = Download()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server = await _start(download, nursery)
            stream = await server.connect(receive_buffer=4096)
            await stream.send_all(GET)
            await trio.sleep(0.2)
            server.stop.set()
            await trio.sleep(1.5)
            assert nursery.child_tasks
            assert not download.told
            _reset(stream)


@pytest.mark.parametrize("case", sorted(malformed.FATAL))
async def test_no_peer_harms_another_call_on_sockets(case: str, logs: Any) -> None:
    """The worst of the corpus, on TCP, under hypercorn's own `serve`; a reset ends each."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server = await _start(Echo().app, nursery)
            call = await server.upgrade()
            for rude in (False, True):
                peer = await server.connect()
                for segment in malformed.ALL[case]:
                    try:
                        await peer.send_all(segment)
                    except trio.BrokenResourceError:
                        break
                _reset(peer) if rude else await peer.aclose()
            websocket = Connection(ConnectionType.CLIENT)
            await call.send_all(websocket.send(TextMessage(data="still there?")))
            answer = b""
            while not answer.endswith(b"still there?"):
                data = await call.receive_some()
                assert data
                answer += data
            await call.aclose()
            server.stop.set()


# ---- under hypercorn's own command line ----------------------------------------------------

DEADLY = UPGRADE.replace(b"/ws", b"/media-stream") + b"Sec-WebSocket-Protocol: \xff\xfe\r\n\r\n"
CONFIG = '[server]\nbind = "127.0.0.1:0"\n'


async def test_plain_hypercorn_is_guarded_too(tmp_path: Path) -> None:
    """`hypercorn --worker-class trio bridge.asgi:app` answers after a request that ends stock
    hypercorn: importing the application has put the remedies in."""
    assert await _healthy_after_a_deadly_request(tmp_path, "bridge.asgi:app")


async def test_the_trap_is_real_under_plain_hypercorn(tmp_path: Path) -> None:
    """Without the remedy the worker dies of it, and all of hypercorn with the worker."""
    module = tmp_path / "unguarded.py"
    module.write_text(
        "import hypercorn.protocol.h11, hypercorn.protocol.ws_stream as ws\n"
        "import hypercorn.trio.run, hypercorn.trio.tcp_server\n"
        "import hypercorn.protocol.http_stream as http\n"
        "from bridge.asgi import app\n"
        "hypercorn.protocol.h11.HTTPStream = http.HTTPStream\n"
        "hypercorn.protocol.h11.WSStream = ws.WSStream\n"
        "hypercorn.trio.run.TCPServer = hypercorn.trio.tcp_server.TCPServer\n"
    )
    assert not await _healthy_after_a_deadly_request(tmp_path, "unguarded:app")


async def _healthy_after_a_deadly_request(folder: Path, application: str) -> bool:
    """Start hypercorn, send the request, and return whether GET /healthz is answered then."""
    (folder / "config.toml").write_text(CONFIG)
    environment = {
        **os.environ,
        "BRIDGE_CONFIG": str(folder / "config.toml"),
        "DEEPGRAM_API_KEY": "dg-test-key-0123456789",
        "TWILIO_AUTH_TOKEN": "twilio-auth-token",
        "PYTHONPATH": str(folder),
    }
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                *("-m", "hypercorn", "--worker-class", "trio", "--graceful-timeout", "1"),
                *("--bind", f"fd://{listener.fileno()}", application),
            ],
            env=environment,
            cwd=folder,
            pass_fds=[listener.fileno()],
            stdout=PIPE,
            stderr=PIPE,
        )
        # Served by hypercorn alone from here on: once it is gone, connections are refused.
        listener.close()
        async with trio.open_nursery() as nursery:
            output: list[bytes] = []
            for pipe in (process.stdout, process.stderr):
                nursery.start_soon(_collect, pipe, output)
            try:
                assert await _get(port) == b"ok\n", output
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(DEADLY)
                await _until(stream)
                return await _get(port) == b"ok\n"
            except (OSError, trio.BrokenResourceError):
                return False
            finally:
                with trio.move_on_after(10, shield=True):
                    if process.returncode is None:
                        process.terminate()
                    await process.wait()
                if process.returncode is None:
                    process.kill()


async def _collect(pipe: trio.abc.ReceiveStream | None, output: list[bytes]) -> None:
    assert pipe is not None
    async with pipe:
        output.extend([bytes(data) async for data in pipe])


async def _get(port: int) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    # Not until the end: stock hypercorn does not close it.
    return (await _until(stream, b"ok\n")).partition(b"\r\n\r\n")[2]


async def _until(stream: trio.SocketStream, last: bytes = b"never") -> bytes:
    """Read until `last`, or the end of the connection."""
    answer = b""
    async with stream:
        async for data in stream:
            answer += data
            if answer.endswith(last):
                break
    return answer
