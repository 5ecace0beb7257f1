"""How many threads plain functions may have.

A thread cannot be ended from outside, so one whose function hangs is lost until it returns, long
after its call. Two bounds follow: one for the process, because memory and threads are finite; and
a smaller one for each call, so that a call whose functions hang does not take them all.
"""

from __future__ import annotations

from typing import Final

import trio

# Blocking functions mostly wait for a network, so many more than cores are of use; a hundred
# threads' stacks are still cheap.
THREADS: Final = 64

# A model asks for one or two functions in a turn. With this share it takes sixteen calls whose
# functions all hang to hold up the functions of the others.
THREADS_PER_CALL: Final = 4

_process: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("function threads")


class ThreadLimiter:
    """One call's share of the threads: what `trio.to_thread.run_sync` takes as a limiter."""

    def __init__(self) -> None:
        self._call = trio.CapacityLimiter(THREADS_PER_CALL)
        self._all = _threads_of_the_process()

    @property
    def busy(self) -> int:
        """Threads of functions in the whole process, abandoned ones included."""
        return int(self._all.borrowed_tokens)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for a thread. Cancelling this takes none."""
        await self._call.acquire_on_behalf_of(borrower)
        try:
            await self._all.acquire_on_behalf_of(borrower)
        except BaseException:
            self._call.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        """Give a thread back: when it has ended, not when it was abandoned."""
        self._all.release_on_behalf_of(borrower)
        self._call.release_on_behalf_of(borrower)


def _threads_of_the_process() -> trio.CapacityLimiter:
    # Of Trio's run, that is: a thread abandoned by an earlier run in this process, of a test for
    # example, never gives its place back.
    try:
        return _process.get()
    except LookupError:
        limiter = trio.CapacityLimiter(THREADS)
        _process.set(limiter)
        return limiter
