"""The calls this process carries: how many, which, and when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from bridge.call.call import Call
from bridge.outcome import Outcome


class LiveCalls:
    """Live calls, and the media sockets that are about to become calls.

    A call, or a socket, is in it for exactly as long as its context. Only calls are counted and
    iterated over; both are waited for, so that a server which stops does not cut off a caller who
    has just been connected.
    """

    def __init__(self) -> None:
        self._live: set[Call] = set()
        self._sockets: set[trio.CancelScope] = set()
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Call]:
        return iter(tuple(self._live))

    @contextmanager
    def expecting(self) -> Iterator[trio.CancelScope]:
        """Run the block, in which a socket introduces itself, until `stop_expecting`."""
        with trio.CancelScope() as scope:
            self._sockets.add(scope)
            try:
                yield scope
            finally:
                self._sockets.discard(scope)
                self._tell()

    async def end_earlier_legs(self, call_sid: str) -> None:
        """End the calls with this SID, and wait until they are over, which takes as long as a
        teardown at most. There is no checkpoint between the end of the last one and the return.

        Their caller is not told anything: the call goes on with another media stream.
        """
        while earlier := [call for call in self._live if call.report.info.call_sid == call_sid]:
            for call in earlier:
                call.end(Outcome.HANDED_OVER, "another media stream of the call has begun")
            await self._changed.wait()

    def is_on(self, call_sid: str) -> bool:
        """Return whether a call with this SID is on and not ending."""
        return any(
            call.report.info.call_sid == call_sid and call.report.outcome is None
            for call in self._live
        )

    @contextmanager
    def carrying(self, call: Call) -> Iterator[None]:
        """Count this call among the live ones; it is given back on every way out."""
        self._live.add(call)
        try:
            yield
        finally:
            self._live.discard(call)
            self._tell()

    def stop_expecting(self) -> None:
        """Give up the sockets that are not calls yet."""
        for scope in self._sockets:
            scope.cancel(reason="the server is stopping")

    async def wait_until_empty(self) -> None:
        """Wait until no call is live and no socket is about to become one."""
        while self._live or self._sockets:
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
