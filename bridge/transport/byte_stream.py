"""The bytes of one connection: a plain socket used directly, any other stream by its own methods.

`trio.SocketStream` pays for its generality on every call: a `recv` that finds nothing before each
wait, a checkpoint after each send that did not have to wait, and conflict detection. A call makes a
hundred reads and a hundred writes a second, so these are a quarter of what it costs. On a plain
socket, therefore, a read waits first and then reads once, and a write is tried before anything is
awaited. TLS and streams in memory are read and written by their own methods.

Both classes have the same four methods, and the tests of `bridge.transport.websocket` run on both.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

import trio

# Two seconds of the agent's audio, or a second of the phone's messages. A buffer of this size is
# allocated for each read and shrunk to what came; with 64 KiB the holes that leaves in the heap
# cost each call tens of kilobytes.
RECEIVE_BYTES: Final = 16 * 1024

# In place of a descriptor: no system call takes it for one.
_CLOSED: Final = -1


class ByteStream(Protocol):
    """What a websocket needs of its connection."""

    async def receive(self) -> bytes:
        """Wait for bytes and return them, RECEIVE_BYTES at most; none at the end.

        Always a checkpoint. Cancelling it loses nothing. Raises trio.BrokenResourceError when the
        connection is lost and trio.ClosedResourceError when it was closed here.
        """

    def send_now(self, data: bytes | bytearray) -> int:
        """Send what can be sent without waiting; return how many bytes that were.

        No checkpoint. Never raises: it is `send_all` that finds out what is wrong.
        """

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send everything. Cancelled, it has sent an unknown part. Raises as `receive`."""

    async def close(self) -> None:
        """Close the connection at once, waking every task that waits for it. Never raises."""


class SocketBytes:
    """A plain socket, read and written without `trio.SocketStream` in between."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        # _CLOSED once `close` was called: the number may be another connection's then.
        self._descriptor = stream.socket.fileno()

    async def receive(self) -> bytes:
        """As `ByteStream`."""
        while True:
            if self._descriptor == _CLOSED:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError("this connection was closed")
            # `trio.socket` calls notify_closing before it closes, which ends this wait.
            await trio.lowlevel.wait_readable(self._descriptor)
            try:
                # Closed since it became readable, this is EBADF.
                return os.read(self._descriptor, RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                if self._descriptor != _CLOSED:
                    raise trio.BrokenResourceError(str(error)) from error

    def send_now(self, data: bytes | bytearray) -> int:
        """As `ByteStream`."""
        try:
            return os.write(self._descriptor, data)
        except OSError:
            return 0

    async def send_all(self, data: bytes | memoryview) -> None:
        """As `ByteStream`."""
        await self._stream.send_all(data)

    async def close(self) -> None:
        """As `ByteStream`."""
        self._descriptor = _CLOSED
        await close_at_once(self._stream)


class StreamBytes:
    """Any stream of Trio's: TLS, or one in memory."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self) -> bytes:
        """As `ByteStream`."""
        return bytes(await self._stream.receive_some(RECEIVE_BYTES))

    def send_now(self, data: bytes | bytearray) -> int:
        """As `ByteStream`: nothing, since such a stream can only be awaited."""
        return 0

    async def send_all(self, data: bytes | memoryview) -> None:
        """As `ByteStream`."""
        await self._stream.send_all(data)

    async def close(self) -> None:
        """As `ByteStream`."""
        await close_at_once(self._stream)


def byte_stream(stream: trio.abc.Stream) -> ByteStream:
    """Return the quickest `ByteStream` on this stream.

    Nothing else may use the stream then, and it is closed by `ByteStream.close` before anything
    else closes it.
    """
    return SocketBytes(stream) if isinstance(stream, trio.SocketStream) else StreamBytes(stream)


async def close_at_once(stream: trio.abc.AsyncResource) -> None:
    """Close a stream without a goodbye and without waiting, whatever the peer does.

    A cancellation from outside is not consumed and does not skip the closing: the shield keeps it
    out, and the scope's own cancellation makes `aclose` take its quick way.
    """
    with trio.CancelScope(shield=True, deadline=float("-inf")):
        await stream.aclose()
