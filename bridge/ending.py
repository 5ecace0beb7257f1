"""End the work that several tasks share. Trio only; this module knows nothing about calls.

Theory of operation. Tasks that share work also share its end, and each notices the end in its own
way: one reads the end of a stream, another fails to write, a third is cancelled. Only the first of
these signs is the cause; the others are symptoms. So:

    the first sign ends all    the task that notices it calls `begin`; later calls change nothing
    cause, act, tell           the sign is recorded, then the tasks are cancelled, and only then are
                               observers told: one that fails cannot keep the work alive
    one clock                  all goodbyes share one deadline, a number that counts from the first
                               sign and not from the moment of asking
    a bounded goodbye          shielded from the cancellation, never from the clock

    ending = Ending(seconds=1.7, crashed="bug", cancelled="shutdown")
    async with ending.tasks() as tasks:         # a crash in one is the first sign for all
        tasks.start_soon(receive)
        tasks.start_soon(send)

    ending.begin("hung up", after=0.5)          # from any task; last words, half a second at most
    ...
    finally:
        with ending.goodbye():                  # in any task, also one of another nursery
            await socket.aclose()

A library cannot provide this as a grace period of its scopes (python-trio/trio#147): the
application decides what counts as the end, and how much time the goodbyes share.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import trio

T = TypeVar("T")


class Sign(NamedTuple):
    """The first sign of the end: what it was, why (one line), the exception behind it, and when, on
    Trio's clock."""

    what: Any
    why: str
    cause: BaseException | None
    at: float


def _no_callback(sign: Sign) -> None:
    pass


class Ending(Generic[T]):
    """The end of the work that the tasks of one nursery share.

    Goodbyes are cut off `seconds` after the first sign. `crashed` and `cancelled` name the signs
    that this class notices itself: an exception in one of the tasks, and a cancellation from
    outside. `told` is called once, last, with the sign; what it raises is raised by `begin`.
    """

    def __init__(
        self,
        seconds: float,
        *,
        crashed: T,
        cancelled: T,
        told: Callable[[Sign], object] = _no_callback,
    ) -> None:
        self.first: Sign | None = None
        self._seconds = seconds
        self._crashed = crashed
        self._cancelled = cancelled
        self._told = told
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._running = 0

    def begin(
        self, what: T, why: str = "", cause: BaseException | None = None, *, after: float = 0.0
    ) -> bool:
        """Record the first sign of the end and cancel the tasks: at once, or `after` that many
        seconds, in which they may send their last words (`now` cuts this time short).

        Returns at once, with whether this was the first sign. May be called from any task, also
        before `tasks` is entered.
        """
        if self.first is not None:
            return False
        self.first = Sign(what, why, cause, trio.current_time())
        if after:
            self._scope.deadline = self.first.at + after
        else:
            self._scope.cancel(reason=str(what))
        self._told(self.first)
        return True

    def now(self) -> None:
        """Cancel the tasks without waiting any longer: the last words were sent."""
        self._scope.cancel(reason="the last words were sent")

    def by(self) -> float:
        """The time on Trio's clock at which a goodbye is cut off.

        Before the first sign it counts from now: a connection is replaced while the work continues.
        """
        return (trio.current_time() if self.first is None else self.first.at) + self._seconds

    @contextmanager
    def goodbye(self) -> Iterator[float]:
        """Shield the block from cancellation until `by`, which is what this yields."""
        by = self.by()
        with trio.CancelScope(shield=True, deadline=by):
            yield by

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Ending[T]]:
        """Open the nursery of the tasks; `start_soon` starts one.

        Ends when all tasks have ended, or with the first sign. Raises unexpected exceptions of the
        tasks as a group. A cancellation from outside counts as a sign.
        """
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._notice_cancellation, name="ending")
                self._running += 1  # this block, so that tasks which end early do not end it
                try:
                    with self.watch():
                        yield self
                finally:
                    self._one_has_ended()

    def start_soon(
        self, work: Callable[..., Awaitable[object]], /, *args: Any, name: object = None
    ) -> None:
        """Start one more task, as a nursery does. Does nothing once the end has begun."""
        if self.first is None and self._nursery is not None:
            self._running += 1
            self._nursery.start_soon(self._run, work, args, name=name or work)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Report an exception that leaves the block as a sign of the end, before any cleanup
        outside the block asks for the reason. Every task runs in such a block; code with cleanup
        of its own may use one, too."""
        try:
            yield
        except BaseException as error:
            if (crash := _without_cancelled(error)) is not None:
                self.begin(self._crashed, f"unexpected error: {crash!r}", crash)
            raise

    async def _run(self, work: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        try:
            with self.watch():
                await work(*args)
        finally:
            self._one_has_ended()

    def _one_has_ended(self) -> None:
        self._running -= 1
        if not self._running:
            self._scope.cancel(reason="all tasks have ended")

    async def _notice_cancellation(self) -> None:
        # A task of its own, because "am I cancelled?" has a different answer in another nursery.
        try:
            await trio.sleep_forever()
        finally:
            if self._running:
                self.begin(self._cancelled, "cancelled from outside")


def _without_cancelled(error: BaseException) -> BaseException | None:
    """Return the part of an exception that is a crash. Cancellation is not: the code that cancelled
    the scope knows the reason."""
    if isinstance(error, trio.Cancelled):
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1]
    return error
