"""A worker thread for blocking work that one resource allows one caller at a time.

    disk = OneThread()
    lines = await disk.run(partial(spool.peek, 50), within=10)

Theory of operation. A thread cannot be cancelled, only abandoned. An abandoned thread may still be
in the file or the connection, so it keeps the only token until it returns: a later `run` waits for
it, and no two threads are ever in the same place. The token is not one of Trio's shared ones, so a
disk that hangs takes no thread from the rest of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


class OneThread:
    """Runs blocking functions in a thread, one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._token = trio.CapacityLimiter(1)
        self._callers = 0

    @property
    def is_stuck(self) -> bool:
        """Whether an abandoned function has not returned yet."""
        waiting = self._token.statistics().tasks_waiting
        return self._token.borrowed_tokens > 0 and self._callers == waiting

    async def run(self, work: Callable[[], T], *, within: float = float("inf")) -> T:
        """Run `work` in the thread and return what it returns.

        `within` is in seconds and includes the wait for functions that came before. Raises what
        `work` raises, trio.TooSlowError when `within` has passed, and RuntimeError when the system
        has no thread left. When the time is up or the caller is cancelled, `work` never starts, or
        is abandoned: it runs on, and its result or error is dropped. So it must be safe to run to
        its end unobserved.
        """
        self._callers += 1
        try:
            with trio.fail_after(within):
                return await trio.to_thread.run_sync(
                    work, abandon_on_cancel=True, limiter=self._token
                )
        finally:
            self._callers -= 1

    async def wait_idle(self) -> None:
        """Wait until no function is running and none is waiting to run. Safe to cancel."""
        async with self._token:
            pass
