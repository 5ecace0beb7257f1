"""A websocket client that opens and closes within deadlines, whatever the server does.

trio-websocket's own `open_websocket` waits without a deadline for a server that accepts TCP but
sends nothing, and for one that never closes TCP; and it hides why a handshake failed. Here the
reader task runs in our own nursery, shielded until the websocket is closed (the close handshake
needs it), and every phase has a deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

from bridge.testing.phone.twiml import Address
from bridge.testing.phone.webhook import OpenStream

OPEN_SECONDS = 10.0  # TCP, TLS and handshake together
CLOSE_SECONDS = 2.0  # for the server's part of the close handshake and of closing TCP

HANDSHAKE_FAILED = 31920
CONNECTION_TIMEOUT = 31901
CONNECTION_FAILED = 31903

# trio-websocket's default is 1: while that message waits, pings and closes are not handled. When
# the queue is full the reader stops reading, and TCP backpressure slows the server.
_QUEUE_SIZE = 16
_RECEIVE_BYTES = 64 * 1024


class StreamRefusedError(Exception):
    """The media socket could not be opened: `code` is the error Twilio's debugger would show."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class _Reader:
    """Replaces the nursery that trio-websocket requires; it calls this one method only."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.scope = trio.CancelScope(shield=True)  # deadline: close_seconds, by its owner
        self.opening = trio.CancelScope()
        self.error: Exception | None = None
        self.done = trio.Event()

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(self._run, function, *args)

    async def _run(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        try:
            with self.scope:
                await function(*args)
        except Exception as error:
            # Every exception is the server's fault (a rejection, garbage, a ping while closing) and
            # shows as a socket that does not open or closes; `_refusal` reports the former.
            self.error = error
        finally:
            self.done.set()
            self.opening.cancel("the websocket's reader ended")


@asynccontextmanager
async def open_media_socket(
    address: Address,
    headers: list[tuple[bytes, bytes]],
    open_stream: OpenStream,
    close_seconds: float = CLOSE_SECONDS,
) -> AsyncIterator[tuple[WebSocketConnection, trio.abc.Stream]]:
    """Open a websocket, yield it and its stream, and close it at the end.

    Closing takes at most `close_seconds`, also under cancellation. To lose the connection abruptly,
    close the stream (`trio.aclose_forcefully`). Raises `StreamRefusedError`
    when it does not open within `OPEN_SECONDS`.
    """
    # Raised outside the nursery, so that it is not wrapped in an exception group.
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        reader = _Reader(nursery)
        stream = websocket = None
        reader.opening.deadline = trio.current_time() + OPEN_SECONDS
        try:
            with reader.opening:
                stream = await open_stream(address.host, address.port, address.tls)
                websocket = await wrap_client_stream(
                    cast(trio.Nursery, reader),
                    cast(Any, stream),
                    address.authority,
                    address.target,
                    extra_headers=headers,
                    message_queue_size=_QUEUE_SIZE,
                    receive_buffer_size=_RECEIVE_BYTES,
                )
            if stream is None or websocket is None:
                failure = _refusal(reader)
            else:
                try:
                    yield websocket, stream
                finally:
                    with trio.move_on_after(close_seconds, shield=True):
                        await websocket.aclose()
                        # The server closes TCP first (RFC 6455, 7.1.1).
                        await reader.done.wait()
        except OSError as error:
            failure = (
                error
                if websocket is not None
                else StreamRefusedError(CONNECTION_FAILED, str(error))
            )
        except Exception as error:
            failure = error
        finally:
            reader.scope.cancel("the media socket is being closed")
            if stream is not None:
                await trio.aclose_forcefully(stream)
    if failure is not None:
        raise failure


def _refusal(reader: _Reader) -> StreamRefusedError:
    if not reader.done.is_set():
        return StreamRefusedError(CONNECTION_TIMEOUT, f"not open within {OPEN_SECONDS:g} s")
    if isinstance(reader.error, ConnectionRejected):
        detail = f"the server answered {reader.error.status_code}, not 101"
        return StreamRefusedError(HANDSHAKE_FAILED, detail)
    detail = "the server closed the connection" if reader.error is None else repr(reader.error)
    return StreamRefusedError(HANDSHAKE_FAILED, f"{detail} during the handshake")
