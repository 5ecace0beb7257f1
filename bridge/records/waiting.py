"""Records that wait in memory: bounded, one for each call, oldest call first. Sans-I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bridge.records.record import Snapshot, merge

# More calls than a worker carries, and 10 MB when each has ten minutes of transcript.
WAITING_CALLS: Final = 1_000


class Waiting:
    """A backlog of snapshots, at most WAITING_CALLS of them.

    A snapshot of a call that waits already is merged into the one that is there, and keeps its
    place. When the backlog is full, the call that has waited longest and is still on makes room,
    since its record comes again when it ends. When all of them are over, the new one is refused.
    """

    def __init__(self) -> None:
        self._snapshots: dict[str, Snapshot] = {}

    def __len__(self) -> int:
        return len(self._snapshots)

    def get(self, call_sid: str) -> Snapshot | None:
        """The snapshot of this call, if one waits."""
        return self._snapshots.get(call_sid)

    def add(self, new: Snapshot) -> bool:
        """Take a snapshot. Returns False if there is no room for it."""
        call_sid = new["call_sid"]
        old = self._snapshots.get(call_sid)
        if old is None and len(self._snapshots) >= WAITING_CALLS and not self._make_room():
            return False
        self._snapshots[call_sid] = new if old is None else merge(old, new)
        return True

    def _make_room(self) -> bool:
        for call_sid, one in self._snapshots.items():
            if not one.get("outcome"):
                del self._snapshots[call_sid]
                return True
        return False

    def oldest(self, count: int) -> list[Snapshot]:
        """The snapshots of the `count` calls that have waited longest. They stay until `remove`."""
        return [one for one, _ in zip(self._snapshots.values(), range(count), strict=False)]

    def remove(self, batch: Iterable[Snapshot]) -> None:
        """Remove these snapshots, but not a newer one that has taken the place of one of them."""
        for one in batch:
            if self._snapshots.get(one["call_sid"]) is one:
                del self._snapshots[one["call_sid"]]
