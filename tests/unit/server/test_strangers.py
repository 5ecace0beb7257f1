"""Peers that are slow, loud or many: what each costs is bounded, and calls go on beside them.

Tests named `the_trap_is_real` run hypercorn without the remedy: when one of them fails, a new
release has mended it, and the remedy may go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from wsproto.events import Pong, TextMessage

from bridge.http.media_socket import FRAMES_AT_ONCE, FRAMES_PER_SECOND
from bridge.server import limits
from bridge.server.hypercorn.connection import (
    REQUESTS_AT_ONCE,
    REQUESTS_PER_SECOND,
    GuardedTCPServer,
)
from bridge.server.limits import (
    MOST_CONNECTIONS,
    ConnectionLimiter,
    TokenBucket,
    Turnstile,
    raise_descriptor_limit,
    too_few_connections,
)
from bridge.transport.websocket import PIECE_BYTES, WebSocket
from tests.unit.server.echo import Echo, handled_by
from tests.unit.server.malformed import PING, PONG, TEXT
from tests.unit.server.wire import UPGRADE, Peer, Server, frame, serving, use_stock_hypercorn

Clock = trio.testing.MockClock

# What hypercorn lets a connection be idle, in seconds, its default and ours.
IDLE = 5.0

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stock_hypercorn(monkeypatch)


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], ConnectionLimiter]:
    def make(limit: int) -> ConnectionLimiter:
        ours = ConnectionLimiter(limit)
        monkeypatch.setattr(GuardedTCPServer, "limiter", ours)
        return ours

    return make


# ---- slow ------------------------------------------------------------------------------------

HEADS = {
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 1000,
    "a handshake": UPGRADE + b"X-Slow: " + b"a" * 1000,
    "headers without end": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200,
    "a preface": PREFACE[:10] + b"x" * 1000,
}


@pytest.mark.parametrize("head", HEADS)
async def test_a_head_that_never_ends_is_given_up(autojump_clock: Clock, head: str) -> None:
    """One byte a second keeps a connection no longer than none: five seconds."""
    async with serving(Echo().app) as server:
        peer = server.connect()
        for byte in HEADS[head]:
            await peer.write(bytes([byte]))
            if server.connections == 0:
                break
            await trio.sleep(1)
        assert trio.current_time() <= IDLE + 1


async def test_a_second_request_has_no_more_time_than_the_first(autojump_clock: Clock) -> None:
    """Nor does a peer get to stay by asking properly once."""
    async with serving(Echo().app) as server:
        peer = server.connect()
        await peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        began = trio.current_time()
        for _ in range(20):
            await peer.write(b"G")
            if server.connections == 0:
                break
            await trio.sleep(1)
        assert trio.current_time() - began <= IDLE + 1


async def test_http_2_without_tls_is_refused(autojump_clock: Clock) -> None:
    """Said at once, with HTTP's own "version not supported"."""
    async with serving(Echo().app) as server:
        peer = server.connect()
        await peer.write(PREFACE)
        assert (await peer.stream.receive_some()).startswith(b"HTTP/1.1 505 ")
        await trio.sleep(IDLE + 1)
        assert server.connections == 0


async def test_the_trap_is_real_an_http_2_connection_never_closes(
    autojump_clock: Clock, stock: None
) -> None:
    """Without the remedy one line buys a connection without an end."""
    async with serving(Echo().app) as server:
        await server.connect().write(PREFACE)
        await trio.sleep(1000)
        assert server.connections == 1


async def test_a_wish_for_h2c_is_ignored(autojump_clock: Clock) -> None:
    """And answered in HTTP/1.1, as RFC 9110, section 7.8 allows."""
    async with serving(Echo().app) as server:
        peer = server.connect()
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
        await peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
        assert (await peer.stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_a_flood_of_headers_is_refused(autojump_clock: Clock) -> None:
    """16 KiB of head are enough for anybody; what comes after is not read."""
    async with serving(Echo().app) as server:
        peer = server.connect()
        await peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Header: y\r\n" * 2000)
        assert (await peer.stream.receive_some()).startswith(b"HTTP/1.1 431 ")
        await trio.sleep(IDLE + 1)
        assert server.connections == 0


# ---- loud ------------------------------------------------------------------------------------

FLOODS = {
    "empty messages": frame(TEXT),
    "fragments of nothing": frame(0, fin=False),
    "pings": frame(PING),
    "pongs": frame(PONG),
}
BEGIN = {"fragments of nothing": frame(TEXT, fin=False)}


async def _flooded(server: Server, flood: str, frames: int) -> Peer:
    peer = await server.live_call()
    await peer.write(BEGIN.get(flood, b"") + FLOODS[flood] * frames)
    return peer


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_of_frames_is_read_at_a_bounded_pace(
    autojump_clock: Clock, flood: str
) -> None:
    """A thousand at once, then 250 a second, whatever they are; the rest waits with TCP."""
    async with serving(Echo().app) as server:
        peer = await _flooded(server, flood, 4_000)
        # Its answers are read, or the flood would be stopped by that.
        with trio.move_on_after(3600):
            await peer.write(frame(0) + frame(TEXT, b"last") if flood in BEGIN else b"")
            await peer.say("last")
            while await peer.hear() != TextMessage(data="last"):
                pass
        expected = (4_000 - FRAMES_AT_ONCE) / FRAMES_PER_SECOND
        # What is parsed in one go is waited for behind it, and "last" is in the last of them.
        one_go = PIECE_BYTES / len(FLOODS[flood]) / FRAMES_PER_SECOND
        assert expected - one_go <= trio.current_time() <= expected + 20


async def test_one_byte_at_a_time_is_paced_too(autojump_clock: Clock) -> None:
    """Each read costs something, whatever comes with it, so each counts."""
    reads = 0
    async with serving(Echo().app) as server:
        peer = await server.live_call()
        await trio.testing.wait_all_tasks_blocked()
        receive = peer.server_stream.receive_some

        async def counted(max_bytes: int | None = None) -> bytes:
            nonlocal reads
            reads += 1
            return await receive(max_bytes)

        peer.server_stream.receive_some = counted
        began = trio.current_time()
        for byte in frame(TEXT, b"x" * 94) * 40:
            await peer.write(bytes([byte]))
            await trio.sleep(0.001)
        seconds = trio.current_time() - began
    assert 3.9 < seconds < 4.1
    assert reads <= FRAMES_AT_ONCE + FRAMES_PER_SECOND * seconds + 1


@pytest.mark.parametrize("flood", FLOODS)
async def test_calls_go_on_beside_a_flood(autojump_clock: Clock, flood: str) -> None:
    """In no virtual time at all, and no pass of the loop parses more than PIECE_BYTES."""
    async with serving(Echo().app) as server:
        call = await server.live_call()
        await _flooded(server, flood, 10_000)
        began = trio.current_time()
        await call.say("still there?")
        assert await call.hear() == TextMessage(data="still there?")
        assert trio.current_time() == began


async def test_a_phone_that_catches_up_is_not_slowed(autojump_clock: Clock) -> None:
    """Ten seconds of a phone's messages in one go, twice, with ten seconds in between."""
    async with serving(Echo().app) as server:
        peer = await server.live_call()
        for round_ in range(2):
            began = trio.current_time()
            await peer.say(*["x" * 260] * 499, f"round {round_}")
            while await peer.hear() != TextMessage(data=f"round {round_}"):
                pass
            assert trio.current_time() == began
            await trio.sleep(10)


async def test_a_pause_is_not_held_against_a_peer_that_asks_to_close(
    autojump_clock: Clock,
) -> None:
    """A flood, then Close: answered when it is read, and the handler is told."""
    echo = Echo()
    async with serving(echo.app) as server:
        peer = await _flooded(server, "pongs", 2000)
        await peer.hang_up()
        assert await peer.hear_close() == 1000
        await echo.somebody_told.wait()
        assert echo.told[0] <= 2000 / FRAMES_PER_SECOND


async def test_what_was_read_of_a_flood_is_dropped_when_we_have_closed(
    autojump_clock: Clock,
) -> None:
    """A handler that has had enough ends the connection by its own deadline, and not when the last
    of what had been read by then has been let through."""

    async def handler(socket: WebSocket) -> None:
        received = 0
        while received < 1500:
            received += len(await socket.receive())
        await socket.close(1002, by=trio.current_time() + 0.5)

    async with serving(handled_by(handler)) as server:
        peer = await server.live_call()
        await peer.write(frame(TEXT) * 10_000)
        assert await peer.hear_close() == 1002
        closed_at = trio.current_time()
        await trio.sleep(0.5)
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
        assert trio.current_time() == closed_at + 0.5


def test_what_is_parsed_at_once_takes_a_moment() -> None:
    """A few hundred frames; a read's 64 KiB would be eleven thousand, and 60 ms for every call."""
    assert PIECE_BYTES // len(frame(TEXT)) < 1000


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=200))
def test_no_more_than_the_pace_allows(steps: list[tuple[float, int]]) -> None:
    """Whoever waits as told does at most `at_once` and `per_second` for each second."""
    bucket, now, done = TokenBucket(10, 100), 0.0, 0
    for pause, count in steps:
        now += pause
        wait = bucket.take(count, now)
        done += count
        now += wait
        assert done - 50 <= 100 + 10 * now + 1e-6
        assert wait <= count / 10 + 1e-6


# ---- many ------------------------------------------------------------------------------------


async def test_the_one_that_has_waited_longest_makes_room(
    autojump_clock: Clock, room_for: Callable[[int], ConnectionLimiter]
) -> None:
    """Connections that ask for nothing keep nobody out, and calls are never sent away."""
    room_for(10)
    async with serving(Echo().app) as server:
        call = await server.live_call()
        for _ in range(50):
            server.connect()
            await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 10
        another = await server.live_call()
        for one in (call, another):
            await one.say("still there?")
            assert await one.hear() == TextMessage(data="still there?")


async def test_when_all_are_calls_the_next_is_turned_away(
    autojump_clock: Clock, room_for: Callable[[int], ConnectionLimiter], logs: list[Any]
) -> None:
    """At once, with a line in the log; and when one has gone there is room again."""
    ours = room_for(3)
    async with serving(Echo().app) as server:
        calls = [await server.live_call() for _ in range(3)]
        assert await server.connect().upgrade() == b""
        assert [entry["event"] for entry in logs] == ["too many connections, one turned away"]
        calls[0].reset()
        await trio.testing.wait_all_tasks_blocked()
        await server.live_call()
        assert len(ours) == 3
        assert ours.turned_away == 1


async def test_a_closed_connection_is_not_counted(
    autojump_clock: Clock, room_for: Callable[[int], ConnectionLimiter]
) -> None:
    """By whatever way."""
    ours = room_for(20)
    leave: list[Callable[[Peer], Awaitable[object]]] = [
        lambda peer: peer.write(b"G"),
        lambda peer: peer.write(b"junk\r\n\r\n"),
        lambda peer: peer.upgrade(path=b"/rejected"),
        lambda peer: peer.upgrade(b"Sec-WebSocket-Protocol: \xff\r\n"),
        lambda peer: peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ]
    async with serving(Echo().app) as server:
        for way in leave * 10:
            peer = server.connect()
            await way(peer)
            peer.reset()
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(IDLE + 1)
        assert len(ours) == 0


GONE: dict[str, Callable[[Peer], Any]] = {
    "reset": Peer.reset,
    "half closed": lambda peer: peer.stream.send_stream.close(),
}


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize("gone", GONE)
async def test_a_closed_connection_is_not_waited_for(
    autojump_clock: Clock, said: bytes, gone: str
) -> None:
    """Its descriptor is free at once, before another can ask for it."""
    async with serving(Echo().app) as server:
        peer = server.connect()
        await peer.write(said)
        GONE[gone](peer)
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
        assert trio.current_time() == 0


async def test_the_trap_is_real_a_closed_connection_stays_for_five_seconds(
    autojump_clock: Clock, stock: None
) -> None:
    """Without the remedy whoever comes and goes holds a descriptor all the while."""
    async with serving(Echo().app) as server:
        server.connect().reset()
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 1
        await trio.sleep(IDLE + 1)
        assert server.connections == 0


@pytest.mark.parametrize(
    ("files", "limit"),
    [(1024, 480), (64, 16), (1_000_000, MOST_CONNECTIONS), (-1, MOST_CONNECTIONS)],
)
def test_the_limit_leaves_descriptors_for_the_agents(
    monkeypatch: pytest.MonkeyPatch, files: int, limit: int
) -> None:
    """Each call needs two."""
    monkeypatch.setattr(limits.resource, "getrlimit", lambda what: (files, files))
    assert ConnectionLimiter().limit == limit


def test_calls_that_descriptors_do_not_allow_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding C4: with the remedy that helps."""
    assert too_few_connections(100, 480) == ""
    assert "LimitNOFILE" in too_few_connections(480, 480)
    assert "server.workers" in too_few_connections(5000, MOST_CONNECTIONS)


@pytest.mark.parametrize("refused", [False, True])
def test_the_limit_of_descriptors_is_raised(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """As far as the system allows, and no further."""
    given: list[tuple[int, int]] = []

    def setrlimit(what: int, limits: tuple[int, int]) -> None:
        given.append(limits)
        if refused:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(limits.resource, "getrlimit", lambda what: (1024, 524_288))
    monkeypatch.setattr(limits.resource, "setrlimit", setrlimit)
    raise_descriptor_limit()
    assert given == [(524_288, 524_288)]


def test_pong_is_what_a_pong_is() -> None:
    """The floods above are what they are called; wsproto reads them as such."""
    peer = Peer(None, None)
    peer.websocket.receive_data(b"\x8a\x00")
    assert isinstance(next(peer.websocket.events()), Pong)


# ---- bodies that never come (finding A3) -----------------------------------------------------

UNFINISHED = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nFrom=%2B1"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", UNFINISHED])
async def test_bodies_that_never_come_keep_nobody_out(
    autojump_clock: Clock, room_for: Callable[[int], ConnectionLimiter], sent: bytes
) -> None:
    """Nor whole requests that are being answered, nor calls."""
    room_for(10)
    async with serving(Echo().app) as server:
        call = await server.live_call()
        for _ in range(50):
            await server.connect().write(sent)
        assert server.connections <= 10
        asks = server.connect()
        await asks.write(GET)
        assert (await asks.stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        await call.say("still there?")
        assert await call.hear() == TextMessage(data="still there?")
        assert trio.current_time() == 0


async def test_bodies_under_way_are_bounded(
    autojump_clock: Clock, room_for: Callable[[int], ConnectionLimiter]
) -> None:
    """To half the connections; the one that began first goes."""
    room_for(20)
    async with serving(Echo().app) as server:
        peers = [server.connect() for _ in range(15)]
        for peer in peers:
            await peer.write(UNFINISHED)
        assert server.connections == 10
        assert await peers[0].stream.receive_some() == b""


async def test_a_body_in_two_segments_is_waited_for(
    autojump_clock: Clock, room_for: Callable[[int], ConnectionLimiter]
) -> None:
    """On a connection that a proxy has kept for long, too: its head makes it the newest."""
    room_for(4)
    async with serving(Echo().app) as server:
        kept = server.connect()
        await kept.write(GET)
        await kept.stream.receive_some()
        for _ in range(3):
            server.connect()
            await trio.testing.wait_all_tasks_blocked()
        await kept.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        for _ in range(3):
            server.connect()
            await trio.testing.wait_all_tasks_blocked()
        await kept.write(b"ok")
        assert (await kept.stream.receive_some()).startswith(b"HTTP/1.1 200 ")


# ---- requests one after another (finding B5) -------------------------------------------------


async def _read(peer: Peer) -> None:
    """Read answers for as long as there are any."""
    with suppress(trio.BrokenResourceError):
        while await peer.stream.receive_some(65536):
            pass


async def test_pipelined_requests_are_paced(autojump_clock: Clock) -> None:
    """Many connections together as one: each has one request waiting at most."""
    served, seconds = 0, 10
    echo = Echo()

    @echo.app.before_request
    async def count() -> None:
        nonlocal served
        served += 1

    async with serving(echo.app) as server, trio.open_nursery() as nursery:
        for _ in range(40):
            peer = server.connect()
            nursery.start_soon(_read, peer)
            await peer.write(GET * 200)
        await trio.sleep(seconds)
        assert served <= 40 + REQUESTS_AT_ONCE + REQUESTS_PER_SECOND * seconds + 1
        assert served >= REQUESTS_PER_SECOND * seconds
        began = trio.current_time()
        caller = server.connect()
        await caller.write(GET)
        assert (await caller.stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert trio.current_time() == began, "the first of a connection does not wait"
        nursery.cancel_scope.cancel()


async def test_a_page_and_all_it_loads_is_not_slowed(autojump_clock: Clock) -> None:
    """Nor is a proxy that keeps its connections."""
    async with serving(Echo().app) as server:
        peer = server.connect()
        for _ in range(REQUESTS_AT_ONCE):
            await peer.write(GET)
            assert b" 200 " in await peer.stream.receive_some(65536)
        assert trio.current_time() == 0


async def test_a_task_that_gives_up_its_turn_delays_nobody(autojump_clock: Clock) -> None:
    """Peers that come and go in thousands build up no debt."""
    turnstile = Turnstile(10, 1)
    await turnstile.pass_through()
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(turnstile.pass_through)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await turnstile.pass_through()
    assert trio.current_time() <= 0.3
