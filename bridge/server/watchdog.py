"""Detects a blocked event loop, the one failure that no nursery can see.

    with watching(on_stall=metrics.loop_stalled):
        await serve(...)

While one task computes, or waits in a call that blocks, no other task of the process runs: callers
hear silence, no timeout fires, and afterwards nothing shows that it happened. Two observers watch:

An *instrument* on the loop notes when each pass of the loop begins and ends: from one wait for I/O
to the next, every task that could run has run a step. A pass ends at each look at I/O, however
short, so a loop kept busy by many short steps is not stalled, and one that sleeps in epoll is not
in a pass at all. A pass of `threshold` seconds or more is a stall. The instrument sees every stall
and its length, but only when it is over.

A *thread* sees a stall while it lasts, and logs once the code in which it lasts. It needs Python's
lock for that. While C code holds the lock, or the machine gives the process no time, the thread is
blocked too; it then looks as soon as it can, usually while the function at fault still runs, and
logs how late it was. If the pass is over by then, the stall is logged without a stack.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from os.path import sep
from threading import Event, Lock, Thread, get_ident
from time import monotonic as _now  # not Trio's clock, which stands still with the loop, or jumps
from types import FrameType
from typing import Final

import trio

from bridge.log import get_logger

log = get_logger(__name__)

# Five of the phone's frames of 20 ms: less is jitter, more is heard as a gap.
THRESHOLD: Final = 0.1

# The thread ends within microseconds, unless it is writing a line into a pipe that is full.
STOP_SECONDS: Final = 1.0

# The logged part of a stack. It begins where the loop is blocked; the outermost frames are always
# the same.
STACK_CHARACTERS: Final = 2_000

_NEVER: Final = float("inf")


@contextmanager
def watching(
    *, on_stall: Callable[[float], object] | None = None, threshold: float = THRESHOLD
) -> Iterator[None]:
    """Watch the loop that runs this task, for as long as the context lasts.

    Each pass of the loop that takes `threshold` seconds or more is logged: while it lasts, with the
    stack and, if a task is running, the task's name and context variables; when it is over, with
    its length. Then `on_stall` is called with its length in seconds, in the loop's thread. An
    exception from `on_stall` is logged and not raised.

    On every way out the instrument is removed and the thread has ended. If the thread hangs while
    writing to the log, it is left behind after STOP_SECONDS and ends once it can.

    Raises RuntimeError outside `trio.run`, or if no thread can be started.
    """
    watch = _Watch(on_stall, threshold)
    thread = Thread(target=watch.look, name="bridge watchdog", daemon=True)
    trio.lowlevel.add_instrument(watch)
    try:
        thread.start()
        try:
            yield
        finally:
            watch.stop.set()
            thread.join(STOP_SECONDS)
    finally:
        with suppress(KeyError):  # Trio has dropped it, and logged why
            trio.lowlevel.remove_instrument(watch)
        # A pass that lasted until now, without another wait for I/O, may have been a stall.
        watch.before_io_wait(0)


class _Watch(trio.abc.Instrument):
    """The state that the instrument and the thread share about one loop."""

    def __init__(self, on_stall: Callable[[float], object] | None, threshold: float) -> None:
        self._on_stall = on_stall
        self._threshold = threshold
        self._loop_thread = get_ident()
        self._root = trio.lowlevel.current_root_task()
        # When the current pass began; _NEVER while the loop waits for I/O.
        self._busy_since = _now()
        # The pass, identified by its beginning, that the thread has logged.
        self._told_of = _NEVER
        # Decides which of the two logs a stall that ends just as the thread looks. Held for a few
        # assignments at most, and never in a pass that is not a stall.
        self._deciding = Lock()
        self.stop = Event()

    # ---- in the loop's thread, twice in every pass: a call of the clock and an assignment -------

    def before_io_wait(self, timeout: float) -> None:
        if _now() - self._busy_since >= self._threshold:
            self._over()
        self._busy_since = _NEVER

    def after_io_wait(self, timeout: float) -> None:
        self._busy_since = _now()

    def _over(self) -> None:
        seconds = _now() - self._busy_since
        with self._deciding:
            told = self._told_of == self._busy_since
            self._busy_since = _NEVER
        if told:
            log.info("event loop runs again", seconds=round(seconds, 3))
        else:
            log.warning(
                "event loop stalled",
                seconds=round(seconds, 3),
                stack="unknown: it was over before the watchdog could look",
            )
        if self._on_stall is not None:
            try:
                self._on_stall(seconds)
            except Exception:
                # Trio would drop the instrument, and the next stall would go unnoticed.
                log.exception("a stall of the event loop could not be counted")

    # ---- in the watchdog's thread ---------------------------------------------------------------

    def look(self) -> None:
        """Log each stall while it lasts, once, until `stop` is set.

        Looking once per threshold is enough to see every stall: a look that finds a pass under way
        is followed by one at the moment when that pass becomes a stall.
        """
        pause = self._threshold
        due = _now() + pause
        while not self.stop.wait(pause):
            now = _now()
            since = self._busy_since
            until_stalled = since + self._threshold - now
            if until_stalled <= 0 and since != self._told_of:
                try:
                    self._tell(since, now, late=now - due)
                except Exception:
                    log.exception("the watchdog could not look at the event loop")
            pause = min(until_stalled, self._threshold) if until_stalled > 0 else self._threshold
            due = now + pause

    def _tell(self, since: float, now: float, *, late: float) -> None:
        stack = _stack(sys._current_frames().get(self._loop_thread))
        task = _running(self._root)
        with self._deciding:
            if self._busy_since != since:
                return  # too late: the stack may be another pass's, and `_over` has logged it
            self._told_of = since
        facts: dict[str, object] = {"seconds": round(now - since, 3)}
        if late >= self._threshold:
            facts["watchdog_late_seconds"] = round(late, 3)
        if task is None:
            # Between tasks: an abort function, a callback from a thread, Trio itself.
            log.warning("event loop stalled", **facts, stack=stack)
        else:
            # In a copy of the task's context, which has the call's SID.
            tell = partial(log.warning, "event loop stalled")
            task.context.copy().run(partial(tell, **facts, task=task.name, stack=stack))


def _stack(frame: FrameType | None) -> str:
    """The frames from `frame` outwards, on one line: `function (file:line) < caller (...)`."""
    parts: list[str] = []
    room = STACK_CHARACTERS
    while frame is not None:
        code = frame.f_code
        name = code.co_qualname.replace(".<locals>", "")
        file = "/".join(code.co_filename.split(sep)[-2:])
        part = f"{name} ({file}:{frame.f_lineno})"
        room -= len(part)
        if room < 0:
            # Only a made-up name is too long for the whole.
            parts.append("…" if parts else f"{part[:STACK_CHARACTERS]}…")
            break
        parts.append(part)
        frame = frame.f_back
    return " < ".join(parts) or "unknown: the thread has no frame"


def _running(root: trio.lowlevel.Task | None) -> trio.lowlevel.Task | None:
    """Find the task below `root` that is running now. Called from another thread.

    Trio tells this only in the loop's own thread, or to an instrument on every step of every task.
    A coroutine's `cr_running` can be read from any thread, and looking through all tasks once per
    stall costs less. Each set of tasks is copied in one step, since the loop may go on meanwhile.
    """
    tasks = [root] if root is not None else []
    while tasks:
        task = tasks.pop()
        if getattr(task.coro, "cr_running", False):
            return task
        for nursery in list(task.child_nurseries):
            tasks += list(nursery.child_tasks)
    return None
