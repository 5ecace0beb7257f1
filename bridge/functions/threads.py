"""Bounds on the threads that plain (not async) functions run in.

A thread cannot be stopped from outside: when its function hangs, it stays busy long after the phone
call has ended. So there are two bounds: one for the process, since memory and threads are finite,
and a smaller one per phone call, so that one call's hanging functions do not take all threads.
"""

from __future__ import annotations

from typing import Final

import trio

# Blocking functions mostly wait for a network, so many more threads than cores are useful; the
# stacks of a hundred threads are still cheap.
THREADS: Final = 64

# A model requests one or two functions per turn. With this share, sixteen phone calls must have all
# their functions hanging before others have to wait for a thread.
THREADS_PER_CALL: Final = 4

_process: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("function threads")


class ThreadLimiter:
    """The threads of one phone call: a limiter for `trio.to_thread.run_sync`."""

    def __init__(self) -> None:
        self._call = trio.CapacityLimiter(THREADS_PER_CALL)
        self._all = _threads_of_the_process()

    @property
    def busy(self) -> int:
        """The number of busy threads in the process, abandoned ones included."""
        return int(self._all.borrowed_tokens)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for a thread. When cancelled, no thread is taken."""
        await self._call.acquire_on_behalf_of(borrower)
        try:
            await self._all.acquire_on_behalf_of(borrower)
        except BaseException:
            self._call.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        """Release a thread. Trio calls this when the thread has ended, not when it is abandoned."""
        self._all.release_on_behalf_of(borrower)
        self._call.release_on_behalf_of(borrower)


def _threads_of_the_process() -> trio.CapacityLimiter:
    # One per Trio run: a thread abandoned by an earlier run in this process, as in tests, never
    # releases its token.
    try:
        return _process.get()
    except LookupError:
        limiter = trio.CapacityLimiter(THREADS)
        _process.set(limiter)
        return limiter
