"""Limits on what remote peers cost the server: connections at once, and messages a second.

Any address may connect, since Twilio does not publish the addresses that it calls from. The limits
bound what one peer, and all peers together, can cost; they are far above what a call needs.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final

import trio

# An idle connection costs about 30 KB; this many use up the memory of a small server.
MOST_CONNECTIONS: Final = 4096

# Requests whose body is still to come, each of up to 64 KiB in memory.
MOST_UNFINISHED: Final = 512

# Connections that are left for the webhooks of callers who are to hear "busy".
WEBHOOKS: Final = 16

# Descriptors reserved for what is not a connection: files, the database, pipes, listeners.
RESERVED_DESCRIPTORS: Final = 64


class ConnectionLimiter:
    """Bounds the connections of one process to `limit`.

    When the limit is reached, the connection that has been idle longest is closed to make room.
    So a peer that opens connections and sends nothing, or a byte now and then, does not shut
    others out: a peer that sends its request at once, as Twilio does, is never the longest idle.
    A connection is idle until its request is whole, body included. At most MOST_UNFINISHED, and
    half the limit, have sent part of a request; the one that began first is closed for another.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._busy: set[Hashable] = set()
        # In the order in which they became idle.
        self._idle: dict[Hashable, Callable[[], object]] = {}
        # Those of them whose requests have begun, in that order.
        self._unfinished: dict[Hashable, None] = {}
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
            self._evict(next(iter(self._idle)))
        self._idle[connection] = close
        return True

    def begun(self, connection: Hashable) -> None:
        """Note that an idle connection has sent a request's head: idle since now."""
        if (close := self._idle.pop(connection, None)) is None:
            return
        self._idle[connection] = close
        self._unfinished[connection] = None
        if len(self._unfinished) > min(MOST_UNFINISHED, self.limit // 2):
            self._evict(next(iter(self._unfinished)))

    def busy(self, connection: Hashable) -> None:
        """Note that a whole request is being served: the connection is not closed to make room."""
        self._unfinished.pop(connection, None)
        if self._idle.pop(connection, None) is not None:
            self._busy.add(connection)

    def idle(self, connection: Hashable, close: Callable[[], object]) -> None:
        """Note that a busy connection has been served and may be closed to make room."""
        self._unfinished.pop(connection, None)
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = close

    def closed(self, connection: Hashable) -> None:
        """Stop counting a connection. Does nothing for one that does not count any more."""
        self._busy.discard(connection)
        self._unfinished.pop(connection, None)
        self._idle.pop(connection, None)

    def _evict(self, connection: Hashable) -> None:
        self._unfinished.pop(connection, None)
        self._idle.pop(connection)()


def raise_descriptor_limit() -> None:
    """Raise this process's limit of open descriptors as far as it may.

    The soft limit of 1,024, which systemd and shells set, is there for programs that use select().
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS names no hard limit, and then refuses more than its kernel's own.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def too_few_connections(max_calls: int, limit: int) -> str:
    """Return a warning if `limit` connections are too few for `max_calls` and the webhooks of more;
    otherwise "".
    """
    if max_calls + WEBHOOKS <= limit:
        return ""
    remedy = "raise LimitNOFILE of the systemd unit, or ulimit -n, to three times the calls"
    if limit == MOST_CONNECTIONS:
        remedy = "lower it, and raise server.workers or add servers"
    return (
        f"server.max_calls is {max_calls}, but a process has room for {limit} connections: callers "
        f"beyond that are cut off and hear nothing; {remedy}"
    )


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


class Turnstile:
    """Lets tasks through in the order in which they came, no faster than a TokenBucket allows.

    A task that is cancelled while it waits delays nobody: only the first in the queue has a token.
    """

    def __init__(self, per_second: float, at_once: int) -> None:
        self._bucket = TokenBucket(per_second, at_once)
        self._queue = trio.Lock()

    async def pass_through(self) -> None:
        """Wait for this task's turn."""
        async with self._queue:
            if wait := self._bucket.take(1, trio.current_time()):
                await trio.sleep(wait)
