"""The websocket class on every kind of stream it is used on: what is sent whole, what is bounded.

What RFC 6455 says of frames is in tests/conformance; here are streams, deadlines and cancellation.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from bridge.server.limits import TokenBucket
from bridge.transport.byte_stream import SocketBytes, StreamBytes, byte_stream
from bridge.transport.websocket import (
    FAILURE_SECONDS,
    SENDS_BETWEEN_CHECKPOINTS,
    WebSocket,
    WebSocketClosed,
)

Clock = trio.testing.MockClock
Pair = tuple[trio.abc.Stream, trio.abc.Stream]

SERVER, CLIENT = ConnectionType.SERVER, ConnectionType.CLIENT
WRITE_TIMEOUT = 5.0
MAX_MESSAGE = 64 * 1024


async def plain_pair() -> Pair:
    """Two ends of a socket, with buffers of a few kilobytes."""
    ends = trio.socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return trio.SocketStream(ends[0]), trio.SocketStream(ends[1])


async def memory_pair() -> Pair:
    return trio.testing.memory_stream_pair()


async def tls_pair() -> Pair:
    """Two ends of a TLS connection on a socket, our end the server's."""
    authority = trustme.CA()
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("bridge.test").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)
    near, far = await plain_pair()
    server: Any = trio.SSLStream(near, ours, server_side=True, https_compatible=True)
    client: Any = trio.SSLStream(far, theirs, server_hostname="bridge.test", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await client.do_handshake()
    return server, client


PAIRS = {"plain": plain_pair, "memory": memory_pair, "tls": tls_pair}
on_every_stream = pytest.mark.parametrize("kind", PAIRS)


class Peer:
    """The other end: wsproto, and what it received."""

    def __init__(self, stream: trio.abc.Stream, role: ConnectionType = CLIENT) -> None:
        self.stream = stream
        self.connection = Connection(role)
        self.heard: list[Event] = []

    async def send(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(map(self.connection.send, events)))

    async def hear(self) -> Event | None:
        """Return the next event, messages whole; None at the end of the stream."""
        text: Any = None
        while True:
            for event in self.connection.events():
                if not isinstance(event, Message):
                    return event
                text = event.data if text is None else text + event.data
                if event.message_finished:
                    kind = TextMessage if isinstance(event, TextMessage) else BytesMessage
                    return kind(data=text)
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self.connection.receive_data(data)


@asynccontextmanager
async def connected(
    kind: str, role: ConnectionType = SERVER, **options: Any
) -> AsyncIterator[tuple[WebSocket, Peer]]:
    ours, theirs = await PAIRS[kind]()
    websocket = WebSocket(
        ours,
        role,
        **{"max_message": MAX_MESSAGE, "write_timeout": WRITE_TIMEOUT, **options},
    )
    # Real streams take real time; a test that waits in vain ends.
    with trio.fail_after(30):
        try:
            yield websocket, Peer(theirs, CLIENT if role is SERVER else SERVER)
        finally:
            await websocket.drop()
            await trio.aclose_forcefully(theirs)


def later(seconds: float) -> float:
    return trio.current_time() + seconds


# ---- messages ------------------------------------------------------------------------------------


@on_every_stream
@pytest.mark.parametrize("role", [SERVER, CLIENT])
async def test_messages_of_any_length_go_both_ways(kind: str, role: ConnectionType) -> None:
    """Also those that are longer than what a socket takes at once, or a read brings."""
    async with connected(kind, role) as (websocket, peer), trio.open_nursery() as nursery:
        for size in (0, 1, 125, 126, 4096, 20_000, MAX_MESSAGE):
            data = os.urandom(size)
            nursery.start_soon(websocket.send, data)
            assert await peer.hear() == BytesMessage(data=data)
            nursery.start_soon(peer.send, TextMessage(data="x" * size))
            assert await websocket.receive() == ["x" * size]


@on_every_stream
async def test_messages_that_came_together_are_received_together(kind: str) -> None:
    async with connected(kind) as (websocket, peer):
        await peer.send(*[TextMessage(data=str(number)) for number in range(10)])
        assert await websocket.receive() == [str(number) for number in range(10)]


async def test_bytes_that_were_read_with_the_handshake_come_first() -> None:
    """Half a frame before the websocket began, half of it after."""
    said = Connection(CLIENT).send(TextMessage(data="early"))
    async with connected("plain", received=said[:3]) as (websocket, peer):
        await peer.stream.send_all(said[3:])
        assert await websocket.receive() == ["early"]


@on_every_stream
async def test_cancelling_receive_loses_nothing(kind: str) -> None:
    async with connected(kind) as (websocket, peer):
        said = peer.connection.send(TextMessage(data="in two pieces"))
        for piece in (said[:5], said[5:]):
            with trio.move_on_after(0.02):
                await websocket.receive()
            await peer.stream.send_all(piece)
        assert await websocket.receive() == ["in two pieces"]


async def test_when_it_came_is_when_it_was_read(autojump_clock: Clock) -> None:
    async with connected("memory") as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.receive)
        await trio.sleep(3)
        await peer.send(TextMessage(data="x"))
        await trio.testing.wait_all_tasks_blocked()
        assert websocket.received_at == trio.current_time()


# ---- ping, pong and the end ----------------------------------------------------------------------


@on_every_stream
async def test_a_ping_is_answered_while_a_task_receives(kind: str) -> None:
    async with connected(kind) as (websocket, peer):
        await peer.send(Ping(payload=b"1"), TextMessage(data="x"), Ping(payload=b"2"))
        assert await websocket.receive() == ["x"]
        assert await peer.hear() == Pong(payload=b"1")
        assert await peer.hear() == Pong(payload=b"2")


async def test_a_pong_that_could_not_be_written_yet_is_kept(autojump_clock: Clock) -> None:
    """The task that receives is cancelled while another task's message is on its way."""
    async with connected("memory") as (websocket, peer), trio.open_nursery() as nursery:
        release = hold_writes(websocket)
        nursery.start_soon(websocket.send, "first")
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(Ping(payload=b"p"), TextMessage(data="x"))
        with trio.move_on_after(1) as scope:
            await websocket.receive()
        assert scope.cancelled_caught
        release()
        assert await websocket.receive() == ["x"]
        # What was not written yet goes before the next read.
        with trio.move_on_after(1):
            await websocket.receive()
        assert await peer.hear() == TextMessage(data="first")
        assert await peer.hear() == Pong(payload=b"p")


@on_every_stream
async def test_the_peers_close_is_answered_after_its_last_message(kind: str) -> None:
    async with connected(kind) as (websocket, peer):
        await peer.send(TextMessage(data="last"), CloseConnection(code=4000, reason="enough"))
        assert await websocket.receive() == ["last"]
        for _ in range(2):
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.receive()
            assert (closed.value.code, closed.value.reason) == (4000, "enough")
            assert not closed.value.broke_protocol
        assert await peer.hear() == CloseConnection(code=4000, reason="enough")
        assert await peer.hear() is None


@on_every_stream
async def test_a_lost_connection_is_1006(kind: str) -> None:
    async with connected(kind) as (websocket, peer):
        await trio.aclose_forcefully(peer.stream)
        for attempt in (websocket.receive, websocket.receive, lambda: websocket.send("x")):
            with pytest.raises(WebSocketClosed) as closed:
                await attempt()
            assert closed.value.code == 1006


@on_every_stream
async def test_close_says_its_code_and_waits_for_the_answer(kind: str) -> None:
    """What the peer says meanwhile is discarded."""
    async with connected(kind) as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: websocket.close(4001, by=later(20)))
        assert await peer.hear() == CloseConnection(code=4001, reason="")
        await peer.stream.send_all(Connection(CLIENT).send(TextMessage(data="too late")))
        await peer.send(CloseConnection(code=4001))
        assert await peer.hear() is None


@on_every_stream
async def test_close_ends_by_its_deadline_with_a_peer_that_never_answers(kind: str) -> None:
    async with connected(kind) as (websocket, peer):
        began = trio.current_time()
        await websocket.close(by=began + 0.1)
        assert 0.1 <= trio.current_time() - began < 20
        assert await peer.hear() == CloseConnection(code=1000, reason="")
        assert await peer.hear() is None


@on_every_stream
async def test_close_while_another_task_receives(kind: str) -> None:
    """The task that receives goes on reading until the answer, and is told the end."""
    async with connected(kind) as (websocket, peer), trio.open_nursery() as nursery:
        told: list[int] = []

        async def receive() -> None:
            try:
                while True:
                    await websocket.receive()
            except WebSocketClosed as closed:
                told.append(closed.code)

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: websocket.close(1001, by=later(20)))
        assert isinstance(await peer.hear(), CloseConnection)
        await peer.send(CloseConnection(code=1001))
        assert await peer.hear() is None
    assert told == [1001]


@on_every_stream
async def test_drop_wakes_the_task_that_receives(kind: str) -> None:
    async with connected(kind) as (websocket, _), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(WebSocketClosed):
                await websocket.receive()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await websocket.drop()
        await websocket.drop()


async def test_a_cancelled_close_drops_the_connection(autojump_clock: Clock) -> None:
    async with connected("memory") as (websocket, peer):
        with trio.move_on_after(1) as scope:
            await websocket.close(by=100)
        assert scope.cancelled_caught
        assert trio.current_time() == 1
        assert isinstance(await peer.hear(), CloseConnection)
        assert await peer.hear() is None


# ---- never half a frame --------------------------------------------------------------------------


def hold_writes(websocket: WebSocket) -> Callable[[], None]:
    """Let the writes of a websocket in memory wait until what is returned is called."""
    stream: Any = websocket._stream._stream  # type: ignore[attr-defined]
    deliver = stream.send_stream.send_all_hook
    go_on = trio.Event()

    async def held() -> None:
        await go_on.wait()
        await deliver()

    stream.send_stream.send_all_hook = held
    return go_on.set


BIG = os.urandom(60_000)


@on_every_stream
async def test_a_send_that_has_begun_is_finished_although_it_is_cancelled(kind: str) -> None:
    """Part of it is in the kernel's buffer, which is full; the peer reads on after a while."""
    async with connected(kind) as (websocket, peer), trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def send() -> None:
            with scope:
                await websocket.send(BIG)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.02)
        scope.cancel(reason="test")
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert await peer.hear() == BytesMessage(data=BIG)
        await websocket.send("and the next is whole")
        assert await peer.hear() == TextMessage(data="and the next is whole")


@on_every_stream
async def test_a_send_that_is_cancelled_before_it_begins_sends_nothing(kind: str) -> None:
    async with connected(kind) as (websocket, peer):
        with trio.CancelScope() as scope:
            scope.cancel(reason="test")
            await websocket.send("cancelled")
        assert scope.cancelled_caught
        await websocket.send("sent")
        assert await peer.hear() == TextMessage(data="sent")


async def test_a_send_that_is_cancelled_while_another_is_under_way_sends_nothing() -> None:
    async with connected("plain") as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.send, BIG)
        await trio.testing.wait_all_tasks_blocked(0.02)
        with trio.move_on_after(0.02) as scope:
            await websocket.send("cancelled")
        assert scope.cancelled_caught
        nursery.start_soon(websocket.send, "sent")
        assert await peer.hear() == BytesMessage(data=BIG)
        assert await peer.hear() == TextMessage(data="sent")


@on_every_stream
async def test_sends_of_several_tasks_stay_whole_on_a_full_socket(kind: str) -> None:
    """Each write is partial: the buffers take a few kilobytes."""
    async with connected(kind) as (websocket, peer), trio.open_nursery() as nursery:

        async def keep_sending(letter: str) -> None:
            for _ in range(5):
                await websocket.send(letter * 30_000)

        for letter in "abc":
            nursery.start_soon(keep_sending, letter)
        heard = [await peer.hear() for _ in range(15)]
    texts = [event.data for event in heard if isinstance(event, TextMessage)]
    assert sorted(text[0] for text in texts) == list("aaaaabbbbbccccc")
    assert all(text == text[0] * 30_000 for text in texts)


@on_every_stream
async def test_a_peer_that_does_not_read_is_dropped_after_the_write_timeout(kind: str) -> None:
    """Both the task that sends and the one that receives are told."""
    async with connected(kind, write_timeout=0.1) as (websocket, _):
        if kind == "memory":
            hold_writes(websocket)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(WebSocketClosed, match=r"not read for 0\.1 s"):
                    await websocket.receive()

            nursery.start_soon(receive)
            with pytest.raises(WebSocketClosed, match=r"not read for 0\.1 s"):
                await _send_until_closed(websocket)


@on_every_stream
async def test_close_ends_a_send_that_is_stuck_by_its_deadline(kind: str) -> None:
    async with connected(kind) as (websocket, _), trio.open_nursery() as nursery:
        if kind == "memory":
            hold_writes(websocket)
        ended: list[float] = []

        async def send() -> None:
            with suppress(WebSocketClosed):
                while True:
                    await websocket.send(BIG)
            ended.append(trio.current_time())

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.02)
        by = later(0.1)
        await websocket.close(by=by)
        await trio.testing.wait_all_tasks_blocked()
        assert by <= ended[0] < by + WRITE_TIMEOUT / 2


# ---- bounds --------------------------------------------------------------------------------------


@on_every_stream
@pytest.mark.parametrize("fragments", [1, 100])
async def test_a_message_too_big_fails_the_connection(kind: str, fragments: int) -> None:
    """1009, as soon as the limit is passed; messages before it are still received."""
    async with connected(kind, max_message=1000) as (websocket, peer):
        await peer.send(TextMessage(data="x" * 1000))
        assert await websocket.receive() == ["x" * 1000]
        size = 1001 // fragments + 1
        parts = [TextMessage(data="y" * size, message_finished=False)] * (fragments - 1)
        await peer.send(TextMessage(data="last"), *parts, TextMessage(data="y" * size))
        assert await websocket.receive() == ["last"]
        with pytest.raises(WebSocketClosed) as closed:
            await websocket.receive()
        assert closed.value.code == 1009
        assert closed.value.broke_protocol
        said = await peer.hear()
        assert isinstance(said, CloseConnection)
        assert said.code == 1009
        assert await peer.hear() is None


async def test_the_reason_for_failing_is_not_waited_for_long(autojump_clock: Clock) -> None:
    async with connected("memory") as (websocket, peer):
        hold_writes(websocket)
        await peer.stream.send_all(b"\xff\xff\xff\xff")
        with pytest.raises(WebSocketClosed) as closed:
            await websocket.receive()
        assert (closed.value.code, closed.value.broke_protocol) == (1002, True)
        assert trio.current_time() == FAILURE_SECONDS


async def test_a_flood_is_received_at_the_pace_of_its_limit(autojump_clock: Clock) -> None:
    async with connected("memory", pace=TokenBucket(100, 200).take) as (websocket, peer):
        await peer.send(*[TextMessage(data="")] * 1000)
        received = 0
        while received < 1000:
            received += len(await websocket.receive())
        # The last piece is not waited for behind it.
        assert 1 < trio.current_time() <= 8


async def test_drop_ends_the_pause_of_a_flood(autojump_clock: Clock) -> None:
    async with connected("memory", pace=TokenBucket(1, 1).take) as (websocket, peer):
        await peer.send(*[TextMessage(data="")] * 100)
        await websocket.receive()
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(WebSocketClosed):
                    await websocket.receive()

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await websocket.drop()
        assert trio.current_time() == 0


async def _send_until_closed(websocket: WebSocket) -> None:
    while True:
        await websocket.send(BIG)


async def _turns_of_another_task(use: Callable[[], Any], times: int) -> int:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(times):
            await use()
        nursery.cancel_scope.cancel(reason="counted")
    return turns


async def test_a_loop_of_sends_lets_other_tasks_run() -> None:
    """A send that does not wait is no checkpoint; every so many there is one."""
    async with connected("plain") as (websocket, _):
        assert isinstance(websocket._stream, SocketBytes)
        # So many bytes that the socket takes them all.
        websocket._stream._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
        times = 3 * SENDS_BETWEEN_CHECKPOINTS
        turns = await _turns_of_another_task(lambda: websocket.send(""), times)
        assert turns >= 2


@on_every_stream
async def test_a_loop_on_a_websocket_that_is_over_lets_other_tasks_run(kind: str) -> None:
    async with connected(kind) as (websocket, _):
        await websocket.drop()

        async def send() -> None:
            with pytest.raises(WebSocketClosed):
                await websocket.send("x")

        async def receive() -> None:
            with pytest.raises(WebSocketClosed):
                await websocket.receive()

        assert await _turns_of_another_task(send, 100) >= 90
        assert await _turns_of_another_task(receive, 100) >= 90


async def test_a_plain_socket_is_used_directly_and_no_other_stream() -> None:
    for kind, expected in (("plain", SocketBytes), ("memory", StreamBytes), ("tls", StreamBytes)):
        ours, theirs = await PAIRS[kind]()
        assert isinstance(byte_stream(ours), expected)
        await trio.aclose_forcefully(ours)
        await trio.aclose_forcefully(theirs)
