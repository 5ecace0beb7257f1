"""Limits on what remote peers cost the server: connections at once, and messages a second.

Any address may connect, since Twilio does not publish the addresses that it calls from. The limits
bound what one peer, and all peers together, can cost; they are far above what a call needs.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Hashable
from typing import Final

# An idle connection costs about 30 KB; this many use up the memory of a small server.
MOST_CONNECTIONS: Final = 4096

# Descriptors reserved for what is not a connection: files, the database, pipes, listeners.
RESERVED_DESCRIPTORS: Final = 64


class ConnectionLimiter:
    """Bounds the connections of one process to `limit`.

    When the limit is reached, the connection that has been idle longest is closed to make room.
    So a peer that opens connections and sends nothing, or a byte now and then, does not shut
    others out: a peer that sends its request at once, as Twilio does, is never the longest idle.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._busy: set[Hashable] = set()
        # In the order in which they became idle.
        self._idle: dict[Hashable, Callable[[], object]] = {}
        self.turned_away = 0

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._busy) + len(self._idle)

    @property
    def limit(self) -> int:
        """The most connections at once: by default half the process's descriptors, since each
        call needs a second one for its agent."""
        if self._limit is None:
            files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if files == resource.RLIM_INFINITY:
                files = 2 * MOST_CONNECTIONS + RESERVED_DESCRIPTORS
            self._limit = min(MOST_CONNECTIONS, max(16, (files - RESERVED_DESCRIPTORS) // 2))
        return self._limit

    def admit(self, connection: Hashable, close: Callable[[], object]) -> bool:
        """Count a new, idle connection, and return whether there is room for it.

        `close` is called at most once, to close the connection when another needs its place;
        the connection no longer counts from then on.
        """
        if len(self) >= self.limit:
            self.turned_away += 1
            if not self._idle:
                return False
            longest = next(iter(self._idle))
            self._idle.pop(longest)()
        self._idle[connection] = close
        return True

    def busy(self, connection: Hashable) -> None:
        """Note that a request is being served: the connection is not closed to make room."""
        if self._idle.pop(connection, None) is not None:
            self._busy.add(connection)

    def idle(self, connection: Hashable, close: Callable[[], object]) -> None:
        """Note that a busy connection has been served and may be closed to make room."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = close

    def closed(self, connection: Hashable) -> None:
        """Stop counting a connection. Does nothing for one that does not count any more."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)


class TokenBucket:
    """Allows `at_once` events in a burst, and `per_second` of them from then on.

    The caller passes the time in, in seconds of any one clock.

    >>> bucket = TokenBucket(per_second=10, at_once=100)
    >>> bucket.take(100, now=0.0), bucket.take(1, now=0.0)
    (0.0, 0.1)
    """

    def __init__(self, per_second: float, at_once: int) -> None:
        self._each = 1 / per_second
        self._ahead = at_once / per_second
        self._paid_until = float("-inf")

    def take(self, count: int, now: float) -> float:
        """Take `count` tokens, and return how many seconds to wait afterwards; mostly 0."""
        self._paid_until = max(self._paid_until, now) + count * self._each
        return max(0.0, self._paid_until - now - self._ahead)
