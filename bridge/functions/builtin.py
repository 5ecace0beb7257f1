"""The functions every agent may have: to hang up, and to hand the caller to a person.

Both end the call only when the caller has heard what the agent says after calling them, and not at
all if the caller cuts in.
"""

# No `from __future__ import annotations`: transfer_call's hint is made of the configured names.

from typing import Literal, Protocol

from bridge.config.settings import FunctionSettings
from bridge.functions import Function, Functions, function
from bridge.outcome import Outcome


class EndsAfterGoodbye(Protocol):
    """Ends the call that a function runs in; see `bridge.call.goodbye.PoliteEnd`."""

    def end_after_goodbye(
        self, outcome: Outcome, reason: str, transfer_to: str = "", transfer_name: str = ""
    ) -> None:
        """End the call when the caller has heard what the agent says next. Returns at once."""


def built_in(end: EndsAfterGoodbye, settings: FunctionSettings) -> Functions:
    """The built-in functions that `[functions]` switches on, for one call."""
    chosen: list[Function] = []
    if settings.end_call:
        chosen.append(_end_call(end))
    if settings.transfer_to:
        chosen.append(_transfer_call(end, settings.transfer_to))
    return Functions(chosen)


def described(settings: FunctionSettings) -> Functions:
    """The built-in functions as an agent is told of them, where there is no call yet to end."""
    return built_in(_NoCall(), settings)


class _NoCall:
    def end_after_goodbye(
        self, outcome: Outcome, reason: str, transfer_to: str = "", transfer_name: str = ""
    ) -> None:
        raise RuntimeError("there is no call to end")


def _end_call(end: EndsAfterGoodbye) -> Function:
    # Deferred: hanging up on a caller who has not finished cannot be undone.
    @function(defer_until_eot=True)
    async def end_call() -> dict[str, str]:
        """Hang up the phone. Use it when the caller says goodbye or has nothing more to ask."""
        end.end_after_goodbye(Outcome.AGENT_ENDED, "the agent called end_call")
        return {
            "result": "Say a short goodbye now, in the caller's language, unless you just did; then"
            " the call ends."
        }

    return Function.of(end_call)


def _transfer_call(end: EndsAfterGoodbye, transfer_to: dict[str, str]) -> Function:
    names = tuple(transfer_to)

    @function(defer_until_eot=True)
    async def transfer_call(destination: Literal[names]) -> dict[str, str]:  # type: ignore[valid-type]
        """Connect the caller to a person, or to somebody else. Use it when the caller asks for it
        or when you cannot help."""
        end.end_after_goodbye(
            Outcome.HANDED_OVER,
            f"the agent called transfer_call: {destination}",
            transfer_to=transfer_to[destination],
            transfer_name=destination,
        )
        return {
            "result": "Tell the caller in a few words, in their language, that you connect them to"
            f" {destination}."
        }

    return Function.of(transfer_call)
