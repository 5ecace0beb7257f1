"""Two remedies for hypercorn's Trio worker: one connection's failure is its own, every write ends.

hypercorn 0.18 runs all connections in one nursery. An exception in one connection's protocol code
(one non-ASCII byte in some headers of an upgrade request is enough) ends that nursery, and with it
the server and every call. And it writes to sockets in a shield without a deadline, so that a peer
which stops reading can be neither timed out nor cancelled nor shut down.

`GuardedTCPServer` takes the place of hypercorn's class. The class it replaces is private, so the
version is pinned in pyproject.toml and tests/server/test_guard.py fails without each remedy.
"""

from __future__ import annotations

from typing import Any, Final

import hypercorn.trio.run
import trio
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer

from bridge.log import get_logger

log = get_logger(__name__)

# How long one write may take. Twilio reads at the pace of a call, so five seconds without reading
# are a dead connection; a slow one would have drained the kernel's buffer long before.
WRITE_TIMEOUT: Final = 5.0

# Where an application finds its connection's guard in the ASGI scope's `state`.
GUARD_KEY: Final = "bridge.guard"


class GuardedTCPServer(TCPServer):
    """One connection of hypercorn's, with its failures contained and its writes bounded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.state = {**self.state, GUARD_KEY: self}
        self._finish_by = float("inf")
        self._writing = trio.CancelScope()

    async def run(self) -> None:
        """Serve the connection. Raises nothing but cancellation and what is not an Exception."""
        try:
            await super().run()
        except* Exception as group:
            # Caused by the peer or by hypercorn, and over: a warning, with what an expert needs.
            log.warning("connection failed", errors=repr(group.exceptions))

    def finish_by(self, deadline: float) -> None:
        """Bound all writes by a time on Trio's clock, the one under way included."""
        self._finish_by = deadline
        self._writing.deadline = min(self._writing.deadline, deadline)

    async def protocol_send(self, event: Event) -> None:
        """Write to the socket within WRITE_TIMEOUT, or drop the connection.

        A write is never cancelled halfway from outside: the shield keeps frames whole. When it
        fails, the stream is closed and hypercorn's reader, which wakes up, tells the application;
        hypercorn would tell it from here, where a cancelled sender loses the news.
        """
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            deadline = min(trio.current_time() + WRITE_TIMEOUT, self._finish_by)
            with trio.CancelScope(shield=True, deadline=deadline) as self._writing:
                try:
                    await self.stream.send_all(event.data)
                    return
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            await self._drop()

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        except Exception as error:
            # What the peer sent broke hypercorn's protocol code. To the application that is a
            # disconnect like any other, and it may still finish what it does on one.
            log.warning("connection failed while reading", error=repr(error))
            await self.protocol.handle(Closed())

    async def _drop(self) -> None:
        with trio.CancelScope(shield=True) as scope:
            scope.cancel(reason="dropping a connection that cannot be written to")
            await self.stream.aclose()


def install() -> None:
    """Make hypercorn use `GuardedTCPServer`, also under its own command line. Idempotent."""
    hypercorn.trio.run.TCPServer = GuardedTCPServer  # type: ignore[attr-defined, assignment]
