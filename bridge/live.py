"""What is going on right now, for those who watch: the console, the softphone, a program.

    calls ──changed──▶ hub ──events──▶ a bounded queue for each viewer ──▶ server-sent events

Theory of operation. A call says no more than that it has changed, which costs it an entry in a set,
and not even that when nobody watches. What has changed is found out by the viewers, in their own
tasks and time: whichever comes first compares each such call with what was last shown of it, and
puts the differences, as events, into the queues of all viewers whom they concern. There is no task
that belongs to the hub, so nothing runs when nobody watches, and a fault in here ends a viewer's
stream and no call.

Events are absolute, not relative ("the transcript is, from line 3 on, …"), so that one too many
does no harm. Hence the remedy for a viewer that reads too slowly: when its queue of QUEUE_EVENTS is
full, all of it is thrown away, and what the viewer gets next is a fresh `snapshot`, made when it
asks for it. That is also how every stream begins. A viewer is never waited for.

The events are, each with JSON:

    snapshot    all there is to know; takes the place of everything before
    began       a call that has been introduced, whole
    call        facts of a call that changed
    transcript, turns, functions
                a list of a call: what it is from item `from` on
    audio       how much audio is on its way, in the calls where that changed
    ended       how a call ended
    server      facts of the server that changed

Who watches one call gets those of this call, beginning with a `snapshot` as soon as there is such a
call, and the stream ends with its `ended`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec
import trio

from bridge import view
from bridge.call import Call
from bridge.seen import Seen, changed

# Each is a connection, a task and a queue. A few people with the console open, and every softphone
# that is talking.
MAX_VIEWERS: Final = 100

# At the busiest, some seconds of one call. Events are shared between queues; a snapshot is not in
# any queue.
QUEUE_EVENTS: Final = 256

# Changes are gathered for so long: no eye is quicker, and calls change in bursts.
GATHER_SECONDS: Final = 0.05

# What nobody tells of is looked at so often: audio that plays, and states that time changes.
LOOK_SECONDS: Final = 0.25
SERVER_LOOK_SECONDS: Final = 1.0

# Calls that ended and that no viewer has taken notice of yet. Beyond, all get fresh snapshots.
MAX_OVER: Final = 256


class TooManyViewers(Exception):
    """There are MAX_VIEWERS already."""


class Stopped(Exception):
    """The server stops, so there will be nothing to see."""


class Viewer:
    """Somebody who watches: everything, or one call. Made by `Live.watching`."""

    def __init__(self, live: Live, call_sid: str, call: Call | None) -> None:
        self.call_sid = call_sid
        self.resynchronised = 0
        """How often this viewer was too slow."""
        self._live = live
        self._call = call
        self._over = False
        self._stale = True
        self._queue: deque[bytes] = deque()
        self._wake = trio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether there is something to see: always, unless it is of a call yet to come."""
        return not self.call_sid or self._call is not None

    async def next(self, within: float) -> bytes | None:
        """Wait for the next event and return it as one server-sent event; None if there is none
        `within` so many seconds.

        Raises trio.EndOfChannel when there will be no more: the call is over and its `ended` was
        returned, or the server stops. Cancelling it loses nothing.
        """
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + within
        while not self._live.closed:
            self._live.refresh()
            if (event := self._take()) is not None:
                return event
            if trio.current_time() >= deadline:
                return None
            self._wake = trio.Event()
            with trio.CancelScope(deadline=min(deadline, self._live.due_at)):
                await self._wake.wait()
        raise trio.EndOfChannel

    def _take(self) -> bytes | None:
        if self._stale and self.has_begun:
            self._stale = False
            return self._live.snapshot(self._call)
        if self._queue:
            return self._queue.popleft()
        if not self._over:
            return None
        if self._call is None:
            raise trio.EndOfChannel
        if self._live.settle(self._call):
            return self._take()  # its last changes come before its end
        call, self._call = self._call, None
        return event("ended", **view.ending(call))

    # ---- by the hub -----------------------------------------------------------------------------

    def put(self, event: bytes) -> None:
        """Queue an event; with the queue full, a fresh snapshot instead of all of it."""
        if self._stale:
            return  # it gets all there is to know anyway
        if len(self._queue) < QUEUE_EVENTS:
            self._queue.append(event)
        else:
            self.resynchronised += 1
            self.begin_anew()
        self._wake.set()

    def begin_anew(self, call: Call | None = None) -> None:
        """Let the next event be a snapshot: of `call`, where one call is watched."""
        self._queue.clear()
        self._stale = True
        self._call = call or self._call
        self._wake.set()

    def call_over(self, call: Call) -> None:
        """The call is over, and nothing about it will change any more."""
        if self._call is call:
            self._over = True
            self._wake.set()

    def wake(self) -> None:
        """Something has changed that this viewer may want to find out about."""
        self._wake.set()


class Live:
    """The hub of one application, and a `bridge.call.Keeper` for what calls tell of themselves.

    `calls` are those that are being carried. `server` gives the facts of the server, JSON-able,
    and is asked once a second while somebody watches everything.
    """

    def __init__(
        self, calls: Iterable[Call], server: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self._calls = calls
        self.server = server
        self.closed = False
        self._everything: set[Viewer] = set()
        self._of_call: dict[str, set[Viewer]] = {}
        self._viewers = 0
        # Insertion-ordered, so that viewers see calls change in the order in which they did.
        self._dirty: dict[Call, None] = {}
        self._over: list[Call] = []
        self._seen: dict[Call, Seen] = {}
        self._seen_server: dict[str, Any] = {}
        self._gathered_at = self._looked_at = self._server_looked_at = float("-inf")

    # ---- watching -------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many watch."""
        return self._viewers

    @contextmanager
    def watching(self, call_sid: str = "") -> Iterator[Viewer]:
        """Watch everything, or the call of that SID, which may not have begun yet.

        Raises TooManyViewers, and Stopped when the server stops.
        """
        if self.closed:
            raise Stopped
        if self._viewers >= MAX_VIEWERS:
            raise TooManyViewers
        viewer = Viewer(self, call_sid, self.find(call_sid) if call_sid else None)
        group = self._of_call.setdefault(call_sid, set()) if call_sid else self._everything
        group.add(viewer)
        self._viewers += 1
        try:
            yield viewer
        finally:
            self._viewers -= 1
            group.discard(viewer)
            if call_sid and not group and self._of_call.get(call_sid) is group:
                del self._of_call[call_sid]
            if not self._viewers:
                self._forget()

    def find(self, call_sid: str) -> Call | None:
        """The live call of that SID that has been introduced."""
        return next((call for call in self._calls if _sid(call) == call_sid), None)

    def close(self) -> None:
        """End all streams, and begin none: the server stops. Returns at once."""
        self.closed = True
        for viewer in self._all():
            viewer.wake()

    # ---- told by calls: never waits, never raises -----------------------------------------------

    def changed(self, call: Call) -> None:
        """There is something new to see of a call."""
        if self._viewers and call not in self._dirty:
            viewers = self._interested(_sid(call))
            if viewers:
                self._dirty[call] = None
                for viewer in viewers:
                    viewer.wake()

    def began(self, call: Call) -> None:
        """The call has been introduced."""
        call.conversation.changed = partial(self.changed, call)
        for viewer in self._of_call.get(_sid(call), ()):
            viewer.begin_anew(call)
        self.changed(call)

    def is_ending(self, call: Call) -> None:
        """The outcome is known."""
        self.changed(call)

    def ended(self, call: Call) -> None:
        """The call is over, to the last byte."""
        self.changed(call)
        for viewer in self._of_call.get(_sid(call), ()):
            viewer.call_over(call)
        if call not in self._dirty:
            self._seen.pop(call, None)
            return
        self._over.append(call)
        if len(self._over) > MAX_OVER:
            self._forget()
            for viewer in self._all():
                viewer.begin_anew()

    # ---- finding out, in a viewer's task --------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When there is something to find out, if nobody tells of anything before."""
        gathered = self._gathered_at + GATHER_SECONDS if self._dirty else float("inf")
        return min(gathered, self._looked_at + LOOK_SECONDS)

    def refresh(self) -> None:
        """Find out what has changed, if it is time to, and tell all viewers."""
        now = trio.current_time()
        if now >= self._looked_at + LOOK_SECONDS:
            self._look(now)
        elif self._dirty and now >= self._gathered_at + GATHER_SECONDS:
            self._gather(now)

    def settle(self, call: Call) -> bool:
        """Tell of what changed in a call, unless that is done. Returns whether it was not."""
        if call not in self._dirty:
            return False
        self._gather(trio.current_time())
        return True

    def snapshot(self, call: Call | None) -> bytes:
        """All there is to know now, of one call or of everything, as an event."""
        now = trio.current_time()
        # First of all, so that what changes from now on is compared with what is shown now.
        self._look(now)
        if call is not None:
            return event("snapshot", call=view.whole(call, now))
        live = sorted(self._watched(), key=lambda call: call.seconds_so_far, reverse=True)
        return event(
            "snapshot",
            server=dict(self.server()),
            calls=[view.whole(call, now) for call in live],
        )

    def _look(self, now: float) -> None:
        """Look at all calls, told of or not, and at the server."""
        self._looked_at = now
        watched = self._watched()
        self._dirty |= dict.fromkeys(watched)
        self._gather(now)
        audio: dict[str, dict[str, int]] = {}
        for call in watched:
            if new := self._seen[call].new_audio(call, now):
                audio[_sid(call)] = new
        if audio:
            self._tell(self._everything, event("audio", calls=audio))
            for call_sid, new in audio.items():
                if viewers := self._of_call.get(call_sid):
                    self._tell(viewers, event("audio", calls={call_sid: new}))
        if self._everything and now >= self._server_looked_at + SERVER_LOOK_SECONDS:
            self._server_looked_at = now
            old, self._seen_server = self._seen_server, dict(self.server())
            if new_facts := changed(old, self._seen_server):
                self._tell(self._everything, event("server", **new_facts))

    def _gather(self, now: float) -> None:
        """Tell of what changed in the calls that said so."""
        self._gathered_at = now
        dirty, self._dirty = self._dirty, {}
        over, self._over = self._over, []
        for call in dirty:
            self._compare(call, now)
        if over:
            self._server_looked_at = float("-inf")  # there is room again: that is news
        for call in over:
            self._seen.pop(call, None)
            self._tell(self._everything, event("ended", **view.ending(call)))

    def _compare(self, call: Call, now: float) -> None:
        seen = self._seen.get(call)
        if seen is None:
            self._seen[call] = Seen(call, now)
            self._server_looked_at = float("-inf")
            self._tell(self._everything, event("began", call=view.whole(call, now)))
            return
        stamp, viewers = _stamp(call), self._interested(_sid(call))
        for name, first, items in seen.new_items(call, now):
            rest = [msgspec.Raw(item) for item in items]
            self._tell(viewers, event(name, **stamp, **{"from": first, "items": rest}))
        if facts := seen.new_facts(call, now):
            self._tell(viewers, event("call", **stamp, **facts))

    def _tell(self, viewers: Iterable[Viewer], event: bytes) -> None:
        for viewer in viewers:
            viewer.put(event)

    def _watched(self) -> list[Call]:
        """The live calls that somebody watches."""
        return [call for call in self._calls if _sid(call) and self._interested(_sid(call))]

    def _interested(self, call_sid: str) -> set[Viewer]:
        if not call_sid:
            return set()
        return self._everything | self._of_call.get(call_sid, set())

    def _all(self) -> list[Viewer]:
        return list(self._everything.union(*self._of_call.values()))

    def _forget(self) -> None:
        self._dirty.clear()
        self._over.clear()
        self._seen.clear()


def event(name: str, **data: Any) -> bytes:
    """A server-sent event: its name, and one line of JSON.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


def _sid(call: Call) -> str:
    return call.report.info.call_sid if call.report.info is not None else ""


def _stamp(call: Call) -> dict[str, Any]:
    return {"call_sid": _sid(call), "at": round(call.seconds_so_far, 3)}
