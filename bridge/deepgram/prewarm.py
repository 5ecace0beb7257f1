"""Prewarming: open the agent's session at the webhook, before its call has a media socket.

Twilio needs a moment from the webhook's answer to the socket's `start`, and the agent needs one
from its handshake to its greeting. Run in parallel, the caller waits for the longer of the two, not
for both.

A task of its own in the server's nursery owns each prewarmed session from its first byte to its
last: a call that claims the session uses it and signals when it is done, and the task closes the
session by the call's deadline. A session that no call claims within `HOLD_SECONDS` is closed. If a
session cannot be opened, or breaks, the call opens another. There are never more prewarmed sessions
than slots, because only a call with a slot gets one.
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

# From opening a session to its call's claim. Twilio needs a second or two; an agent that receives
# no audio closes the session after about ten.
HOLD_SECONDS: Final = 8.0

# Time for the close handshake of an unclaimed session; no call waits for it.
GIVE_BACK_SECONDS: Final = 1.0

CloseBy = Callable[[], float]


class Prepared(NamedTuple):
    """The agent's name and table, and the Settings message that a session is opened with."""

    agent: str
    table: dict[str, Any]
    message: str


Prepare = Callable[[], Awaitable[Prepared]]
Open = Callable[[str, CloseBy], AbstractAsyncContextManager[AgentSession]]


class Warm:
    """A session that is open, or being opened, for an expected call."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None
        self.session: AgentSession | None = None
        self._ready = trio.Event()
        self._done = trio.Event()
        self._closed = trio.Event()
        self._claimed_until: CloseBy | None = None
        # Ends the wait for a call, and an opening that is no longer needed.
        self._patience = trio.CancelScope()

    async def aclose(self) -> None:
        """Release the session and wait until it is closed, by the claiming call's deadline.
        Idempotent. Shielded from cancellation."""
        self._done.set()
        if self.session is None:
            self._patience.cancel(reason="the call is over")
        with trio.CancelScope(shield=True):  # deadline: `close_by`, by which its task closes it
            await self._closed.wait()

    async def _claim(self, close_by: CloseBy) -> bool:
        """Claim the session for a call, wait until it is open, and return whether it is usable."""
        if not self._patience.cancel_called:
            # Otherwise it is being closed as unclaimed, with a deadline of its own.
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
        """Open the session, hold it until it is claimed and released or has expired, and close
        it."""
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
            log.info("prewarming failed; the call will open its own session", reason=str(error))
        except Exception:
            # The call opens its own session, and other calls must not be affected.
            log.exception("prewarming crashed")
        finally:
            self._ready.set()
            self._closed.set()


class Prewarming:
    """The warm sessions of one server. `nursery` is the server's, None while it does not run."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
        self._expected: dict[str, Warm] = {}

    def __len__(self) -> int:
        """Return how many sessions wait for their calls."""
        return len(self._expected)

    def begin(self, call_sid: str, prepare: Prepare, open_: Open) -> None:
        """Start opening a session for this call, unless there is one already. Does not wait or
        raise."""
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
                        log.debug("prewarmed session closed: no call claimed it")

        nursery.start_soon(live, name="prewarming")

    async def claim(self, call_sid: str, close_by: CloseBy) -> Warm | None:
        """Return the session that was opened for this call, or None if there is no usable one.

        Waits while the session is being opened. The caller of this method must `aclose` the
        session; closing ends by `close_by()`, which is evaluated when closing begins.
        """
        warm = self._expected.pop(call_sid, None)
        if warm is None:
            return None
        if await warm._claim(close_by):
            return warm
        await warm.aclose()
        return None
