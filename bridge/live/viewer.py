"""One viewer: a bounded queue of events, replaced by a new snapshot when it overflows."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol

import msgspec
import trio

from bridge.call.parts import CallParts
from bridge.live import view

# At the busiest, a few seconds of one call. All queues share the same event objects, and the events
# that begin a stream are not queued.
QUEUE_EVENTS: Final = 256


class Hub(Protocol):
    """The source of events; see `bridge.live.hub.Live`."""

    closed: bool

    @property
    def due_at(self) -> float: ...

    def refresh(self) -> None: ...

    def settle(self, call: CallParts) -> bool: ...

    def snapshot(self) -> tuple[bytes, list[CallParts]]: ...

    def whole(self, call: CallParts, name: str) -> bytes: ...

    def find(self, call_sid: str) -> CallParts | None: ...


class Viewer:
    """A viewer of everything, or of one call. Made by `Live.watching`."""

    def __init__(self, hub: Hub, call_sid: str) -> None:
        self.call_sid = call_sid
        self.resynchronised = 0
        """How often this viewer was too slow and got a new snapshot."""
        self._hub = hub
        self._call = hub.find(call_sid) if call_sid else None
        self._over = False
        self._stale = True
        # The calls of a snapshot are sent one by one, so that no single step takes long.
        self._to_show: deque[CallParts] = deque()
        self._queue: deque[bytes] = deque()
        self._wake = trio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether there is something to show; False only while the watched call has not begun."""
        return not self.call_sid or self._call is not None

    async def next(self, within: float) -> bytes | None:
        """Wait for the next event and return it as one server-sent event; None if there is none
        `within` that many seconds.

        Raises trio.EndOfChannel when there are no more: the call is over and its `ended` was
        returned, or the server is stopping. Cancelling it loses no event.
        """
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + within
        while not self._hub.closed:
            self._hub.refresh()
            if (event := self._take()) is not None:
                return event
            if trio.current_time() >= deadline:
                return None
            self._wake = trio.Event()
            with trio.CancelScope(deadline=min(deadline, self._hub.due_at)):
                await self._wake.wait()
        raise trio.EndOfChannel

    def _take(self) -> bytes | None:
        if self._stale and self.has_begun:
            self._stale = False
            if self._call is not None:
                return self._hub.whole(self._call, "snapshot")
            snapshot, calls = self._hub.snapshot()
            self._to_show.extend(calls)
            return snapshot
        while self._to_show:
            call = self._to_show.popleft()
            if self._hub.find(call.report.info.call_sid) is call:
                return self._hub.whole(call, "began")
        if self._queue:
            return self._queue.popleft()
        if not self._over:
            return None
        if self._call is None:
            raise trio.EndOfChannel
        if self._hub.settle(self._call):
            return self._take()  # its last changes come before its end
        call, self._call = self._call, None
        return event("ended", **view.ending(call))

    # ---- called by the hub ----------------------------------------------------------------------

    def put(self, event: bytes) -> None:
        """Queue an event; if the queue is full, discard it and begin again with a snapshot."""
        if self._stale:
            return  # the coming snapshot contains it
        if len(self._queue) < QUEUE_EVENTS:
            self._queue.append(event)
        else:
            self.resynchronised += 1
            self.begin_anew()
        self._wake.set()

    def begin_anew(self, call: CallParts | None = None) -> None:
        """Make the next event a snapshot: of `call`, if this viewer watches one call."""
        self._queue.clear()
        self._to_show.clear()
        self._stale = True
        self._call = call or self._call
        self._wake.set()

    def call_over(self, call: CallParts) -> None:
        """The call is over and will not change any more."""
        if self._call is call:
            self._over = True
            self._wake.set()

    def wake(self) -> None:
        """Wake this viewer's task: something has changed."""
        self._wake.set()


def event(name: str, **data: Any) -> bytes:
    """A server-sent event: its name, and one line of JSON.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
