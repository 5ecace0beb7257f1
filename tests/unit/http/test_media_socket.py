"""What Quart and quart-trio do to a call's socket, and that `media_socket` keeps it from happening.

Tests named `the_trap_is_real` run quart-trio's own connection class: when one of them fails, a new
release has mended it, and the remedy may go.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, ClassVar, cast

import pytest
import trio
import trio.testing
from quart import Response, abort, websocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIWebsocketConnection
from structlog.testing import capture_logs
from wsproto.events import TextMessage

from bridge.http.media_socket import DirectWebsocketConnection, QuartMediaSocket
from bridge.server.hypercorn.guard import WRITE_TIMEOUT
from bridge.twilio.media_stream import PhoneGone
from tests.unit.server.wire import UPGRADE, Peer, serving

Clock = trio.testing.MockClock
Handler = Callable[[QuartMediaSocket], Awaitable[Any]]


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


def running(handler: Handler, *, accept: bool = True, stock: bool = False) -> QuartTrio:
    """An application whose one websocket is handled by `handler`."""
    app = QuartTrio("test")
    app.asgi_websocket_class = TrioASGIWebsocketConnection if stock else DirectWebsocketConnection

    @app.websocket("/ws")
    async def handle() -> Any:
        if accept:
            await websocket.accept()
        return await handler(QuartMediaSocket(cast("Any", websocket)._get_current_object()))

    return app


# ---- everything said is heard, and then the end --------------------------------------------

WORDS = [f"message {number}" for number in range(9)] + ["stop"]


async def _heard_by_a_slow_handler(*, stock: bool) -> list[str | bytes]:
    """What a handler hears that works on each message, all of them and Close in one segment."""
    heard: list[str | bytes] = []

    async def handler(socket: QuartMediaSocket) -> None:
        while True:
            heard.extend(await socket.receive())
            await trio.sleep(0.005)

    async with serving(running(handler, stock=stock)) as server:
        peer = await server.live_call()
        await peer.stream.send_all(peer.frames(*WORDS) + b"\x88\x82\0\0\0\0\x03\xe8")
        await trio.sleep(10)
    return heard


async def test_what_came_before_the_close_is_heard(autojump_clock: Clock, logs: Any) -> None:
    """Every message received before a disconnect is delivered, `stop` among them."""
    assert await _heard_by_a_slow_handler(stock=False) == WORDS


async def test_the_trap_is_real_what_came_before_the_close_is_lost(autojump_clock: Clock) -> None:
    """Without the remedy the handler is cancelled with messages unread."""
    assert len(await _heard_by_a_slow_handler(stock=True)) < len(WORDS)


async def say_close(peer: Peer) -> None:
    await peer.hang_up()


async def say_fin(peer: Peer) -> None:
    await peer.stream.send_eof()


async def reset(peer: Peer) -> None:
    peer.reset()


@pytest.mark.parametrize("leave", [say_close, say_fin, reset])
async def test_every_disconnect_is_phone_gone(autojump_clock: Clock, leave: Any, logs: Any) -> None:
    """However the peer goes, `receive` raises PhoneGone, again at every further call; and the
    handler, which nobody cancels, may still await what it likes."""
    gone = 0
    finished = False

    async def handler(socket: QuartMediaSocket) -> None:
        nonlocal gone, finished
        for _ in range(5):
            try:
                await socket.receive()
            except PhoneGone:
                gone += 1
        await trio.sleep(1)
        await socket.send("to nobody")
        finished = True

    async with serving(running(handler)) as server:
        peer = await server.live_call()
        await leave(peer)
        await trio.sleep(2)
        assert gone == 5
        assert finished
        assert server.connections == 0
    assert logs == []


async def test_receiving_from_a_socket_that_is_gone_lets_others_run(
    autojump_clock: Clock, logs: Any
) -> None:
    """A loop that ignores PhoneGone does not freeze the process."""

    async def receive(socket: QuartMediaSocket) -> None:
        try:
            await socket.receive()
        except PhoneGone:
            pass

    assert await _turns_of_another_task(receive) > 9_000


async def test_an_empty_binary_message_is_bytes(autojump_clock: Clock, logs: Any) -> None:
    """An empty message is a message."""
    assert await _received_as(b"", stock=False) == b""
    assert await _received_as("", stock=False) == ""


async def test_the_trap_is_real_an_empty_binary_message_is_none(autojump_clock: Clock) -> None:
    """Without the remedy it is neither text nor bytes."""
    assert await _received_as(b"", stock=True) is None


async def _received_as(message: str | bytes, *, stock: bool) -> Any:
    received: list[Any] = []

    async def handler(socket: QuartMediaSocket) -> None:
        received.extend(await socket.receive())

    async with serving(running(handler, stock=stock)) as server:
        peer = await server.live_call()
        await peer.say(message)
    return received[0]


async def test_a_handler_that_lets_phone_gone_out_is_no_failure(
    autojump_clock: Clock, logs: Any
) -> None:
    """A normal hang-up logs nothing here, also from within a nursery."""

    async def handler(socket: QuartMediaSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(socket.receive)
            await socket.receive()

    async with serving(running(handler)) as server:
        await (await server.live_call()).hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
    assert logs == []


# ---- no error is lost ----------------------------------------------------------------------


async def raise_bare(socket: QuartMediaSocket) -> None:
    raise ValueError("a bug")


async def raise_in_a_nursery(socket: QuartMediaSocket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise ValueError("a bug")


async def raise_in_cleanup(socket: QuartMediaSocket) -> None:
    """Fail on the way out of a cancelled scope of its own."""
    with trio.CancelScope() as scope:
        scope.cancel(reason="test")
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("a bug")


async def raise_with_phone_gone(socket: QuartMediaSocket) -> None:
    raise BaseExceptionGroup("both", [PhoneGone(), ValueError("a bug")])


FAILURES = [raise_bare, raise_in_a_nursery, raise_in_cleanup, raise_with_phone_gone]


@pytest.mark.parametrize("handler", FAILURES)
async def test_a_failed_handler_closes_with_1011(
    autojump_clock: Clock, handler: Handler, logs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer is told 1011, "internal error", and the error is logged once, with its traceback;
    neither Quart nor hypercorn logs it again."""
    async with serving(running(handler), errorlog=logging.getLogger("hypercorn")) as server:
        peer = await server.live_call()
        assert await peer.hear_close() == 1011
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
    (entry,) = logs
    assert entry["log_level"] == "error"
    assert pytest.RaisesExc(ValueError, match="a bug").matches(_leaf(entry["exc_info"]))
    assert entry["exc_info"].__traceback__ is not None
    assert caplog.records == []


async def test_the_trap_is_real_a_failed_handler_closes_with_1000(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the remedy the peer takes the crash for a normal end."""
    async with serving(running(raise_bare, stock=True)) as server:
        assert await (await server.live_call()).hear_close() == 1000


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        (error,) = [each for each in error.exceptions if not isinstance(each, PhoneGone)]
    return error


async def _fail_while_cancelled(*, stock: bool, caplog: pytest.LogCaptureFixture) -> int:
    """Cancel a handler one of whose tasks fails in its cleanup; return how often Python's logging
    was told."""

    async def failing_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("cleanup failed")

    async def handler(socket: QuartMediaSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failing_cleanup)
            await trio.sleep_forever()

    app = running(handler, stock=stock)
    async with serving(app, errorlog=logging.getLogger("hypercorn")) as server:
        await server.live_call()
    return len(caplog.records)


async def test_an_error_in_company_of_cancelled_is_logged(
    autojump_clock: Clock, logs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The server stops and a call's cleanup fails: the stop goes on, the error is not lost."""
    assert await _fail_while_cancelled(stock=False, caplog=caplog) == 0
    (entry,) = logs
    assert entry["exc_info"].subgroup(ValueError) is not None


async def test_the_trap_is_real_an_error_in_company_of_cancelled_is_lost(
    autojump_clock: Clock, logs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the remedy not a line is logged."""
    assert await _fail_while_cancelled(stock=True, caplog=caplog) == 0
    assert logs == []


async def test_keyboard_interrupt_in_a_handler_passes(autojump_clock: Clock, logs: Any) -> None:
    """Ctrl-C ends the server, in whatever company it leaves a call."""

    async def handler(socket: QuartMediaSocket) -> None:
        raise BaseExceptionGroup("nursery", [ValueError("a bug"), KeyboardInterrupt()])

    with pytest.raises(BaseExceptionGroup) as caught:
        await _one_call(handler)
    assert caught.group_contains(KeyboardInterrupt)
    assert [entry["event"] for entry in logs] == ["websocket handler failed"]


async def _one_call(handler: Handler) -> None:
    async with serving(running(handler)) as server:
        await server.live_call()
        await trio.testing.wait_all_tasks_blocked()


# ---- sending and closing -------------------------------------------------------------------


async def _turns_of_another_task(use: Handler) -> int:
    """Use a socket that is gone 10,000 times in a tight loop; return how many turns another task
    got meanwhile."""
    turns = 0
    meanwhile = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def handler(socket: QuartMediaSocket) -> None:
        nonlocal meanwhile
        try:
            await socket.receive()
        except PhoneGone:
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(10_000):
                await use(socket)
            meanwhile = turns
            nursery.cancel_scope.cancel(reason="counted")

    async with serving(running(handler)) as server:
        await (await server.live_call()).hang_up()
        await trio.testing.wait_all_tasks_blocked()
    return meanwhile


async def test_sending_to_a_socket_that_is_gone_lets_others_run(
    autojump_clock: Clock, logs: Any
) -> None:
    """A tight loop of sends cannot freeze the process, and nothing is raised."""

    async def send(socket: QuartMediaSocket) -> None:
        await socket.send("to nobody")

    assert await _turns_of_another_task(send) > 9_000


async def test_the_trap_is_real_sending_to_a_socket_that_is_gone_freezes(
    autojump_clock: Clock, logs: Any
) -> None:
    """Without the remedy Quart's send returns without a checkpoint: no other task runs."""

    async def send(socket: QuartMediaSocket) -> None:
        await socket._websocket.send("to nobody")

    assert await _turns_of_another_task(send) < 10


async def test_a_cancelled_send_sends_nothing(autojump_clock: Clock, logs: Any) -> None:
    """Whole or not at all: what was cancelled before it began is not sent, later messages are."""

    async def handler(socket: QuartMediaSocket) -> None:
        with trio.CancelScope() as scope:
            scope.cancel(reason="test")
            await socket.send("cancelled")
        assert scope.cancelled_caught
        await socket.send("sent")

    async with serving(running(handler)) as server:
        assert await (await server.live_call()).hear() == TextMessage(data="sent")


async def test_close_says_its_code_once(autojump_clock: Clock, logs: Any) -> None:
    """The peer gets one Close frame with our code, however often the handler closes."""

    async def handler(socket: QuartMediaSocket) -> None:
        for code in (4000, 4001, 4002):
            await socket.close(code, by=trio.current_time() + 1)

    async with serving(running(handler)) as server:
        peer = await server.live_call()
        assert await peer.hear_close() == 4000
        assert await peer.hear() is None
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
    assert logs == []


@pytest.mark.parametrize("leave", [say_close, say_fin, reset])
async def test_close_of_a_socket_that_is_gone_is_silent(
    autojump_clock: Clock, leave: Any, logs: Any
) -> None:
    """Closing after the peer has gone raises nothing, takes no time and logs nothing."""
    took = None

    async def handler(socket: QuartMediaSocket) -> None:
        nonlocal took
        with pytest.raises(PhoneGone):
            await socket.receive()
        began = trio.current_time()
        await socket.close(1000, by=began + 1)
        await socket.close(1000, by=began + 1)
        took = trio.current_time() - began

    async with serving(running(handler)) as server:
        await leave(await server.live_call())
        await trio.testing.wait_all_tasks_blocked()
    assert took == 0
    assert logs == []


async def test_close_of_a_peer_that_stops_reading_is_bounded(
    autojump_clock: Clock, logs: Any
) -> None:
    """Close returns by its deadline, the connection is dropped, and a task that was stuck in
    `send` is free."""
    ended: list[float] = []

    async def handler(socket: QuartMediaSocket) -> None:
        async def keep_sending() -> None:
            await socket.send("stuck")
            ended.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_sending)
            await trio.sleep(1)
            await socket.close(1000, by=trio.current_time() + 0.5)
            ended.append(trio.current_time())

    async with serving(running(handler)) as server:
        peer = server.connect()
        await peer.upgrade()
        peer.stop_reading()
        await trio.sleep(WRITE_TIMEOUT - 1)
        assert ended == [1.5, 1.5]
        assert server.connections == 0


async def test_close_after_its_deadline_drops_the_connection(
    autojump_clock: Clock, logs: Any
) -> None:
    """A close that comes too late to say goodbye ends the connection all the same, at once."""

    async def handler(socket: QuartMediaSocket) -> None:
        await socket.close(1000, by=trio.current_time())

    async with serving(running(handler)) as server:
        peer = await server.live_call()
        assert await peer.hear_close() is None
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
        assert trio.current_time() == 0


async def test_close_is_bounded_without_a_guard(autojump_clock: Clock) -> None:
    """On a server that is not ours, close still returns by its deadline."""

    class Stuck:
        scope: ClassVar[dict[str, Any]] = {}

        async def close(self, code: int) -> None:
            await trio.sleep_forever()

    await QuartMediaSocket(cast("Any", Stuck())).close(1000, by=2.0)
    assert trio.current_time() == 2.0


# ---- before the accept ---------------------------------------------------------------------


async def _rejected(handler: Handler) -> tuple[bytes, bytes]:
    """Return the head and the body of the answer to a handshake the handler does not accept."""
    async with serving(running(handler, accept=False)) as server:
        peer = server.connect()
        await peer.write(UPGRADE + b"\r\n")
        answer = bytes(await peer.stream.receive_some(65536))
        await peer.write(b"bytes after a rejection")
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_a_response_instead_of_the_accept(autojump_clock: Clock, logs: Any) -> None:
    """A handler that returns a response rejects with it: status, headers and body."""

    async def handler(socket: QuartMediaSocket) -> Response:
        return Response("busy", status=503, headers={"Retry-After": "5"})

    head, body = await _rejected(handler)
    assert head.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 5" in head
    assert body == b"busy"


async def test_abort_instead_of_the_accept(autojump_clock: Clock, logs: Any) -> None:
    """`abort` rejects, also from within a nursery, and is not logged as a failure."""

    async def handler(socket: QuartMediaSocket) -> None:
        abort(403)

    async def in_a_nursery(socket: QuartMediaSocket) -> None:
        async with trio.open_nursery():
            abort(403)

    for each in (handler, in_a_nursery):
        head, _ = await _rejected(each)
        assert head.startswith(b"HTTP/1.1 403")
    assert logs == []


async def test_close_instead_of_the_accept(autojump_clock: Clock, logs: Any) -> None:
    """Closing a socket that was never accepted is the rejection ASGI has for it."""

    async def handler(socket: QuartMediaSocket) -> None:
        await socket.close(1000, by=trio.current_time() + 1)

    head, _ = await _rejected(handler)
    assert head.startswith(b"HTTP/1.1 403")


async def test_a_failure_before_the_accept_is_500(autojump_clock: Clock, logs: Any) -> None:
    """As for any request; hypercorn logs it."""
    head, _ = await _rejected(raise_bare)
    assert head.startswith(b"HTTP/1.1 500")


async def test_no_route_is_404(autojump_clock: Clock, logs: Any) -> None:
    """A websocket nobody handles is rejected and closed."""
    async with serving(running(raise_bare)) as server:
        peer = server.connect()
        assert b" 404 " in await peer.upgrade(path=b"/elsewhere")
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
