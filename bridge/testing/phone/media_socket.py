"""A websocket client whose opening and closing always end, whatever the server does.

trio-websocket's own `open_websocket` waits for ever for a server that accepts TCP and then says
nothing, and for one that never closes TCP; and it hides why a handshake failed. Here the reader
task lives in a nursery of ours, sheltered from cancellation from outside until the websocket is
closed (a close handshake needs its reader), and every phase has a deadline.
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
CLOSE_SECONDS = 2.0  # for the server's half of the close handshake, and of TCP

HANDSHAKE_FAILED = 31920
CONNECTION_TIMEOUT = 31901
CONNECTION_FAILED = 31903

# One message waiting is trio-websocket's default: while it waits, no ping is answered and no close
# is seen. When sixteen wait the reader stops reading, and TCP holds the server back.
_QUEUE_SIZE = 16
_RECEIVE_BYTES = 64 * 1024


class StreamRefusedError(Exception):
    """The media socket could not be opened: `code` is the error Twilio's debugger would show."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class _Reader:
    """Stands in for the nursery trio-websocket asks for, of which it uses this one method."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.scope = trio.CancelScope(shield=True)
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
            # Whatever it raises is the server's doing (a rejection, junk, a ping amid closing) and
            # shows as the socket not opening or being closed: the cause is kept for the first.
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
    """Open a websocket, give it with the stream below it, and close it at the end.

    Closing takes `close_seconds` at most, also under cancellation; closing the stream oneself
    (`trio.aclose_forcefully`) is losing the connection without a word. Raises `StreamRefusedError`
    when it does not open within `OPEN_SECONDS`.
    """
    # Kept, and raised outside the nursery, so that it does not come out in an exception group.
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
                        # A client lets the server close TCP first (RFC 6455, 7.1.1).
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
