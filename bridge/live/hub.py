"""The hub of the live view: events of calls for the console, the softphone and API clients.

    calls ──changed──▶ hub ──events──▶ a bounded queue for each viewer ──▶ server-sent events

Theory of operation. A call only reports that it has changed, which costs an entry in a set, and not
even that without viewers. The viewers compute the changes in their own tasks: the first one that
runs compares each changed call with its last shown state, and puts the differences, as events, into
the queues of all viewers concerned. The hub has no task of its own, so without viewers nothing
runs, and an error in this module ends a viewer's stream, but never a call.

Events are absolute, not relative ("from line 3 on, the transcript is …"), so a repeated event does
no harm. This is how a viewer that reads too slowly recovers: when its queue (see `viewer`) is full,
the queue is discarded, and the viewer's next event is a new `snapshot`, made when the viewer asks
for it. Every stream begins in the same way. The hub never waits for a viewer.

The events, each with JSON:

    snapshot    the server, and the SIDs of the live calls, each of which follows as `began`;
                replaces all earlier events
    began       a whole call: it has just begun, or the viewer connected later
    call        facts of a call that changed
    transcript, turns, functions
                a list of a call: its items from index `from` on
    audio       how much audio is buffered, for the calls where that changed
    ended       how a call ended
    server      facts of the server that changed

A viewer of one call gets the events of this call. They begin, as soon as the call exists, with a
`snapshot` of the whole call, and end with its `ended`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import trio

from bridge.call.observers import Observer
from bridge.call.parts import CallParts
from bridge.live import view
from bridge.live.diff import Shown, changed
from bridge.live.viewer import Viewer, event

# Each viewer is a connection, a task and a queue. Enough for a few people with the console open and
# for every softphone in a call.
MAX_VIEWERS: Final = 100

# Seconds for which changes are gathered: calls change in bursts, and a viewer sees no difference.
GATHER_SECONDS: Final = 0.05

# Seconds between polls of what changes without an event: playing audio, and states that time
# changes.
LOOK_SECONDS: Final = 0.25
SERVER_LOOK_SECONDS: Final = 1.0

# Ended calls that no viewer has processed yet. Beyond this limit all viewers get new snapshots.
MAX_OVER: Final = 256


class TooManyViewers(Exception):
    """There are MAX_VIEWERS already."""


class Stopped(Exception):
    """The server is stopping; there will be no more events."""


class Live(Observer):
    """The hub of one application, and an `Observer` of its calls.

    `calls` are the calls in progress. `server` returns the facts of the server, JSON-able; it is
    called once a second while a viewer watches everything.
    """

    def __init__(
        self, calls: Iterable[CallParts], server: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self._calls = calls
        self.server = server
        self.closed = False
        self._everything: set[Viewer] = set()
        self._of_call: dict[str, set[Viewer]] = {}
        self._viewers = 0
        # Insertion-ordered, so that viewers see the changes of calls in their order.
        self._dirty: dict[CallParts, None] = {}
        self._over: list[CallParts] = []
        self._shown: dict[CallParts, Shown] = {}
        self._shown_server: dict[str, Any] = {}
        self._gathered_at = self._looked_at = self._server_looked_at = float("-inf")

    # ---- watching -------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many viewers there are."""
        return self._viewers

    @contextmanager
    def watching(self, call_sid: str = "") -> Iterator[Viewer]:
        """Watch everything, or the call with that SID, which may not have begun yet.

        Raises TooManyViewers, and Stopped when the server is stopping.
        """
        if self.closed:
            raise Stopped
        if self._viewers >= MAX_VIEWERS:
            raise TooManyViewers
        viewer = Viewer(self, call_sid)
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

    def find(self, call_sid: str) -> CallParts | None:
        """Return the live call with that SID, or None."""
        return next((call for call in self._calls if _sid(call) == call_sid), None)

    def close(self) -> None:
        """End all streams and refuse new ones: the server is stopping. Returns at once."""
        self.closed = True
        for viewer in self._all():
            viewer.wake()

    # ---- called by calls: never waits, never raises ---------------------------------------------

    def changed(self, call: CallParts) -> None:
        """A call has changed visibly."""
        if self._viewers and call not in self._dirty:
            viewers = self._interested(_sid(call))
            if viewers:
                self._dirty[call] = None
                for viewer in viewers:
                    viewer.wake()

    def began(self, call: CallParts) -> None:
        """The call has begun."""
        for viewer in self._of_call.get(_sid(call), ()):
            viewer.begin_anew(call)
        self.changed(call)

    def is_ending(self, call: CallParts) -> None:
        """The outcome is known."""
        self.changed(call)

    def ended(self, call: CallParts) -> None:
        """The call is over, and its sockets are closed."""
        self.changed(call)
        for viewer in self._of_call.get(_sid(call), ()):
            viewer.call_over(call)
        if call not in self._dirty:
            self._shown.pop(call, None)
            return
        self._over.append(call)
        if len(self._over) > MAX_OVER:
            self._forget()
            for viewer in self._all():
                viewer.begin_anew()

    # ---- computing changes, in a viewer's task --------------------------------------------------

    @property
    def due_at(self) -> float:
        """When `refresh` has work to do, unless a change is reported before."""
        gathered = self._gathered_at + GATHER_SECONDS if self._dirty else float("inf")
        return min(gathered, self._looked_at + LOOK_SECONDS)

    def refresh(self) -> None:
        """Compute the changes, if they are due, and queue them for the viewers."""
        now = trio.current_time()
        if now >= self._looked_at + LOOK_SECONDS:
            self._look(now)
        elif self._dirty and now >= self._gathered_at + GATHER_SECONDS:
            self._gather(now)

    def settle(self, call: CallParts) -> bool:
        """Queue a call's pending changes now. Returns whether there were any."""
        if call not in self._dirty:
            return False
        self._gather(trio.current_time())
        return True

    def snapshot(self) -> tuple[bytes, list[CallParts]]:
        """Return the server's state, as an event, and the live calls, the oldest first."""
        live = sorted(self._calls, key=lambda call: call.began_at)
        sids = [_sid(call) for call in live]
        return event("snapshot", server=dict(self.server()), call_sids=sids), live

    def whole(self, call: CallParts, name: str) -> bytes:
        """Return the whole state of a call now, as an event with that name."""
        now = trio.current_time()
        if call not in self._shown and self.find(_sid(call)) is call:
            self._compare(call, now)  # later changes become events
        return event(name, call=view.whole(call, now))

    def _look(self, now: float) -> None:
        """Poll what changes without an event: states that time changes, audio, the server."""
        self._looked_at = now
        self._gather(now)
        audio: dict[str, dict[str, int]] = {}
        for call, shown in list(self._shown.items()):
            if not self._interested(_sid(call)):
                del self._shown[call]
                continue
            self._tell_facts(call, shown, now)
            if new := shown.new_audio(call, now):
                audio[_sid(call)] = new
        if audio:
            self._tell(self._everything, event("audio", calls=audio))
            for call_sid, new in audio.items():
                if viewers := self._of_call.get(call_sid):
                    self._tell(viewers, event("audio", calls={call_sid: new}))
        if self._everything and now >= self._server_looked_at + SERVER_LOOK_SECONDS:
            self._server_looked_at = now
            old, self._shown_server = self._shown_server, dict(self.server())
            if news := changed(old, self._shown_server):
                self._tell(self._everything, event("server", **news))

    def _gather(self, now: float) -> None:
        """Queue the changes of the calls that reported some."""
        self._gathered_at = now
        dirty, self._dirty = self._dirty, {}
        over, self._over = self._over, []
        for call in dirty:
            self._compare(call, now)
        if over:
            self._server_looked_at = float("-inf")  # the number of free slots has changed
        for call in over:
            self._shown.pop(call, None)
            self._tell(self._everything, event("ended", **view.ending(call)))

    def _compare(self, call: CallParts, now: float) -> None:
        shown = self._shown.get(call)
        if shown is None:
            self._shown[call] = Shown(call, now)
            self._server_looked_at = float("-inf")
            self._tell(self._everything, event("began", call=view.whole(call, now)))
            return
        viewers = self._interested(_sid(call))
        for name, first, items in shown.new_items(call, now):
            rest = [msgspec.Raw(item) for item in items]
            self._tell(viewers, event(name, **_stamp(call), **{"from": first, "items": rest}))
        self._tell_facts(call, shown, now)

    def _tell_facts(self, call: CallParts, shown: Shown, now: float) -> None:
        if facts := shown.new_facts(call, now):
            self._tell(self._interested(_sid(call)), event("call", **_stamp(call), **facts))

    def _tell(self, viewers: Iterable[Viewer], event: bytes) -> None:
        for viewer in viewers:
            viewer.put(event)

    def _interested(self, call_sid: str) -> set[Viewer]:
        if not call_sid:
            return set()
        return self._everything | self._of_call.get(call_sid, set())

    def _all(self) -> list[Viewer]:
        return list(self._everything.union(*self._of_call.values()))

    def _forget(self) -> None:
        self._dirty.clear()
        self._over.clear()
        self._shown.clear()


def _sid(call: CallParts) -> str:
    return call.report.info.call_sid


def _stamp(call: CallParts) -> dict[str, Any]:
    return {"call_sid": _sid(call), "at": round(call.seconds_so_far, 3)}
