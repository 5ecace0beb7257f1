"""The function calls in flight during one phone call: each runs as a task and gets one answer.

    FunctionCallRequest ──▶ start() ──▶ a task in the call's nursery, one per function call
                                          1. run the function, in entry.scope
                                          2. send FunctionCallResponse, outside entry.scope

    what happens to the function            what the agent gets              result
    returns JSON of at most 32 KiB          the value                        ok
    raises, or returns anything else        {"error": …}, without details    error
    unknown name, unfit arguments           {"error": …} that says so        error
    the phone call did not take an action   {"error": …} that says so        error
    16 are already in flight                {"error": …}: try again later    error
    runs past its deadline (10 s)           {"error": …} that says so        timeout
    agent sends FunctionCallCancelled       nothing                          cancelled
    agent's session is lost                 nothing                          cancelled
    the phone call ends                     nothing                          cancelled

A function that Deepgram runs itself is in flight, too, until its FunctionCallResponse, so that the
silence meanwhile is not taken for a stall.

Deepgram's agent stays silent until it has an answer, so it always gets exactly one, unless it has
cancelled the function call or the session has ended. The agent reader never waits for a function:
`start` only starts tasks, and the end of the call's nursery cancels them all.

Step 1 may be cancelled at any time: by the deadline, by the agent, by the end of the call. Step 2
is cancelled only by the end of the call, because a send that is cut off halfway breaks the agent's
session. Rules: https://developers.deepgram.com/docs/voice-agent-function-call-request,
.../voice-agent-function-call-response and .../voice-agent-function-call-cancelled.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
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
from bridge.functions.errors import BadArguments, NotTaken
from bridge.functions.registry import Function, Functions
from bridge.functions.threads import ThreadLimiter
from bridge.log import get_logger

log = get_logger(__name__)

Answer = Callable[[FunctionResult], Awaitable[None]]
OnResult = Callable[[str, float, str, str, str], object]


class Tasks(Protocol):
    """Starts tasks: a `trio.Nursery`, or the `Ending` of a call."""

    def start_soon(
        self, work: Callable[..., Awaitable[object]], /, *args: Any, name: object = None
    ) -> None: ...


# Seconds. Callers hang up after a longer silence, and Deepgram documents no limit of its own.
DEFAULT_DEADLINE: Final = 10.0

# Deepgram runs a server-side function itself; after this it counts as ended, answered or not.
SERVER_SIDE_SECONDS: Final = 60.0

# A model requests a few functions at once; more than this is a malfunction.
MAX_IN_FLIGHT: Final = 16

# Refusals are tasks, too. Beyond this many, requests of an agent that does not read are dropped.
MAX_REFUSALS: Final = 64

# The model reads the result while the caller waits, and it stays in the conversation.
MAX_RESULT_BYTES: Final = 32 * 1024

# What a function raises is answered, except these.
_PASSING: Final = (trio.Cancelled, KeyboardInterrupt)

# How asyncio, and Trio about it, complain in a function that awaits on the wrong event loop.
_ASYNCIO: Final = re.compile(r"no (running|current) event loop|asyncio")
_ASYNCIO_HINT: Final = (
    "async functions run on Trio; for an asyncio library write a plain def that calls asyncio.run()"
)

# Characters of an unknown function's name that the answer repeats: the longest legal name.
_NAME_SHOWN: Final = 64


@dataclass(eq=False)
class _InFlight:
    """One function call. `key` is its id, or made up if it has none; `scope` encloses running it;
    `unwanted`: the agent wants no answer; `told`: its result is known; `filled`: the caller has
    been given something to hear meanwhile; `ended`: its result, unless it is unwanted.
    """

    call: FunctionCall
    key: str
    began: float = field(default_factory=trio.current_time)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    unwanted: bool = False
    told: bool = False
    filled: bool = False
    ended: Literal["ok", "error", "timeout", "cancelled"] = "cancelled"


class FunctionCalls:
    """Run the function calls of one phone call.

    `answer` sends a result to the agent; several tasks call it at once. `on_began` and `on_ended`
    are called with Trio's time when a function call starts and when it is done, answer included;
    `on_result` with its name, its duration in seconds, "ok", "error", "timeout" or "cancelled",
    its arguments and its answer, both JSON text; the answer is "" if there is none.

    *Error handling*: when `answer` raises AgentClosed the result is dropped, because the agent
    reader sees the same and handles it. Any other exception of `answer` is raised in the nursery.
    """

    def __init__(
        self,
        functions: Functions,
        info: CallInfo,
        answer: Answer,
        on_began: Callable[[float], object] = lambda now: None,
        on_ended: Callable[[float], object] = lambda now: None,
        on_result: OnResult = lambda *result: None,
    ) -> None:
        self._functions = functions
        self._on_began = on_began
        self._on_ended = on_ended
        self._on_result = on_result
        self._info = info
        self._answer = answer
        self._threads = ThreadLimiter()
        self._in_flight: dict[str, _InFlight] = {}
        self._numbers = itertools.count(1)
        self._overwhelmed = False

    def __len__(self) -> int:
        """The number in flight."""
        return len(self._in_flight)

    @property
    def running(self) -> list[tuple[str, float]]:
        """The function calls without a result yet: name, and start on Trio's clock."""
        return [(one.call.name, one.began) for one in self._in_flight.values() if not one.told]

    @property
    def silent_since(self) -> float:
        """When the first function call began that runs while the caller hears nothing; inf: there
        is none."""
        calls = self._in_flight.values()
        return min((one.began for one in calls if not (one.told or one.filled)), default=math.inf)

    def fill_silence(self) -> None:
        """Note that the agent was given something to say while these function calls run."""
        for one in self._in_flight.values():
            one.filled = True

    def start(self, nursery: Tasks, request: FunctionCallRequest) -> None:
        """Start a task in `nursery` for each function call of the request. Does not block.

        A server-side function (`client_side` is false) is in flight until `answered`. Ignores an id
        that is already in flight. At most MAX_IN_FLIGHT run; the next MAX_REFUSALS are answered
        with an error; beyond that a request is dropped, with one line in the log per phone call.
        """
        for call in request.functions:
            key = call.id or f"{call.name}, call {next(self._numbers)} without an id"
            if key in self._in_flight:
                log.debug("function call already in flight", function=call.name, id=call.id)
                continue
            if not call.client_side:
                self._wait_for(call, key, nursery)
                continue
            if len(self._in_flight) >= MAX_IN_FLIGHT + MAX_REFUSALS:
                if not self._overwhelmed:
                    log.warning("too many function calls, request dropped", limit=MAX_IN_FLIGHT)
                self._overwhelmed = True
                return
            full = len(self._in_flight) >= MAX_IN_FLIGHT
            entry = self._in_flight[key] = _InFlight(call, key)
            self._on_began(trio.current_time())
            nursery.start_soon(self._serve, entry, full, name="function call")

    def answered(self, call_id: str) -> None:
        """Deepgram has answered a server-side function. Other ids are ignored."""
        if (entry := self._in_flight.get(call_id)) and not entry.call.client_side:
            entry.scope.cancel(reason="Deepgram has answered the function call")

    def _wait_for(self, call: FunctionCall, key: str, nursery: Tasks) -> None:
        if len(self._in_flight) < MAX_IN_FLIGHT:
            entry = self._in_flight[key] = _InFlight(call, key)
            self._on_began(trio.current_time())
            nursery.start_soon(self._server_side, entry, name="function call")

    async def _server_side(self, entry: _InFlight) -> None:
        try:
            with entry.scope as scope:
                scope.deadline = entry.began + SERVER_SIDE_SECONDS
                await trio.sleep_forever()
        finally:
            del self._in_flight[entry.key]
            self._on_ended(trio.current_time())

    def cancel(self, cancelled: FunctionCallCancelled) -> None:
        """Cancel the named function calls; they get no answer.

        Unknown ids are ignored. An answer that is already being sent still goes out; the agent
        discards it.
        """
        for one in cancelled.functions:
            if entry := self._in_flight.get(one.id):
                entry.unwanted = True
                entry.scope.cancel(reason="the agent cancelled the function call")

    def cancel_all(self) -> None:
        """Cancel all function calls, without answers: the agent's session has ended."""
        for entry in self._in_flight.values():
            entry.unwanted = True
            entry.scope.cancel(reason="the agent's session has ended")

    async def _serve(self, entry: _InFlight, full: bool) -> None:
        try:
            content = await self._content(entry, full)
            # A function may have swallowed Cancelled although the phone call has ended.
            await trio.lowlevel.checkpoint_if_cancelled()
            if not entry.unwanted:
                call = entry.call
                result = FunctionResult(
                    call.id or msgspec.UNSET, call.name, content, call.thought_signature
                )
                await self._answer(result)
        except AgentClosed:
            return
        finally:
            del self._in_flight[entry.key]
            self._on_ended(trio.current_time())

    async def _content(self, entry: _InFlight, full: bool) -> str:
        """Return the answer, as JSON text. Logs one line, whatever the result."""
        call, began = entry.call, trio.current_time()
        function = self._functions.get(call.name)
        more: dict[str, Any] = {}
        content = ""
        try:
            if full:
                entry.ended = "error"
                content = _error("too many functions at once; wait for the others, then try again")
            elif function is None:
                entry.ended = "error"
                names = ", ".join(one.name for one in self._functions) or "none"
                content = _error(
                    f"there is no function {call.name[:_NAME_SHOWN]}; there are: {names}"
                )
            else:
                content = await self._run(function, entry)
                log.debug("function returned", function=call.name, id=call.id, content=content)
            return content
        finally:
            if function is not None and not function.is_async and entry.scope.cancelled_caught:
                # Only this line shows that a thread was abandoned and may stay busy.
                more = {"threads_busy": self._threads.busy}
            seconds = trio.current_time() - began
            result = "cancelled" if entry.unwanted else entry.ended
            entry.told = True
            answer = "" if entry.unwanted else content
            self._on_result(call.name, seconds, result, call.arguments, answer)
            log.info(
                "function call",
                function=call.name,
                id=call.id,
                milliseconds=round(1000 * seconds),
                result=result,
                **more,
            )

    async def _run(self, function: Function, entry: _InFlight) -> str:
        """Run one function within its deadline and return its answer, as JSON text.

        Only cancellation from outside and KeyboardInterrupt pass through: sys.exit() and
        asyncio.CancelledError, too, are only this function's failure.
        """
        deadline = DEFAULT_DEADLINE if function.deadline is None else function.deadline
        try:
            with entry.scope as scope:
                scope.deadline = trio.current_time() + deadline
                # Without this, a function cancelled before its start runs to its first checkpoint.
                await trio.lowlevel.checkpoint_if_cancelled()
                value = await self._invoke(function, entry.call)
        except (BadArguments, NotTaken) as error:
            # No traceback: callers hang up while functions run.
            entry.ended = "error"
            return _error(str(error))
        except _PASSING:
            raise
        except BaseExceptionGroup as group:
            # A function with its own nursery can fail and be cancelled at the same time.
            passing, errors = group.split(_PASSING)
            if errors is not None:
                content = _failed(entry, function, errors)
            if passing is not None:
                raise passing from None
            return content
        except BaseException as error:
            return _failed(entry, function, error)
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
        # In a tuple: a plain decorator around an async function returns an awaitable, which Trio
        # would reject as a mistake.
        (value,) = await trio.to_thread.run_sync(
            lambda: (run(),),
            abandon_on_cancel=True,
            limiter=self._threads,  # type: ignore[arg-type]  # has the two methods it needs
        )
        return await value if inspect.isawaitable(value) else value


def _encoded(entry: _InFlight, function: Function, value: object) -> str:
    try:
        content = msgspec.json.encode(value)
    except Exception as error:  # whatever a user's class raises
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
    foreign = isinstance(error, RuntimeError | TypeError) and _ASYNCIO.search(str(error))
    hint = {"hint": _ASYNCIO_HINT} if function.is_async and foreign else {}
    log.error("function failed", function=function.name, id=entry.call.id, exc_info=error, **hint)
    # Not the exception's text: it was not written for the model or the caller, and may be secret.
    return _error("the function failed")


def _error(words: str) -> str:
    return msgspec.json.encode({"error": words}).decode()
