"""Functions that act on their call, on the whole stack and the virtual clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bridge.call.actions import MAX_WAITING, SAY_SECONDS
from bridge.call.conversation import Conversation
from bridge.config.file import FixedConfig
from bridge.config.settings import Settings
from bridge.deepgram.session import AgentClosed
from bridge.deepgram.updates import Changes
from bridge.functions import Functions, PhoneCall
from bridge.functions.errors import NotTaken
from bridge.testing.agent.server import AgentSession, Behaviour, silent
from bridge.testing.agent.voice import hum
from bridge.testing.phone.twiml import Hangup, Say
from tests.world import QUIET, World, settings
from tests.world import in_memory as in_memory_with

Clock = trio.testing.MockClock
SECOND = bytes(range(1, 251)) * 32
RECEPTION = {"transfer_to": {"reception": "+15551112222"}}
ONE_MOMENT = Settings().words.one_moment
Act = Callable[[PhoneCall], Awaitable[Any]]


def in_memory(
    act: Act | None = None,
    script: Any = silent,
    behaviour: Behaviour = QUIET,
    **tables: Any,
) -> AbstractAsyncContextManager[World]:
    """A world whose agent has one function, `act`."""
    world = in_memory_with(script, behaviour, settings(**tables))
    return _with(world, act) if act is not None else world


@asynccontextmanager
async def _with(opening: AbstractAsyncContextManager[World], act: Act) -> AsyncIterator[World]:
    async def f(call: PhoneCall) -> Any:
        return await act(call)

    async with opening as world:
        world.app.extensions["bridge"].functions.loaded[""] = Functions.of(f)
        yield world


def quiet(**knobs: Any) -> Behaviour:
    return msgspec.structs.replace(QUIET, **knobs)


def said(world: World) -> list[str]:
    """What the agents said, in order."""
    return [one.text for session in world.agent.sessions for one in session.mouth.spoken]


# ---- what a function may do ---------------------------------------------------------------------


async def test_a_function_has_the_agent_speak_while_it_runs(autojump_clock: Clock) -> None:
    async def act(call: PhoneCall) -> str:
        call.say("I am asking the kitchen.")
        call.say("It takes a moment.")
        await trio.sleep(6)
        return call.caller

    async def script(agent: AgentSession) -> None:
        await agent.user_said("A table, please.")
        (call,) = await agent.call_functions([{"name": "f"}])
        await agent.say(f"Done, {json.loads(call.response or '')}.", SECOND)
        await trio.sleep_forever()

    async with in_memory(act, script) as world:
        async with world.call(from_number="+15551234567") as phone:
            await phone.wait_heard(3.0)
            await phone.wait_quiet(1)
            await phone.hang_up()
        await world.quiet()
    assert said(world) == [
        "I am asking the kitchen.",
        "It takes a moment.",
        "Done, +15551234567.",
    ]
    assert world.agent.opened == 1


async def test_words_wait_for_a_caller_who_speaks(autojump_clock: Clock) -> None:
    async def act(call: PhoneCall) -> None:
        call.say("There is a table.")

    async def script(agent: AgentSession) -> None:
        await agent.user_started_speaking()
        await agent.call_functions([{"name": "f"}])
        await trio.sleep(4)
        assert said(world) == []
        await agent.user_said("... by the window.")
        await trio.sleep(2)
        assert said(world) == ["There is a table."]
        await trio.sleep_forever()

    async with in_memory(act, script) as world:
        async with world.call() as phone:
            await phone.wait_heard(0.5)
            await phone.wait_quiet(10)
            await phone.hang_up()
        await world.quiet()
    assert said(world) == ["There is a table."], "once"


async def test_words_for_a_caller_who_does_not_stop_are_dropped(autojump_clock: Clock) -> None:
    async def act(call: PhoneCall) -> None:
        call.say("There is a table.")

    async def script(agent: AgentSession) -> None:
        await agent.user_started_speaking()
        await agent.call_functions([{"name": "f"}])
        for _ in range(10):
            await trio.sleep(SAY_SECONDS / 5)
            await agent.user_started_speaking()
        await agent.user_said("That is all.")
        await agent.say("Thank you.", SECOND)
        await trio.sleep_forever()

    async with in_memory(act, script, call={"stall_seconds": 60}) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.wait_quiet(5)
            await phone.hang_up()
        await world.quiet()
    assert said(world) == ["Thank you."]
    assert [line for line in world.logs if line["event"].startswith("words not said")]


async def test_a_function_hangs_up_behind_the_agents_next_words(autojump_clock: Clock) -> None:
    async def act(call: PhoneCall) -> str:
        call.hang_up()
        return "say goodbye"

    async def script(agent: AgentSession) -> None:
        await agent.call_functions([{"name": "f"}])
        await agent.say("Goodbye!", SECOND * 2)
        await trio.sleep_forever()

    async with in_memory(act, script) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert phone.heard_seconds == pytest.approx(2.0, abs=0.01)
    assert world.ending["outcome"] == "agent_ended"
    assert world.ending["reason"] == "a function hung up"


@pytest.mark.parametrize("target", ["reception", "+15551112222"])
async def test_a_function_transfers_behind_its_own_words(
    autojump_clock: Clock, target: str
) -> None:
    async def act(call: PhoneCall) -> None:
        call.say("I connect you.")
        call.transfer(target)

    async def script(agent: AgentSession) -> None:
        await agent.call_functions([{"name": "f"}])
        await trio.sleep_forever()

    async with in_memory(act, script, functions=RECEPTION) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert said(world) == ["I connect you."]
    assert phone.heard_seconds > 0.3
    assert phone.ending == "dialled"
    assert "+15551112222" in str(phone.verbs[-2])
    assert world.ending["outcome"] == "transferred"


REFUSALS: dict[str, tuple[Callable[[PhoneCall], Any], str]] = {
    "nowhere": (lambda call: call.transfer("kitchen"), "functions.transfer_to has reception"),
    "nothing": (lambda call: call.say(" "), "words: expected something to say"),
    "no change": (lambda call: call.update(), "update: expected prompt, voice, think, speak or"),
    "twice": (
        lambda call: call.update(voice="aura-2-agathe-fr", speak={"provider": {}}),
        "voice: it is a part of speak",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_what_a_function_may_not_do_is_its_own_failure(
    autojump_clock: Clock, refusal: str
) -> None:
    does, why = REFUSALS[refusal]

    async def act(call: PhoneCall) -> None:
        does(call)

    async def script(agent: AgentSession) -> None:
        (call,) = await agent.call_functions([{"name": "f"}])
        answers.append(call.response or "")
        await agent.say("I am sorry.", SECOND)
        await trio.sleep_forever()

    answers: list[str] = []
    async with in_memory(act, script, functions=RECEPTION) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.hang_up()
        await world.quiet()
    assert answers == ['{"error":"the function failed"}']
    (line,) = [line for line in world.logs if line["event"] == "function failed"]
    assert why in str(line["exc_info"])


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (
            lambda call: [call.say("again") for _ in range(MAX_WAITING + 1)],
            "too much is waiting for the agent",
        ),
        (lambda call: (call.hang_up(), call.transfer("reception")), "the call is ending"),
    ],
)
async def test_what_a_call_does_not_take_now_is_told_and_no_traceback(
    autojump_clock: Clock, does: Callable[[PhoneCall], Any], why: str
) -> None:
    """Callers hang up at any moment."""

    async def act(call: PhoneCall) -> None:
        does(call)

    async def script(agent: AgentSession) -> None:
        (call,) = await agent.call_functions([{"name": "f"}])
        answers.append(json.loads(call.response or ""))
        await trio.sleep_forever()

    answers: list[Any] = []
    async with in_memory(act, script, functions=RECEPTION) as world:
        async with world.call() as phone:
            await phone.wait_quiet(1)
            await phone.hang_up()
        await world.quiet()
    assert answers == [{"error": why}]
    assert [line for line in world.logs if "exc_info" in line] == []


# ---- a function that takes long -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "filler_seconds", "filler"),
    [(1.0, 1.5, []), (9.0, 1.5, [ONE_MOMENT]), (6.0, 0, []), (4.0, 3, [ONE_MOMENT])],
)
async def test_a_slow_function_is_filled_in_once(
    autojump_clock: Clock, seconds: float, filler_seconds: float, filler: list[str]
) -> None:
    async def act(call: PhoneCall) -> None:
        await trio.sleep(seconds)

    async def script(agent: AgentSession) -> None:
        for _ in range(2):
            await agent.user_said("A table, please.")
            began = trio.current_time()
            await agent.call_functions([{"name": "f"}])
            await agent.say("Done.", SECOND)
            begins.append(
                [at - began for at, message in agent.messages if "Inject" in message["type"]]
            )
        done.set()
        await trio.sleep_forever()

    begins: list[list[float]] = []
    done = trio.Event()
    functions = {"filler_seconds": filler_seconds}
    async with in_memory(act, script, functions=functions) as world:
        async with world.call() as phone:
            await done.wait()
            await phone.hang_up()
        await world.quiet()
    assert said(world) == [*filler, "Done."] * 2, "once for each function call"
    for at in begins[0][:1]:
        assert filler_seconds <= at <= filler_seconds + 0.5
    assert world.agent.opened == 1


@pytest.mark.parametrize("who", ["agent", "caller", "the function"])
async def test_nobody_is_talked_over(autojump_clock: Clock, who: str) -> None:
    """Nor is the filler said soon after somebody spoke."""

    async def act(call: PhoneCall) -> None:
        if who == "the function":
            call.say("I am asking the kitchen.")
        await trio.sleep(4)

    async def script(agent: AgentSession) -> None:
        if who == "agent":
            await agent.say("Let me look that up for you.", SECOND * 5)
        await agent.call_functions([{"name": "f"}])
        await agent.say("Done.", SECOND)
        await trio.sleep_forever()

    async with in_memory(act, script, quiet(speed=0.0)) as world:
        async with world.call() as phone:
            if who == "caller":
                await phone.say(hum(3.0))
            await phone.wait_heard(1.0)
            await phone.wait_quiet(10)
            await phone.hang_up()
        await world.quiet()
    assert ONE_MOMENT not in said(world)


async def test_the_filler_is_no_answer(autojump_clock: Clock) -> None:
    """An agent that says nothing after the function has stalled, though it spoke its fillers."""

    async def act(call: PhoneCall) -> None:
        await trio.sleep(3)

    async def script(agent: AgentSession) -> None:
        if agent is world.agent.sessions[0]:
            await agent.user_said("A table, please.")
            await agent.call_functions([{"name": "f"}])
            await trio.sleep_forever()
        await agent.say("Where were we?", SECOND)
        await trio.sleep_forever()

    began = trio.current_time()
    async with in_memory(act, script, deepgram={"max_reconnects": 1}) as world:
        async with world.call() as phone:
            await (await world.agent.wait_for_session(2)).applied.wait()
            assert trio.current_time() - began < 40
            await phone.hang_up()
        await world.quiet()
    assert {one.text for one in world.agent.sessions[0].mouth.spoken} == {ONE_MOMENT}


async def test_a_goodbye_is_not_filled_in(autojump_clock: Clock) -> None:
    async def act(call: PhoneCall) -> None:
        call.hang_up()
        await trio.sleep(3)

    async def script(agent: AgentSession) -> None:
        await agent.call_functions([{"name": "f"}])
        await agent.say("Goodbye!", SECOND)
        await trio.sleep_forever()

    async with in_memory(act, script) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert said(world) == ["Goodbye!"]
    assert phone.heard_seconds == pytest.approx(1.0, abs=0.01)


# ---- changes of the agent -----------------------------------------------------------------------


async def test_changes_reach_the_agent_and_the_next_session(autojump_clock: Clock) -> None:
    async def act(call: PhoneCall) -> None:
        call.update(think={"prompt": "You are a pirate."})
        call.update(prompt="Be brief.", voice="aura-2-agathe-fr")
        call.update(listen={"provider": {"language": "fr"}})

    async def script(agent: AgentSession) -> None:
        if agent is world.agent.sessions[0]:
            await agent.call_functions([{"name": "f"}])
            await trio.sleep(1)
            seen.append((agent.prompt, agent.speak, agent.listen, agent.think["functions"]))
            await agent.reset()
        seen.append((agent.prompt, agent.speak, agent.listen, agent.think["functions"]))
        await agent.say("Ahoy.", SECOND)
        await trio.sleep_forever()

    seen: list[Any] = []
    async with in_memory(act, script, deepgram={"max_reconnects": 1}) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.hang_up()
        await world.quiet()
    assert seen[0] == seen[1]
    prompt, speak, listen, functions = seen[0]
    assert prompt == "You are a pirate.\nBe brief."
    assert speak == {"provider": {"type": "deepgram", "model": "aura-2-agathe-fr"}}
    assert listen == {"provider": {"type": "deepgram", "model": "nova-3", "language": "fr"}}
    assert [one["name"] for one in functions] == ["f", "end_call"]
    kinds = [message["type"] for _, message in world.agent.sessions[0].sent]
    acknowledged = ["ThinkUpdated", "PromptUpdated", "SpeakUpdated", "ListenUpdated"]
    assert [kind for kind in kinds if kind.endswith("Updated")] == acknowledged
    assert [session.faults for session in world.agent.sessions] == [[], []]


async def test_a_change_that_the_agent_refuses_costs_a_session_and_not_the_call(
    autojump_clock: Clock,
) -> None:
    async def act(call: PhoneCall) -> None:
        call.update(prompt="Be brief.")
        await trio.sleep(1)
        call.update(speak={"provider": {"colour": "blue"}})

    async def script(agent: AgentSession) -> None:
        if agent is world.agent.sessions[0]:
            await agent.call_functions([{"name": "f"}])
        await agent.say("Still here.", SECOND)
        await trio.sleep_forever()

    async with in_memory(act, script, deepgram={"max_reconnects": 1}) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.hang_up()
        await world.quiet()
    first, second = world.agent.sessions
    assert "unknown field `colour`" in str(first.sent[-1])
    assert second.prompt.endswith("Be brief.")
    assert "colour" not in str(second.settings)
    assert world.ending["outcome"] == "caller_hung_up"


async def test_a_change_that_no_session_has_acknowledged_is_not_the_end_of_the_call(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is lost with the message, and the next one is refused for it."""

    async def lost(self: Conversation, message: Any) -> None:
        raise AgentClosed("lost with the message")

    async def script(agent: AgentSession) -> None:
        await agent.say("Hello.", SECOND)
        await trio.sleep_forever()

    async with in_memory(None, script, deepgram={"max_reconnects": 1}) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            call = world.live_call
            monkeypatch.setattr(Conversation, "send", lost)
            call.actions.update(Changes(speak={"provider": {"colour": "blue"}}))
            await trio.testing.wait_all_tasks_blocked()
            await world.agent.sessions[0].reset()
            await phone.wait_heard(2.0)
            await phone.hang_up()
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    assert "colour" not in str(world.agent.sessions[-1].settings)


# ---- what an operator may do --------------------------------------------------------------------


async def test_an_operator_has_the_agent_speak(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        async with world.call() as phone:
            await world.agent.wait_for_session()
            await phone.wait_quiet(1)
            call = world.live_call
            call.actions.say("I have asked the kitchen.")
            await phone.wait_heard(0.5)
            await phone.hang_up()
        await world.quiet()
    assert said(world) == ["I have asked the kitchen."]
    assert [(line.role, line.words) for line in call.story.lines] == [
        ("agent", "I have asked the kitchen.")
    ]


@pytest.mark.parametrize("agent_is_there", [True, False])
async def test_an_operator_transfers(autojump_clock: Clock, agent_is_there: bool) -> None:
    behaviour = quiet(applies_settings=agent_is_there)
    async with in_memory(behaviour=behaviour, functions=RECEPTION) as world:
        async with world.call() as phone:
            await phone.wait_quiet(1)
            call = world.live_call
            call.actions.transfer_now("reception", ONE_MOMENT)
            await phone.wait_ended()
            with pytest.raises(NotTaken, match="the call is ending"):
                call.actions.transfer_now("reception", ONE_MOMENT)
    assert said(world) == [ONE_MOMENT] * agent_is_there
    assert (phone.heard_seconds > 0.3) is agent_is_there
    assert phone.ending == "dialled"
    assert "+15551112222" in str(phone.verbs[-2])
    assert world.ending["outcome"] == "transferred"
    assert world.ending["reason"] == "an operator transferred: reception"


# ---- one agent's own ----------------------------------------------------------------------------


@pytest.mark.parametrize("prewarm", [False, True])
async def test_each_agent_has_functions_and_transfers_of_its_own(
    autojump_clock: Clock, prewarm: bool
) -> None:
    def hours() -> None: ...

    def prices() -> None: ...

    async def script(agent: AgentSession) -> None:
        assert agent.settings is not None
        functions = agent.settings["agent"]["think"]["functions"]
        told.append([one["name"] for one in functions])
        targets.append(functions[-1]["parameters"]["properties"].get("destination"))
        await agent.say("Hello.", SECOND)
        await trio.sleep_forever()

    told: list[list[str]] = []
    targets: list[Any] = []
    sales = {
        "numbers": ["+15557654321"],
        "functions": {"module": "sales_functions", "transfer_to": {"desk": "+15551113333"}},
    }
    using = settings(
        agents={"sales": sales},
        functions={"module": "our_functions", "end_call": False},
        deepgram={"prewarm": prewarm},
    )
    config = FixedConfig(using)
    async with in_memory_with(script, using=settings(deepgram={"prewarm": prewarm})) as world:
        bridge = world.app.extensions["bridge"]
        bridge._config = config
        bridge.functions.loaded |= {
            "our_functions": Functions.of(hours),
            "sales_functions": Functions.of(prices),
        }
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.hang_up()
        async with world.call(to_number="+15557654321") as phone:
            await phone.wait_heard(1.0)
            (call,) = bridge.calls
            assert call.actions.targets == ["desk"]
            await phone.hang_up()
        await world.quiet()
    assert told == [["hours"], ["prices", "transfer_call"]]
    assert targets[1]["enum"] == ["desk"]


# ---- a call that cannot be set up ---------------------------------------------------------------


@pytest.mark.parametrize("prewarm", [False, True])
async def test_a_call_that_cannot_be_set_up_ends_like_any_other(
    autojump_clock: Clock, prewarm: bool
) -> None:
    """With its outcome, the apology, the metric, and its slot back at once."""

    async def end_call() -> None: ...

    using = settings(deepgram={"prewarm": prewarm}, server={"max_calls": 1})
    async with in_memory_with(using=using) as world:
        bridge = world.app.extensions["bridge"]
        bridge.functions.loaded[""] = Functions.of(end_call)
        for _ in range(2):
            async with world.call() as phone:
                await phone.wait_ended()
            assert phone.verbs[1:] == [Say(Settings().words.apology), Hangup()]
        await world.quiet()
        assert not bridge.entrance.is_full(using)
        metrics, _ = bridge.metrics.expose(None)
    assert b'bridge_calls_total{outcome="internal_error"} 2.0' in metrics
    endings = [line for line in world.logs if line["event"] == "call ended"]
    assert [line["outcome"] for line in endings] == ["internal_error"] * 2
