"""The grid: points in time common to all calls, at which their media sockets are looked at.

Theory of operation. Carrying audio is cheap; being woken for it is not. A frame of 160 bytes costs
microseconds to decode and pass on, but to learn that it is there costs a pass of the event loop, a
turn of a task and three system calls, and a phone and an agent together bring a hundred a second.
The agent is sent frames of `call.frame_ms` anyway, three of the phone's by default. So, instead of
being woken three times and buffering twice, the phone's socket is left alone for the length of a
frame, and then one read takes what came meanwhile. What a read brought goes to the agent as it is:
framing by reading later keeps no byte longer than framing by buffering may, a frame's length. That
the ticks are the same for all calls makes one pass of the event loop serve them all.

The agent's socket is read as things come, because `UserStartedSpeaking` must not wait. But audio
in the middle of a reply is collected and goes to the phone at the ticks, too: one write for three.

Nothing else waits for a tick. The first audio of a reply, `clear` and marks go at once, and where
the server ends TLS itself a phone is read as things come. A call is
read on the grid from its `start` on and until its socket is closed. What the phone says in
between, `stop` and keys and a lost connection, is heard at a tick, so at most a frame late.

Sleeping. A deadline of its own for every sleeper would be cancelled a thousand times a second, and
that is an exception raised, caught and thrown away each time. So one of those who sleep keeps the
time and wakes the others, which costs next to nothing for each. There is no task for that, which
would have to belong to somebody: the first to fall asleep leads, and who leads and is woken early
or cancelled wakes another, who goes on leading. All this is within one pass of the event loop and
behaves on the virtual clock as any sleep does.
"""

from __future__ import annotations

import trio
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    RunVar,
    Task,
    current_task,
    reschedule,
    wait_task_rescheduled,
)


class Nap:
    """A task's sleep until the next tick of the grid of so many seconds; others can end it sooner.

    For one task at a time, and again and again.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._grid: _Grid | None = None
        self._task: Task | None = None
        self._ended = False
        self._leads = False

    async def until_tick(self) -> None:
        """Sleep until the next multiple of `seconds` on Trio's clock, or until `end` is called."""
        if self._grid is None:
            self._grid = _grid(self._seconds)
        self._task = current_task()
        self._ended = False
        await self._grid.sleep(self)

    def end(self) -> None:
        """Wake who sleeps; nothing happens if nobody does."""
        self._ended = True
        if self._grid is not None:
            self._grid.wake(self)


class _Grid:
    """Those who sleep until ticks of one length."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Until when. Ordered, so that a run can be repeated exactly.
        self._asleep: dict[Nap, float] = {}
        self._led = False

    async def sleep(self, nap: Nap) -> None:
        tick = next_tick(trio.current_time(), self._seconds)
        nap._leads, self._led = not self._led, True
        try:
            if not nap._leads:
                # Until the tick, the end of the nap, or the turn to lead.
                await self._doze(nap, tick)
            if nap._leads and not nap._ended:
                with trio.CancelScope(deadline=tick):
                    await self._doze(nap, tick)
        finally:
            if nap._leads:
                nap._leads = self._led = False
                self._pass_on()

    def wake(self, nap: Nap) -> None:
        if self._asleep.pop(nap, None) is not None:
            assert nap._task is not None
            reschedule(nap._task)

    async def _doze(self, nap: Nap, tick: float) -> None:
        def give_up(_: RaiseCancelT) -> Abort:
            del self._asleep[nap]
            return Abort.SUCCEEDED

        self._asleep[nap] = tick
        await wait_task_rescheduled(give_up)

    def _pass_on(self) -> None:
        """Wake those whose tick has come, and let one of the others lead."""
        now = trio.current_time()
        for nap in [nap for nap, tick in self._asleep.items() if tick <= now]:
            self.wake(nap)
        heir = next(iter(self._asleep), None)
        if heir is not None:
            heir._leads = self._led = True
            self.wake(heir)


_grids: RunVar[dict[float, _Grid]] = RunVar("bridge's grids")


def _grid(seconds: float) -> _Grid:
    """The grid of this length, one for each run of Trio."""
    grids = _grids.get({})
    _grids.set(grids)
    return grids.setdefault(seconds, _Grid(seconds))


def next_tick(now: float, seconds: float) -> float:
    """Return the first multiple of `seconds` after `now`, always above it.

    That it is above matters on a virtual clock, which stands still while anything runs: waiting
    for a tick that is due already, again and again, would never end.
    """
    number = int(now // seconds) + 1
    tick = number * seconds
    return tick if tick > now else (number + 1) * seconds
