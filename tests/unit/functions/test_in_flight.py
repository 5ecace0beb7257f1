"""Function calls in flight: everything a function may do, and the one answer the agent gets."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from bridge.deepgram.messages import (
    CancelledFunction,
    FunctionCall,
    FunctionCallCancelled,
    FunctionCallRequest,
    FunctionResult,
)
from bridge.deepgram.session import AgentClosed
from bridge.functions import Functions, function
from bridge.functions.in_flight import (
    DEFAULT_DEADLINE,
    MAX_IN_FLIGHT,
    MAX_REFUSALS,
    MAX_RESULT_BYTES,
    FunctionCalls,
)
from tests.unit.functions.one_call import INFO, a_call, fc, wait

# ---- answers --------------------------------------------------------------------------------


async def test_several_in_one_request_are_answered_as_they_end(autojump_clock: MockClock) -> None:
    async with a_call(wait) as phone:
        phone.ask(
            fc("wait", "a", seconds=3), fc("wait", "b", seconds=1), fc("wait", "c", seconds=2)
        )
        assert phone.results == [], "asking does not wait"
    assert [result.id for _, result in phone.results] == ["b", "c", "a"]
    assert phone.answers == {"a": "waited 3", "b": "waited 1", "c": "waited 2"}
    assert phone.results[-1][0] == pytest.approx(3), "side by side"
    assert phone.lines == {"a": "ok", "b": "ok", "c": "ok"}


async def test_the_answer_names_its_call() -> None:
    async def f(a: int) -> int:
        return a

    async with a_call(f) as phone:
        phone.ask(FunctionCall("fc_9", "f", '{"a":1}', thought_signature="sig"))
    assert phone.results[0][1] == FunctionResult("fc_9", "f", "1", "sig")


async def test_what_the_server_runs_itself_is_left_to_it() -> None:
    async def f() -> None: ...

    async with a_call(f) as phone:
        phone.ask(FunctionCall("a", "f", client_side=False), FunctionCall("b", "f"))
    assert phone.answers == {"b": None}


@dataclass
class Booking:
    number: int
    table: set[str]


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (None, None),
        ({"number": 3}, {"number": 3}),
        (Booking(3, {"a"}), {"number": 3, "table": ["a"]}),
        ("Grüß Gott", "Grüß Gott"),
        (math.nan, None),
    ],
)
async def test_results_are_json(value: Any, content: Any) -> None:
    async def f() -> Any:
        return value

    async with a_call(f) as phone:
        phone.ask(fc("f"))
    assert phone.answers == {"fc_1": content}


@pytest.mark.parametrize("value", [object(), "\ud800", {(1, 2): 3}], ids=["object", "half", "key"])
async def test_a_result_that_is_not_json(value: Any) -> None:
    async def f() -> Any:
        return value

    async with a_call(f) as phone:
        phone.ask(fc("f"))
    assert phone.answers == {"fc_1": {"error": "the function's result cannot be written as JSON"}}
    assert phone.lines == {"fc_1": "error"}
    (line,) = [line for line in phone.logs if line["event"] == "function's result is not JSON"]
    assert line["function"] == "f"


async def test_a_result_without_end() -> None:
    async def f() -> Any:
        endless: list[Any] = []
        endless.append(endless)
        return endless

    async with a_call(f) as phone:
        phone.ask(fc("f"))
    assert phone.answers == {"fc_1": {"error": "the function's result cannot be written as JSON"}}


async def test_a_result_is_bounded() -> None:
    async def f(size: int) -> str:
        return "x" * (size - 2)

    async with a_call(f) as phone:
        phone.ask(fc("f", "fits", size=MAX_RESULT_BYTES), fc("f", "not", size=MAX_RESULT_BYTES + 1))
    assert len(phone.answers["fits"]) == MAX_RESULT_BYTES - 2
    assert phone.answers["not"] == {
        "error": f"the function's result is too large: more than {MAX_RESULT_BYTES} bytes"
    }
    assert phone.lines == {"fits": "ok", "not": "error"}


# ---- the agent's faults ---------------------------------------------------------------------


async def test_an_unknown_function() -> None:
    async with a_call(wait) as phone:
        phone.ask(fc("fly"), fc("x" * 100_000, "long"))
    assert phone.answers["fc_1"] == {"error": "there is no function fly; there are: wait"}
    assert len(phone.answers["long"]["error"]) < 200
    assert phone.lines == {"fc_1": "error", "long": "error"}


async def test_an_unknown_function_where_there_are_none() -> None:
    async with a_call() as phone:
        phone.ask(fc("fly"))
    assert phone.answers["fc_1"] == {"error": "there is no function fly; there are: none"}


async def test_arguments_that_do_not_fit_run_nothing() -> None:
    ran = []

    async def f(guests: int) -> None:
        ran.append(guests)

    async with a_call(f) as phone:
        phone.ask(fc("f", "a", guests="two"), FunctionCall("b", "f", "{guests"), fc("f", "c"))
    assert ran == []
    assert phone.answers == {
        "a": {"error": "guests: Expected `int`, got `str`"},
        "b": {"error": "the arguments are not a JSON object"},
        "c": {"error": "Object missing required field `guests`; the parameters are: guests"},
    }
    assert set(phone.lines.values()) == {"error"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.text() | (JSON | st.fixed_dictionaries({"guests": JSON})).map(json.dumps))
def test_any_arguments_get_one_answer(arguments: str) -> None:
    async def f(guests: list[int]) -> int:
        return len(guests)

    async def main() -> None:
        async with a_call(f) as phone:
            phone.ask(FunctionCall("a", "f", arguments))
        assert isinstance(phone.answers["a"], int) or set(phone.answers["a"]) == {"error"}

    trio.run(main)


async def test_an_id_in_flight_is_not_run_again(autojump_clock: MockClock) -> None:
    async with a_call(wait) as phone:
        phone.ask(fc("wait", seconds=2), fc("wait", seconds=1))
        await trio.sleep(1)
        phone.ask(fc("wait", seconds=0))
    assert phone.answers == {"fc_1": "waited 2"}


async def test_more_than_a_few_at_once_are_refused(autojump_clock: MockClock) -> None:
    async with a_call(wait) as phone:
        phone.ask(*(fc("wait", str(n), seconds=1) for n in range(MAX_IN_FLIGHT + 3)))
    refused = {id for id, content in phone.answers.items() if content != "waited 1"}
    assert refused == {str(MAX_IN_FLIGHT + n) for n in range(3)}
    assert phone.answers["16"]["error"].startswith("too many functions at once; wait for")
    assert phone.results[0][0] == 0, "refusals do not wait for the others"


async def test_an_agent_that_reads_no_answers_costs_a_bounded_number_of_tasks(
    autojump_clock: MockClock,
) -> None:
    async def never(result: FunctionResult) -> None:
        await trio.sleep_forever()

    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            calls = FunctionCalls(Functions.of(wait), INFO, never)
            for batch in range(10):
                functions = (fc("wait", f"{batch}.{n}", seconds=0) for n in range(100))
                calls.start(nursery, FunctionCallRequest(tuple(functions)))
                await trio.sleep(1)
            assert len(calls) == len(nursery.child_tasks) == MAX_IN_FLIGHT + MAX_REFUSALS
            nursery.cancel_scope.cancel()
    assert len(calls) == 0
    assert [line["log_level"] for line in logs].count("warning") == 1


# ---- the functions' faults ------------------------------------------------------------------


async def test_a_deadline_ends_a_function(autojump_clock: MockClock) -> None:
    @function(deadline=2.5)
    async def short() -> None:
        await trio.sleep_forever()

    async def usual() -> None:
        await trio.sleep_forever()

    async with a_call(short, usual) as phone:
        phone.ask(fc("short", "s"), fc("usual", "u"))
    assert phone.answers == {
        "s": {"error": "the function did not answer within 2.5 seconds"},
        "u": {"error": "the function did not answer within 10 seconds"},
    }
    assert [at for at, _ in phone.results] == pytest.approx([2.5, DEFAULT_DEADLINE])
    assert phone.lines == {"s": "timeout", "u": "timeout"}
    milliseconds = [line["milliseconds"] for line in phone.logs if "milliseconds" in line]
    assert milliseconds == [2500, 10000]


async def test_a_function_that_clings_on_is_late_but_answered(autojump_clock: MockClock) -> None:
    """A shield cannot be ended from outside; what it returns in the end is still an answer."""

    @function(deadline=1)
    async def f() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        return "done"

    async with a_call(f) as phone:
        phone.ask(fc("f"))
    assert phone.answers == {"fc_1": "done"}


async def test_a_function_that_swallows_its_deadline(autojump_clock: MockClock) -> None:
    @function(deadline=1)
    async def f() -> str:
        try:
            await trio.sleep_forever()
        except BaseException:
            return "swallowed"
        return ""

    async with a_call(f) as phone:
        phone.ask(fc("f"))
    assert phone.answers == {"fc_1": "swallowed"}


def raises(error: BaseException) -> Callable[..., Any]:
    async def f() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return f


@pytest.mark.parametrize(
    "error",
    [
        ValueError("password hunter2"),
        trio.TooSlowError("password hunter2"),
        AgentClosed("password hunter2"),
        SystemExit("password hunter2"),
        StopAsyncIteration("password hunter2"),
        asyncio.CancelledError("password hunter2"),
        GeneratorExit("password hunter2"),
        ExceptionGroup("password hunter2", [ValueError(1), KeyError(2)]),
        BaseExceptionGroup("password hunter2", [ValueError(1), SystemExit(2)]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_function_that_raises(error: BaseException) -> None:
    """The agent hears that it failed and nothing more; the log has it whole, once."""
    async with a_call(raises(error)) as phone:
        phone.ask(fc("f"))
    assert phone.answers == {"fc_1": {"error": "the function failed"}}
    assert phone.lines == {"fc_1": "error"}
    (line,) = [line for line in phone.logs if line["log_level"] == "error"]
    assert (line["event"], line["function"]) == ("function failed", "f")
    shown = line["exc_info"]
    assert shown is error or shown.exceptions == error.exceptions


async def test_a_check_of_arguments_that_raises_what_it_should_not() -> None:
    async with a_call(takes_a_trap) as phone:
        phone.ask(fc("takes_a_trap", a={}))
    assert phone.answers == {"fc_1": {"error": "the function failed"}}


@dataclass
class Trap:
    def __post_init__(self) -> None:
        raise LookupError("password hunter2")


async def takes_a_trap(a: Trap) -> None: ...


async def test_one_that_raises_harms_no_other(autojump_clock: MockClock) -> None:
    async with a_call(raises(ValueError("x")), wait) as phone:
        phone.ask(fc("f", "f"), fc("wait", "w", seconds=1))
    assert phone.answers == {"f": {"error": "the function failed"}, "w": "waited 1"}


async def test_a_function_for_another_event_loop() -> None:
    """Awaiting what is not Trio's is an error in that function, like any other."""

    class Foreign:
        def __await__(self) -> Any:
            yield "of another loop"

    async def f() -> None:
        await Foreign()

    async with a_call(f) as phone:
        phone.ask(fc("f"))
    assert phone.answers == {"fc_1": {"error": "the function failed"}}


async def sleeps_with_asyncio() -> None:
    await asyncio.sleep(1)


async def waits_with_asyncio() -> None:
    async with asyncio.timeout(1):
        await trio.lowlevel.checkpoint()


async def awaits_a_future() -> None:
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("implementation", "hinted"),
    [
        (sleeps_with_asyncio, True),
        (waits_with_asyncio, True),
        (awaits_a_future, True),
        (raises(RuntimeError("of its own")), False),
    ],
)
async def test_asyncio_in_an_async_function_is_told_the_way_out(
    implementation: Callable[..., Any], hinted: bool
) -> None:
    async with a_call(implementation) as phone:
        phone.ask(fc(implementation.__name__))
    assert phone.answers == {"fc_1": {"error": "the function failed"}}
    (line,) = [line for line in phone.logs if line["event"] == "function failed"]
    assert ("plain def that calls asyncio.run()" in line.get("hint", "")) is hinted


async def test_failed_and_cancelled_at_the_same_time(autojump_clock: MockClock) -> None:
    """What was cancelled goes to whoever cancelled; what failed goes to the log."""

    async def f() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in the cleanup")

    @function(deadline=1)
    async def g() -> None:
        await f()

    with capture_logs() as logs:
        async with a_call(f, g) as phone:
            phone.ask(fc("g", "g"), fc("f", "unwanted"), fc("f", "f"))
            await trio.sleep(0.5)
            phone.cancel("unwanted")
            await trio.sleep(1)
            assert phone.answers == {"g": {"error": "the function failed"}}
            phone.nursery.cancel_scope.cancel()
    assert phone.answers == {"g": {"error": "the function failed"}}
    assert phone.lines == {"g": "error", "unwanted": "cancelled", "f": "error"}
    failures = [line for line in phone.logs if line["event"] == "function failed"]
    assert len(failures) == 3
    assert logs == []


async def test_an_interrupt_is_not_caught() -> None:
    with pytest.RaisesGroup(KeyboardInterrupt):
        async with a_call(raises(KeyboardInterrupt())) as phone:
            phone.ask(fc("f"))
    assert phone.results == []
    assert len(phone.calls) == 0


# ---- cancellation ---------------------------------------------------------------------------


async def test_the_agent_takes_a_call_back(autojump_clock: MockClock) -> None:
    async with a_call(wait) as phone:
        phone.ask(fc("wait", "a", seconds=1), fc("wait", "b", seconds=1))
        await trio.sleep(0.5)
        phone.cancel("a", "never asked for")
        await wait_all_tasks_blocked()
        assert len(phone.calls) == 1, "at once"
    assert phone.answers == {"b": "waited 1"}
    assert phone.lines == {"a": "cancelled", "b": "ok"}


async def test_taken_back_before_it_began() -> None:
    ran = []

    async def f() -> None:
        ran.append("f")

    def g() -> None:
        ran.append("g")

    async with a_call(f, g) as phone:
        phone.ask(fc("f", "f"), fc("g", "g"))
        phone.cancel("f", "g")
    assert ran == []
    assert phone.answers == {}
    assert phone.lines == {"f": "cancelled", "g": "cancelled"}


async def test_taken_back_too_late(autojump_clock: MockClock) -> None:
    """The answer is on its way: cutting it off would end the agent's session."""
    sent = []

    async def slow_answer(result: FunctionResult) -> None:
        await trio.sleep(1)
        sent.append(result.id)

    async with trio.open_nursery() as nursery:
        calls = FunctionCalls(Functions.of(wait), INFO, slow_answer)
        calls.start(nursery, FunctionCallRequest((fc("wait", seconds=1),)))
        await trio.sleep(1.5)
        calls.cancel(FunctionCallCancelled((CancelledFunction("fc_1"),)))
    assert sent == ["fc_1"]


async def test_a_deadline_does_not_cut_an_answer_off(autojump_clock: MockClock) -> None:
    sent = []

    async def slow_answer(result: FunctionResult) -> None:
        await trio.sleep(20)
        sent.append(result.content)

    async with trio.open_nursery() as nursery:
        calls = FunctionCalls(Functions.of(wait), INFO, slow_answer)
        calls.start(nursery, FunctionCallRequest((fc("wait", seconds=1),)))
    assert sent == ['"waited 1"']


async def test_the_call_ends(autojump_clock: MockClock) -> None:
    async with a_call(wait) as phone:
        phone.ask(*(fc("wait", str(n), seconds=5) for n in range(3)), fc("unknown", "u"))
        await trio.sleep(1)
        phone.nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(1)
    assert set(phone.answers) == {"u"}
    assert len(phone.calls) == 0
    assert phone.lines == {"0": "cancelled", "1": "cancelled", "2": "cancelled", "u": "error"}


async def test_a_function_that_swallows_the_end_of_the_call(autojump_clock: MockClock) -> None:
    """Its answer is not sent, not even by an `answer` without a checkpoint."""
    sent = []

    async def f() -> str:
        try:
            await trio.sleep_forever()
        except BaseException:
            return "still here"
        return ""

    async def answer(result: FunctionResult) -> None:
        sent.append(result)

    async with trio.open_nursery() as nursery:
        calls = FunctionCalls(Functions.of(f), INFO, answer)
        request = FunctionCallRequest((fc("f", "a"), fc("f", "b")))
        calls.start(nursery, request)
        await trio.sleep(1)
        calls.cancel(FunctionCallCancelled((CancelledFunction("a"),)))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert sent == []


async def test_the_agent_is_gone_when_the_answer_is_ready(autojump_clock: MockClock) -> None:
    async def answer(result: FunctionResult) -> None:
        raise AgentClosed("gone")

    async with trio.open_nursery() as nursery:
        calls = FunctionCalls(Functions.of(wait), INFO, answer)
        calls.start(nursery, FunctionCallRequest((fc("wait", seconds=1), fc("unknown", "u"))))
    assert len(calls) == 0


async def test_an_answer_that_fails_otherwise_is_the_calls_failure() -> None:
    async def answer(result: FunctionResult) -> None:
        raise RuntimeError("a bug")

    with pytest.RaisesGroup(RuntimeError):
        async with trio.open_nursery() as nursery:
            calls = FunctionCalls(Functions.of(wait), INFO, answer)
            calls.start(nursery, FunctionCallRequest((fc("wait", seconds=0),)))
