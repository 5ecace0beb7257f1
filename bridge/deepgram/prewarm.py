"""Sessions with the agent that are opened at the webhook, before their call has a socket.

Twilio needs a moment from the webhook's answer to the socket's `start`, and the agent one from its
handshake to its greeting. Side by side, the caller waits for the longer of the two, not for both.

A warm session belongs to a task of its own in the server's nursery, from its first byte to its
last: a call that claims it uses it and says when it is done, and the task closes it by the call's
own deadline. One that nobody claims within `HOLD_SECONDS` is given back; one that cannot be opened,
or breaks, is no loss, since the call then opens its own. There are never more of them than slots,
because only a call that has one gets one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple

import trio
from structlog.contextvars import bound_contextvars

from bridge.deepgram.session import AgentFailed, AgentSession, AgentUnavailable
from bridge.log import get_logger

log = get_logger(__name__)

# From an open session to its call. Twilio needs a second or two; an agent that gets no audio closes
# the session after about ten.
HOLD_SECONDS: Final = 8.0

# A goodbye that nobody waits for.
GIVE_BACK_SECONDS: Final = 1.0

CloseBy = Callable[[], float]


class Prepared(NamedTuple):
    """What a session is opened with: the agent's name and table, and their Settings message."""

    agent: str
    table: dict[str, Any]
    message: str


Prepare = Callable[[], Awaitable[Prepared]]
Open = Callable[[str, CloseBy], AbstractAsyncContextManager[AgentSession]]


class Warm:
    """A session that is being opened, or open, for a call that is expected."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None
        self.session: AgentSession | None = None
        self._ready = trio.Event()
        self._done = trio.Event()
        self._closed = trio.Event()
        self._claimed_until: CloseBy | None = None
        # Ends the waiting for a call, and an opening that nobody wants any more.
        self._patience = trio.CancelScope()

    async def aclose(self) -> None:
        """Let go of it, and wait until it is closed, by the deadline of whoever claimed it.
        Idempotent."""
        self._done.set()
        if self.session is None:
            self._patience.cancel(reason="the call is over")
        with trio.CancelScope(shield=True):  # deadline: `close_by`, by which its task closes it
            await self._closed.wait()

    async def _claim(self, close_by: CloseBy) -> bool:
        """Make it a call's; whether it is of use, which may take as long as opening it."""
        if not self._patience.cancel_called:
            # Else it is being given back, by a deadline of its own: the call is not ending.
            self._claimed_until = close_by
            self._patience.deadline = float("inf")
        try:
            await self._ready.wait()
        except BaseException:
            await self.aclose()
            raise
        return (
            self.session is not None
            and not self.session.is_over
            and not self._patience.cancel_called
        )

    def _close_by(self) -> float:
        if self._claimed_until is not None:
            return self._claimed_until()
        return trio.current_time() + GIVE_BACK_SECONDS

    async def _live(self, prepare: Prepare, open_: Open) -> None:
        """Open it, hold it until it is claimed and let go, or nobody comes, and close it."""
        try:
            with self._patience:
                self.prepared = await prepare()
                async with open_(self.prepared.message, self._close_by) as session:
                    self.session = session
                    self._ready.set()
                    if self._claimed_until is None:
                        self._patience.deadline = trio.current_time() + HOLD_SECONDS
                    await self._done.wait()
        except (AgentUnavailable, AgentFailed) as error:
            log.info("no session ahead of the call", reason=str(error))
        except Exception:
            # This call opens its own, and the other calls are none of its business.
            log.exception("prewarming failed")
        finally:
            self._ready.set()
            self._closed.set()


class Prewarming:
    """The warm sessions of one server. `nursery` is the server's, None while it does not run."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
        self._expected: dict[str, Warm] = {}

    def __len__(self) -> int:
        """How many sessions wait for their calls."""
        return len(self._expected)

    def begin(self, call_sid: str, prepare: Prepare, open_: Open) -> None:
        """Open a session for this call, unless there is one already. Does not wait or raise."""
        nursery = self.nursery
        if nursery is None or call_sid in self._expected:
            return
        warm = self._expected[call_sid] = Warm()

        async def live() -> None:
            with bound_contextvars(call_sid=call_sid):
                try:
                    await warm._live(prepare, open_)
                finally:
                    if self._expected.get(call_sid) is warm:
                        del self._expected[call_sid]
                        log.debug("session given back, no call came for it")

        nursery.start_soon(live, name="prewarming")

    async def claim(self, call_sid: str, close_by: CloseBy) -> Warm | None:
        """Take the session that was opened for this call; None if there is none that is of use.

        Whoever gets it must `aclose` it; that ends by `close_by()`, asked for when closing begins.
        """
        warm = self._expected.pop(call_sid, None)
        if warm is None:
            return None
        if await warm._claim(close_by):
            return warm
        await warm.aclose()
        return None
