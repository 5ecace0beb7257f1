"""The built-in functions of every agent: hang up, and transfer the caller to a person.

Both end the call when the caller has heard the agent's closing words. If the caller interrupts
them, the call goes on.
"""

# No `from __future__ import annotations`: transfer_call's hint is made of the configured names.

from typing import Literal, Protocol

from bridge.config.settings import FunctionSettings
from bridge.functions import Function, Functions, function
from bridge.outcome import Outcome


class EndsAfterGoodbye(Protocol):
    """What the built-in functions need of a call."""

    def end_after_goodbye(self, outcome: Outcome, reason: str, transfer_to: str = "") -> None:
        """End the call when the caller has heard the agent's closing words. Does not wait."""
        ...


def built_in(call: EndsAfterGoodbye | None, settings: FunctionSettings) -> Functions:
    """Return the built-in functions that `[functions]` switches on, for one call.

    Without a call they have their schemas, and must not be called.
    """
    chosen: list[Function] = []
    if settings.end_call:
        chosen.append(_end_call(call))
    if settings.transfer_to:
        chosen.append(_transfer_call(call, settings.transfer_to))
    return Functions(chosen)


def _end_call(call: EndsAfterGoodbye | None) -> Function:
    # Deferred: hanging up on a caller who has not finished cannot be undone.
    @function(defer_until_eot=True)
    async def end_call() -> dict[str, str]:
        """Hang up the phone. Use it when the caller says goodbye or has nothing more to ask."""
        assert call is not None
        call.end_after_goodbye(Outcome.AGENT_ENDED, "the agent called end_call")
        return {"result": "Say a short goodbye now, unless you just did; then the call ends."}

    return Function.of(end_call)


def _transfer_call(call: EndsAfterGoodbye | None, transfer_to: dict[str, str]) -> Function:
    names = tuple(transfer_to)

    @function(defer_until_eot=True)
    async def transfer_call(destination: Literal[names]) -> dict[str, str]:  # type: ignore[valid-type]
        """Connect the caller to a person, or to somebody else. Use it when the caller asks for it
        or when you cannot help."""
        assert call is not None
        call.end_after_goodbye(
            Outcome.TRANSFERRED,
            f"the agent called transfer_call: {destination}",
            transfer_to=transfer_to[destination],
        )
        return {"result": f"Tell the caller in a few words that you connect them to {destination}."}

    return Function.of(transfer_call)
