"""How much of the server strangers can take: connections at once, and messages a second.

Everybody may connect, since Twilio calls from addresses nobody knows beforehand. What one peer and
all peers together can cost is bounded here instead, far above what any call needs.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Hashable
from typing import Final

# A connection costs some 30 KB before it has said anything; this many are a small server's memory.
MOST_CONNECTIONS: Final = 4096

# Descriptors that stay for what is no connection: files, the database, pipes, listeners.
RESERVED_DESCRIPTORS: Final = 64


class Crowd:
    """The connections of one process, at most `limit` of them.

    When it is full, the one that has waited longest without asking for anything has to go. So
    somebody who opens connections and leaves them, or says one byte now and then, keeps nobody
    out: whoever asks at once, as Twilio does, is never the one that has waited longest.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._busy: set[Hashable] = set()
        # In the order in which they began to wait.
        self._waiting: dict[Hashable, Callable[[], object]] = {}
        self.turned_away = 0

    def __len__(self) -> int:
        """How many are in."""
        return len(self._busy) + len(self._waiting)

    @property
    def limit(self) -> int:
        """How many may be in. Every call has a second descriptor, for its agent."""
        if self._limit is None:
            files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if files == resource.RLIM_INFINITY:
                files = 2 * MOST_CONNECTIONS + RESERVED_DESCRIPTORS
            self._limit = min(MOST_CONNECTIONS, max(16, (files - RESERVED_DESCRIPTORS) // 2))
        return self._limit

    def enter(self, one: Hashable, leave: Callable[[], object]) -> bool:
        """Let a connection in, and return whether there is room. `leave` asks it to go; it is
        called at most once, and from then on the connection does not count any more."""
        if len(self) >= self.limit:
            self.turned_away += 1
            if not self._waiting:
                return False
            longest = next(iter(self._waiting))
            self._waiting.pop(longest)()
        self._waiting[one] = leave
        return True

    def asks(self, one: Hashable) -> None:
        """A connection has asked for something, and is not sent away while it is served."""
        if self._waiting.pop(one, None) is not None:
            self._busy.add(one)

    def waits(self, one: Hashable, leave: Callable[[], object]) -> None:
        """A connection has been served and may ask again."""
        if one in self._busy:
            self._busy.remove(one)
            self._waiting[one] = leave

    def left(self, one: Hashable) -> None:
        """A connection is over."""
        self._busy.discard(one)
        self._waiting.pop(one, None)


class Pace:
    """Lets `at_once` things happen, and from then on `per_second` of them. Pure: time comes in.

    >>> pace = Pace(per_second=10, at_once=100)
    >>> pace.spend(100, now=0.0), pace.spend(1, now=0.0)
    (0.0, 0.1)
    """

    def __init__(self, per_second: float, at_once: int) -> None:
        self._each = 1 / per_second
        self._ahead = at_once / per_second
        self._paid_until = float("-inf")

    def spend(self, count: int, now: float) -> float:
        """Return how many seconds to wait after `count` things; mostly none."""
        self._paid_until = max(self._paid_until, now) + count * self._each
        return max(0.0, self._paid_until - now - self._ahead)
