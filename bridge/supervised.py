"""Background tasks that must not end the calls.

Records, leases and traces are written by tasks that share a nursery with the server. An exception
that leaves such a task would cancel the nursery, and with it every live call. So each of them runs
its loop under `supervised`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from bridge.backoff import pauses
from bridge.log import get_logger

log = get_logger(__name__)

# Before a task that failed starts again: soon, since what it writes is waiting; but an error that
# recurs at each start must neither fill the log nor keep the machine busy.
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0


async def supervised(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it returns, starting it again whenever it raises an Exception.

    The exception is logged with its traceback. `work` finds its state as the failed run left it.
    The pause before each new start is twice the last one; a run that lasted LONGEST_PAUSE begins
    with FIRST_PAUSE again. Raises nothing but what is no Exception. Cancelling it cancels `work`.
    """
    growing = pauses(FIRST_PAUSE, LONGEST_PAUSE)
    while True:
        began = trio.current_time()
        try:
            return await work()
        except Exception:
            if trio.current_time() - began >= LONGEST_PAUSE:
                growing = pauses(FIRST_PAUSE, LONGEST_PAUSE)
            pause = next(growing)
            log.exception("background task failed; restarting it", task=name, in_seconds=pause)
        await trio.sleep(pause)
