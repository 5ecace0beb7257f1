"""The webhook that gives a call its context, over real sockets."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from structlog.typing import EventDict

from bridge.caller import CallInfo
from bridge.deepgram.context_hook import fetch_context

INFO = CallInfo(
    call_sid="CA1",
    stream_sid="MZ1",
    caller="+15551234567",
    called="+15557654321",
    parameters={"campaign": "spring"},
)


@pytest.fixture
def lines() -> Iterator[list[EventDict]]:
    with capture_logs() as captured:
        yield captured


def only_reason(lines: list[EventDict]) -> str:
    (line,) = lines
    assert line["log_level"] == "warning"
    assert line["event"].startswith("call.context_url: ")
    reason = line["reason"]
    assert isinstance(reason, str)
    return reason


async def serve(
    nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]
) -> str:
    listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    return f"http://127.0.0.1:{port}/context"


async def heard_out(stream: trio.SocketStream) -> bytes:
    heard = b""
    while not heard.endswith(b"}}"):
        heard += await stream.receive_some()
    return heard


async def test_over_a_real_socket(lines: list[EventDict]) -> None:
    async def hook(stream: trio.SocketStream) -> None:
        heard = await heard_out(stream)
        assert heard.startswith(b"POST /context HTTP/1.1\r\n")
        await stream.send_all(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"a": "real"}')

    async with trio.open_nursery() as nursery:
        assert await fetch_context(await serve(nursery, hook), INFO, 30.0) == {"a": "real"}
        nursery.cancel_scope.cancel()
    assert lines == []


async def test_a_real_socket_that_breaks_off(lines: list[EventDict]) -> None:
    async def hook(stream: trio.SocketStream) -> None:
        await heard_out(stream)
        await stream.send_all(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"a": "re')

    async with trio.open_nursery() as nursery:
        assert await fetch_context(await serve(nursery, hook), INFO, 30.0) == {}
        nursery.cancel_scope.cancel()
    assert only_reason(lines) == "RemoteProtocolError"


async def test_a_real_socket_that_never_ends_its_answer(lines: list[EventDict]) -> None:
    async def hook(stream: trio.SocketStream) -> None:
        await heard_out(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b" " * 10_000)

    async with trio.open_nursery() as nursery:
        assert await fetch_context(await serve(nursery, hook), INFO, 30.0) == {}
        nursery.cancel_scope.cancel()
    assert "more than" in only_reason(lines)


async def test_a_real_socket_that_never_answers_costs_the_deadline_and_no_more(
    lines: list[EventDict],
) -> None:
    hung_up = trio.Event()

    async def hook(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        hung_up.set()

    async with trio.open_nursery() as nursery:
        url = await serve(nursery, hook)
        began = trio.current_time()
        assert await fetch_context(url, INFO, 0.2) == {}
        assert 0.2 <= trio.current_time() - began < 30
        with trio.fail_after(60):
            await hung_up.wait()
        nursery.cancel_scope.cancel()
    assert only_reason(lines) == "no complete answer within 0.2 seconds"


async def test_a_real_socket_that_refuses(lines: list[EventDict]) -> None:
    with trio.socket.socket() as placeholder:
        # Bound, not listening: no other process can use the port, and connections are refused.
        await placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
        assert await fetch_context(f"http://127.0.0.1:{port}/", INFO, 30.0) == {}
    assert only_reason(lines) == "cannot connect: ConnectionRefusedError"


async def test_cancelled_in_the_middle_of_a_tls_handshake_it_leaves_no_socket() -> None:
    greeted, hung_up = trio.Event(), trio.Event()

    async def hook(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            greeted.set()
        hung_up.set()

    async with trio.open_nursery() as nursery:
        url = (await serve(nursery, hook)).replace("http:", "https:")
        with trio.fail_after(30):
            async with trio.open_nursery() as asking:
                asking.start_soon(fetch_context, url, INFO, 30.0)
                await greeted.wait()
                asking.cancel_scope.cancel()
            await hung_up.wait()
        nursery.cancel_scope.cancel()
    gc.collect()  # now, so that a warning is this test's
