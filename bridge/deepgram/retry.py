"""Connecting to the agent, with retries: which failures to retry, and for how long.

A refused connection, 429 and 5xx are temporary; a wrong key, an empty account and refused Settings
are not.
https://developers.deepgram.com/docs/voice-agent-errors-warnings
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

import trio

from bridge.backoff import pauses
from bridge.deepgram.session import AgentFailed, AgentSession, AgentUnavailable
from bridge.log import get_logger

log = get_logger(__name__)

# The first pause between two tries, doubled each time: short, since a caller waits in silence.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 2.0

# Retrying cannot help: the key, the account or the address is wrong.
_FINAL_STATUSES: Final = frozenset({400, 401, 402, 403, 404})

# Retrying cannot help either: the same Settings or audio would fail in the same way. A model that
# calls a function which does not exist made a mistake, and will hardly repeat it.
_RECURRING_ERRORS: Final = frozenset(
    {
        "UNPARSABLE_CLIENT_MESSAGE",
        "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS",
        "BINARY_MESSAGE_BEFORE_SETTINGS",
        "SETTINGS_ALREADY_APPLIED",
        "INVALID_SETTINGS",
        "USER_AUDIO_FORMAT",
        "AGENT_ID_NOT_SUPPORTED",
        "INVALID_AGENT_ID",
    }
)


def worth_another_try(error: Exception) -> bool:
    """Return whether a new session could succeed after this AgentUnavailable, AgentFailed or
    AgentClosed."""
    match error:
        case AgentUnavailable(status=status):
            return status not in _FINAL_STATUSES
        case AgentFailed(code=code):
            return code not in _RECURRING_ERRORS
    return True


@asynccontextmanager
async def open_within(
    budget: float, open_once: Callable[[], AbstractAsyncContextManager[AgentSession]]
) -> AsyncIterator[AgentSession]:
    """Open a session within `budget` seconds, retrying after temporary failures.

    Each attempt has its own timeout, and the budget cuts the last one off. Raises the exception of
    the last attempt: AgentUnavailable or AgentFailed.
    """
    give_up_at = trio.current_time() + budget
    growing = pauses(FIRST_PAUSE, LONGEST_PAUSE)
    failure: AgentUnavailable | AgentFailed | None = None
    async with AsyncExitStack() as stack:
        while True:
            session = None
            with trio.move_on_at(give_up_at) as scope:
                try:
                    session = await stack.enter_async_context(open_once())
                except (AgentUnavailable, AgentFailed) as error:
                    failure = error
            if session is not None:
                break
            if scope.cancelled_caught or failure is None:
                last = f"; before: {failure}" if failure is not None else ""
                raise AgentUnavailable(f"no agent within {budget:g} s{last}")
            pause = next(growing)
            if not worth_another_try(failure) or trio.current_time() + pause >= give_up_at:
                raise failure
            log.warning("agent not reached, trying again", reason=str(failure), pause=pause)
            await trio.sleep(pause)
        yield session
