"""The functions the agent asks for during one phone call: run, bounded, answered or cancelled.

Each function is a task in the call's own nursery, so the agent reader never waits for one and the
end of the call ends them all. Whatever becomes of a function, the agent gets exactly one answer,
because an agent without an answer is silent; except when it no longer wants one, or the call is
over. Rules: https://developers.deepgram.com/docs/voice-agent-function-call-request,
.../voice-agent-function-call-response and .../voice-agent-function-call-cancelled.

What a task does has two parts. Running the function can be cancelled at any moment: by its
deadline, by the agent, by the end of the call. Sending the answer only by the end of the call,
since a send cut off in the middle would end the agent's session.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, Protocol

import msgspec
import trio

from bridge.caller import CallInfo
from bridge.deepgram.messages import (
    FunctionCall,
    FunctionCallCancelled,
    FunctionCallRequest,
    FunctionResult,
)
from bridge.deepgram.session import AgentClosed
from bridge.functions.errors import BadArguments
from bridge.functions.registry import Function, Functions
from bridge.functions.threads import ThreadLimiter
from bridge.log import get_logger

log = get_logger(__name__)

Answer = Callable[[FunctionResult], Awaitable[None]]


class Tasks(Protocol):
    """Starts tasks: a `trio.Nursery`, or the `Ending` of a call."""

    def start_soon(
        self, work: Callable[..., Awaitable[object]], /, *args: Any, name: object = None
    ) -> None: ...


# A caller who hears nothing for longer hangs up, and Deepgram states no limit of its own.
DEFAULT_DEADLINE: Final = 10.0  # seconds

# A model asks for a few at once; more than this is a model gone astray.
MAX_IN_FLIGHT: Final = 16

# Refusals are tasks, too. An agent that asks on while it does not read our answers gets none.
MAX_REFUSALS: Final = 64

# The model has to read it while the caller waits, and it stays in the conversation from then on.
MAX_RESULT_BYTES: Final = 32 * 1024

# As much of an unknown function's name as the answer repeats: the longest that could be known.
_NAME_SHOWN: Final = 64


@dataclass(eq=False)
class _InFlight:
    """A call of a function that is running, or whose answer is on its way."""

    call: FunctionCall
    began: float = field(default_factory=trio.current_time)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    unwanted: bool = False
    told: bool = False
    ended: Literal["ok", "error", "timeout", "cancelled"] = "cancelled"


class FunctionCalls:
    """The function calls in flight of one phone call.

    `on_began` and `on_ended` are told when one begins and is over, with Trio's time, `on_result` of
    what became of it: name, seconds, and "ok", "error", "timeout" or "cancelled". `answer` sends
    a result to the agent, from several tasks at once. When it raises AgentClosed
    the answer is dropped, since the agent reader hears of it, too; anything else it raises is
    raised in the nursery.
    """

    def __init__(
        self,
        functions: Functions,
        info: CallInfo,
        answer: Answer,
        on_began: Callable[[float], object] = lambda now: None,
        on_ended: Callable[[float], object] = lambda now: None,
        on_result: Callable[[str, float, str], object] = lambda name, seconds, result: None,
    ) -> None:
        self._functions = functions
        self._on_began = on_began
        self._on_ended = on_ended
        self._on_result = on_result
        self._info = info
        self._answer = answer
        self._threads = ThreadLimiter()
        self._in_flight: dict[str, _InFlight] = {}
        self._overwhelmed = False

    def __len__(self) -> int:
        """How many are in flight."""
        return len(self._in_flight)

    @property
    def running(self) -> list[tuple[str, float]]:
        """Those whose result is not known yet: name, and when it began on Trio's clock."""
        return [(one.call.name, one.began) for one in self._in_flight.values() if not one.told]

    def start(self, nursery: Tasks, request: FunctionCallRequest) -> None:
        """Run what the agent asks of us in `nursery`, a task each. Never blocks.

        Those it runs itself (`client_side` is false) are left out, and so is one whose id is in
        flight already.
        """
        for call in request.functions:
            if not call.client_side:
                continue
            if call.id in self._in_flight:
                log.debug("function call repeated", function=call.name, id=call.id)
                continue
            if len(self._in_flight) >= MAX_IN_FLIGHT + MAX_REFUSALS:
                if not self._overwhelmed:
                    log.warning("too many function calls, not answered", limit=MAX_IN_FLIGHT)
                self._overwhelmed = True
                return
            full = len(self._in_flight) >= MAX_IN_FLIGHT
            entry = self._in_flight[call.id] = _InFlight(call)
            self._on_began(trio.current_time())
            nursery.start_soon(self._serve, entry, full, name="function call")

    def cancel(self, cancelled: FunctionCallCancelled) -> None:
        """Stop what the agent no longer wants; those get no answer. Others are left alone, and so
        are answers already on their way, which the agent drops.
        """
        for one in cancelled.functions:
            if entry := self._in_flight.get(one.id):
                entry.unwanted = True
                entry.scope.cancel(reason="the agent does not want the answer any more")

    def cancel_all(self) -> None:
        """Stop them all, without answers: the agent's session is over."""
        for entry in self._in_flight.values():
            entry.unwanted = True
            entry.scope.cancel(reason="the agent's session is over")

    async def _serve(self, entry: _InFlight, full: bool) -> None:
        try:
            content = await self._content(entry, full)
            # A function may have swallowed its cancellation: then the call is over all the same.
            await trio.lowlevel.checkpoint_if_cancelled()
            if not entry.unwanted:
                call = entry.call
                result = FunctionResult(call.id, call.name, content, call.thought_signature)
                await self._answer(result)
        except AgentClosed:
            return
        finally:
            del self._in_flight[entry.call.id]
            self._on_ended(trio.current_time())

    async def _content(self, entry: _InFlight, full: bool) -> str:
        """What to answer. Logs the line of this call, however it ends."""
        call, began = entry.call, trio.current_time()
        function = self._functions.get(call.name)
        more: dict[str, Any] = {}
        try:
            if full:
                entry.ended = "error"
                return _error("too many functions at once; wait for the others, then try again")
            if function is None:
                entry.ended = "error"
                names = ", ".join(one.name for one in self._functions) or "none"
                return _error(f"there is no function {call.name[:_NAME_SHOWN]}; there are: {names}")
            content = await self._run(function, entry)
            log.debug("function answers", function=call.name, id=call.id, content=content)
            return content
        finally:
            if function is not None and not function.is_async and entry.scope.cancelled_caught:
                # The one trace of a thread that may be lost for long.
                more = {"threads_busy": self._threads.busy}
            seconds = trio.current_time() - began
            result = "cancelled" if entry.unwanted else entry.ended
            entry.told = True
            self._on_result(call.name, seconds, result)
            log.info(
                "function call",
                function=call.name,
                id=call.id,
                milliseconds=round(1000 * seconds),
                result=result,
                **more,
            )

    async def _run(self, function: Function, entry: _InFlight) -> str:
        """Run one function within its deadline. Whatever it does becomes an answer; only
        cancellation from outside, and what is no function's to raise, gets past here."""
        deadline = DEFAULT_DEADLINE if function.deadline is None else function.deadline
        try:
            with entry.scope as scope:
                scope.deadline = trio.current_time() + deadline
                # Without this, one cancelled before it began would run to its first checkpoint.
                await trio.lowlevel.checkpoint_if_cancelled()
                value = await self._invoke(function, entry.call)
        except BadArguments as error:
            entry.ended = "error"
            return _error(str(error))
        except (Exception, SystemExit) as error:
            # SystemExit: what ends a program must not end everybody's calls.
            return _failed(entry, function, error)
        except BaseExceptionGroup as group:
            # A function with a nursery of its own can fail and be cancelled at the same time.
            errors, rest = group.split((Exception, SystemExit))
            if errors is not None:
                content = _failed(entry, function, errors)
            if rest is not None:
                raise rest from None
            return content
        if scope.cancelled_caught:
            entry.ended = "timeout"
            return _error(f"the function did not answer within {deadline:g} seconds")
        return _encoded(entry, function, value)

    async def _invoke(self, function: Function, call: FunctionCall) -> Any:
        log.debug("function called", function=call.name, id=call.id, arguments=call.arguments)
        arguments = function.parameters.read(call.arguments)
        arguments |= dict.fromkeys(function.parameters.info, self._info)
        run = partial(function.implementation, **arguments)
        if function.is_async:
            return await run()
        # In a tuple: a decorator around an async function is plain itself and returns what is to
        # be awaited, which Trio would take for a mistake.
        (value,) = await trio.to_thread.run_sync(
            lambda: (run(),),
            abandon_on_cancel=True,
            limiter=self._threads,  # type: ignore[arg-type]  # has the two methods it needs
        )
        return await value if inspect.isawaitable(value) else value


def _encoded(entry: _InFlight, function: Function, value: object) -> str:
    try:
        content = msgspec.json.encode(value)
    except Exception as error:  # of any class the user may return
        entry.ended = "error"
        log.error("function's result is not JSON", function=function.name, exc_info=error)
        return _error("the function's result cannot be written as JSON")
    if len(content) > MAX_RESULT_BYTES:
        entry.ended = "error"
        log.error("function's result is too large", function=function.name, bytes=len(content))
        return _error(f"the function's result is too large: more than {MAX_RESULT_BYTES} bytes")
    entry.ended = "ok"
    return content.decode()


def _failed(entry: _InFlight, function: Function, error: BaseException) -> str:
    entry.ended = "error"
    log.error("function failed", function=function.name, id=entry.call.id, exc_info=error)
    # Not the exception's words: they were not written for the model, nor for the caller's ear.
    return _error("the function failed")


def _error(words: str) -> str:
    return msgspec.json.encode({"error": words}).decode()
