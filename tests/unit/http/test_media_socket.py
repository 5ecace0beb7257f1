"""What Quart and quart-trio would do to a call's socket, and that `media_socket` prevents it.

Tests named `the_trap_is_real` run quart-trio's own connection class: when one of them fails, a new
release has mended it, and the remedy may go.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import Any, cast

import pytest
import trio
import trio.testing
from quart import Response, abort, websocket
from quart.wrappers import Websocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIWebsocketConnection
from structlog.testing import capture_logs
from wsproto.events import TextMessage

from bridge.http.media_socket import CLOSE_TIMEOUT, WRITE_TIMEOUT, accepted
from bridge.transport.websocket import WebSocket, WebSocketClosed
from bridge.twilio.media_stream import PhoneGone
from tests.unit.server.echo import Handler, handled_by
from tests.unit.server.wire import UPGRADE, Peer, serving, use_stock_hypercorn

Clock = trio.testing.MockClock


@pytest.fixture
def stock_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stock_hypercorn(monkeypatch)


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


def stock(handler: Callable[[Websocket], Awaitable[Any]]) -> QuartTrio:
    """An application of quart-trio's own, whose one websocket is accepted and handled."""
    app = QuartTrio("test")
    app.asgi_websocket_class = TrioASGIWebsocketConnection

    @app.websocket("/ws")
    async def handle() -> Any:
        await websocket.accept()
        return await handler(cast("Any", websocket)._get_current_object())

    return app


# ---- everything said is heard, and then the end --------------------------------------------

WORDS = [f"message {number}" for number in range(9)] + ["stop"]


SEGMENT_END = b"\x88\x82\0\0\0\0\x03\xe8"  # a Close with 1000


async def test_what_came_before_the_close_is_heard(autojump_clock: Clock, logs: Any) -> None:
    """Every message received before a disconnect is delivered, `stop` among them, also to a
    handler that works on each, all of them and Close in one segment."""
    heard: list[str | bytes] = []

    async def handler(socket: WebSocket) -> None:
        while True:
            for message in await socket.receive():
                heard.append(message)
                await trio.sleep(0.005)

    async with serving(handled_by(handler)) as server:
        peer = await server.live_call()
        await peer.stream.send_all(peer.frames(*WORDS) + SEGMENT_END)
        await trio.sleep(10)
    assert heard == WORDS


async def test_the_trap_is_real_what_came_before_the_close_is_lost(
    autojump_clock: Clock, stock_hypercorn: None
) -> None:
    """Without the remedy the handler is cancelled with messages unread."""
    heard: list[str | bytes] = []

    async def handler(socket: Websocket) -> None:
        while True:
            heard.append(await socket.receive())
            await trio.sleep(0.005)

    async with serving(stock(handler)) as server:
        peer = await server.live_call()
        await peer.stream.send_all(peer.frames(*WORDS) + SEGMENT_END)
        await trio.sleep(10)
    assert len(heard) < len(WORDS)


async def say_close(peer: Peer) -> None:
    await peer.hang_up()


async def say_fin(peer: Peer) -> None:
    await peer.stream.send_eof()


async def reset(peer: Peer) -> None:
    peer.reset()


@pytest.mark.parametrize("leave", [say_close, say_fin, reset])
async def test_every_disconnect_is_an_exception(
    autojump_clock: Clock, leave: Any, logs: Any
) -> None:
    """However the peer goes, `receive` raises WebSocketClosed, again at every further call, and
    `send`, too; the handler, which is not cancelled, may still await what it likes."""
    gone = 0
    finished = False

    async def handler(socket: WebSocket) -> None:
        nonlocal gone, finished
        for _ in range(5):
            try:
                await socket.receive()
            except WebSocketClosed:
                gone += 1
        await trio.sleep(1)
        with pytest.raises(WebSocketClosed):
            await socket.send("to nobody")
        finished = True

    async with serving(handled_by(handler)) as server:
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
    """A loop that ignores WebSocketClosed does not freeze the process."""

    async def receive(socket: WebSocket) -> None:
        try:
            await socket.receive()
        except WebSocketClosed:
            pass

    assert await _turns_of_another_task(receive) > 900


@pytest.mark.parametrize("message", ["", b""])
async def test_an_empty_message_is_a_message(
    autojump_clock: Clock, logs: Any, message: str | bytes
) -> None:
    """Text or bytes, as it was sent."""
    received: list[Any] = []

    async def handler(socket: WebSocket) -> None:
        received.extend(await socket.receive())

    async with serving(handled_by(handler)) as server:
        peer = await server.live_call()
        await peer.say(message)
    assert received == [message]


async def test_a_handler_that_lets_phone_gone_out_is_no_failure(
    autojump_clock: Clock, logs: Any
) -> None:
    """A normal hang-up logs nothing here, also from within a nursery."""

    async def handler(socket: WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(socket.receive)
            await socket.receive()

    async with serving(handled_by(handler)) as server:
        await (await server.live_call()).hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
    assert logs == []


# ---- no error is lost ----------------------------------------------------------------------


async def raise_bare(socket: Any) -> None:
    raise ValueError("a bug")


async def raise_in_a_nursery(socket: WebSocket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise ValueError("a bug")


async def raise_in_cleanup(socket: WebSocket) -> None:
    """Fail on the way out of a cancelled scope of its own."""
    with trio.CancelScope() as scope:
        scope.cancel(reason="test")
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("a bug")


async def raise_with_phone_gone(socket: WebSocket) -> None:
    raise BaseExceptionGroup("both", [PhoneGone(), ValueError("a bug")])


FAILURES = [raise_bare, raise_in_a_nursery, raise_in_cleanup, raise_with_phone_gone]


@pytest.mark.parametrize("handler", FAILURES)
async def test_a_failed_handler_closes_with_1011(
    autojump_clock: Clock, handler: Handler, logs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer is told 1011, "internal error", and the error is logged once, with its traceback;
    neither Quart nor hypercorn logs it again."""
    async with serving(handled_by(handler), errorlog=logging.getLogger("hypercorn")) as server:
        peer = await server.live_call()
        assert await peer.hear_close() == 1011
        # A peer that does not answer is not waited for.
        await trio.sleep(CLOSE_TIMEOUT)
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
    (entry,) = logs
    assert entry["log_level"] == "error"
    assert pytest.RaisesExc(ValueError, match="a bug").matches(_leaf(entry["exc_info"]))
    assert entry["exc_info"].__traceback__ is not None
    assert caplog.records == []


async def test_the_trap_is_real_a_failed_handler_closes_with_1000(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, stock_hypercorn: None
) -> None:
    """Without the remedy the peer takes the crash for a normal end."""
    async with serving(stock(raise_bare)) as server:
        assert await (await server.live_call()).hear_close() == 1000


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        (error,) = [each for each in error.exceptions if not isinstance(each, PhoneGone)]
    return error


async def fail_while_cancelled(socket: Any) -> None:
    """A handler one of whose tasks fails in its cleanup when it is cancelled."""

    async def failing_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("cleanup failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(failing_cleanup)
        await trio.sleep_forever()


async def test_an_error_in_company_of_cancelled_is_logged(
    autojump_clock: Clock, logs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The server stops and a call's cleanup fails: the stop goes on, the error is not lost."""
    app = handled_by(fail_while_cancelled)
    async with serving(app, errorlog=logging.getLogger("hypercorn")) as server:
        await server.live_call()
        await trio.testing.wait_all_tasks_blocked()
    assert caplog.records == []
    (entry,) = logs
    assert entry["exc_info"].subgroup(ValueError) is not None


async def test_the_trap_is_real_an_error_in_company_of_cancelled_is_lost(
    autojump_clock: Clock, logs: Any, caplog: pytest.LogCaptureFixture, stock_hypercorn: None
) -> None:
    """Without the remedy not a line is logged."""
    app = stock(fail_while_cancelled)
    async with serving(app, errorlog=logging.getLogger("hypercorn")) as server:
        await server.live_call()
        await trio.testing.wait_all_tasks_blocked()
    assert caplog.records == []
    assert logs == []


async def test_keyboard_interrupt_in_a_handler_passes(autojump_clock: Clock, logs: Any) -> None:
    """Ctrl-C ends the server, in whatever company it leaves a call."""

    async def handler(socket: WebSocket) -> None:
        raise BaseExceptionGroup("nursery", [ValueError("a bug"), KeyboardInterrupt()])

    with pytest.raises(BaseExceptionGroup) as caught:
        await _one_call(handler)
    assert caught.group_contains(KeyboardInterrupt)
    assert [entry["event"] for entry in logs] == ["websocket handler failed"]


async def _one_call(handler: Handler) -> None:
    async with serving(handled_by(handler)) as server:
        await server.live_call()
        await trio.sleep(CLOSE_TIMEOUT + 1)


# ---- sending and closing -------------------------------------------------------------------


async def _turns_of_another_task(use: Handler) -> int:
    """Use a socket that is gone 1,000 times in a tight loop; return how many turns another task
    gets meanwhile."""
    turns = 0
    meanwhile = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def handler(socket: WebSocket) -> None:
        nonlocal meanwhile
        try:
            await socket.receive()
        except WebSocketClosed:
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(1_000):
                await use(socket)
            meanwhile = turns
            nursery.cancel_scope.cancel(reason="counted")

    async with serving(handled_by(handler)) as server:
        await (await server.live_call()).hang_up()
        await trio.testing.wait_all_tasks_blocked()
    return meanwhile


async def test_sending_to_a_socket_that_is_gone_lets_others_run(
    autojump_clock: Clock, logs: Any
) -> None:
    """A tight loop of sends cannot freeze the process."""

    async def send(socket: WebSocket) -> None:
        with suppress(WebSocketClosed):
            await socket.send("to nobody")

    assert await _turns_of_another_task(send) > 900


async def test_a_cancelled_send_sends_nothing(autojump_clock: Clock, logs: Any) -> None:
    """Whole or not at all: what was cancelled before it began is not sent, later messages are."""

    async def handler(socket: WebSocket) -> None:
        with trio.CancelScope() as scope:
            scope.cancel(reason="test")
            await socket.send("cancelled")
        assert scope.cancelled_caught
        await socket.send("sent")

    async with serving(handled_by(handler)) as server:
        assert await (await server.live_call()).hear() == TextMessage(data="sent")


async def test_close_says_its_code_once(autojump_clock: Clock, logs: Any) -> None:
    """The peer gets one Close frame with our code, however often the handler closes."""

    async def handler(socket: WebSocket) -> None:
        for code in (4000, 4001, 4002):
            await socket.close(code, by=trio.current_time() + 1)

    async with serving(handled_by(handler)) as server:
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

    async def handler(socket: WebSocket) -> None:
        nonlocal took
        with pytest.raises(WebSocketClosed):
            await socket.receive()
        began = trio.current_time()
        await socket.close(1000, by=began + 1)
        await socket.close(1000, by=began + 1)
        took = trio.current_time() - began

    async with serving(handled_by(handler)) as server:
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

    async def handler(socket: WebSocket) -> None:
        async def keep_sending() -> None:
            with suppress(WebSocketClosed):
                await socket.send("stuck")
            ended.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_sending)
            await trio.sleep(1)
            await socket.close(1000, by=trio.current_time() + 0.5)
            ended.append(trio.current_time())

    async with serving(handled_by(handler)) as server:
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

    async def handler(socket: WebSocket) -> None:
        await socket.close(1000, by=trio.current_time())

    async with serving(handled_by(handler)) as server:
        peer = await server.live_call()
        assert await peer.hear_close() is None
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
        assert trio.current_time() == 0


# ---- before the accept ---------------------------------------------------------------------


async def _rejected(handler: Handler) -> tuple[bytes, bytes]:
    """Return the head and the body of the answer to a handshake the handler does not accept."""
    async with serving(handled_by(handler, accept=False)) as server:
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

    async def handler(socket: WebSocket) -> Response:
        return Response("busy", status=503, headers={"Retry-After": "5"})

    head, body = await _rejected(handler)
    assert head.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 5" in head
    assert body == b"busy"


async def test_abort_instead_of_the_accept(autojump_clock: Clock, logs: Any) -> None:
    """`abort` rejects, also from within a nursery, and is not logged as a failure."""

    async def handler(socket: WebSocket) -> None:
        abort(403)

    async def in_a_nursery(socket: WebSocket) -> None:
        async with trio.open_nursery():
            abort(403)

    for each in (handler, in_a_nursery):
        head, _ = await _rejected(each)
        assert head.startswith(b"HTTP/1.1 403")
    assert logs == []


async def test_a_failure_before_the_accept_is_500(autojump_clock: Clock, logs: Any) -> None:
    """As for any request; hypercorn logs it."""
    head, _ = await _rejected(raise_bare)
    assert head.startswith(b"HTTP/1.1 500")


async def test_no_route_is_404(autojump_clock: Clock, logs: Any) -> None:
    """A websocket nobody handles is rejected and closed."""
    async with serving(handled_by(raise_bare)) as server:
        peer = server.connect()
        assert b" 404 " in await peer.upgrade(path=b"/elsewhere")
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0


async def test_a_peer_that_leaves_before_the_accept_is_gone_and_no_error(
    autojump_clock: Clock, logs: Any
) -> None:
    """A webhook's caller may hang up while the handshake is being checked."""
    gone: list[bool] = []

    async def handler(socket: Any) -> None:
        await trio.sleep(1)
        with pytest.raises(WebSocketClosed):
            async with accepted(socket):
                pytest.fail("there is nobody to accept")
        gone.append(True)

    async with serving(handled_by(handler, accept=False)) as server:
        peer = server.connect()
        await peer.write(UPGRADE + b"\r\n")
        await peer.stream.aclose()
        await trio.sleep(5)
        assert server.connections == 0
    assert gone == [True]
    assert not [line for line in logs if line["log_level"] == "error"]
