"""A healthy agent is not taken for a sick one, and what plays can be stopped with a key."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from bridge.config.words import Words
from bridge.functions import Functions
from bridge.testing.agent.server import AgentSession
from bridge.testing.speech import load_clip
from tests.world import QUIET, in_memory, injected, settings

Clock = trio.testing.MockClock

SECOND = bytes(range(1, 251)) * 32
ANSWER = b"\x01" * 8000
SHIPPED = {"connect_budget": 8.0, "max_reconnects": 2}
ONE_MOMENT = Words().one_moment


@pytest.mark.parametrize("every", [12, 25])
async def test_coughs_do_not_end_a_call(autojump_clock: Clock, every: int) -> None:
    """UserStartedSpeaking and never a word. The agent speaks what it is given, so it is well."""

    async def script(agent: AgentSession) -> None:
        await agent.say("Hello, how can I help?", SECOND)
        while True:
            await trio.sleep(every)
            await agent.send({"type": "UserStartedSpeaking"})

    async with in_memory(script, QUIET, settings(deepgram=SHIPPED)) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await trio.sleep(120)
            assert phone.ending is None
            await phone.hang_up()
        await world.quiet()
    assert len(world.agent.sessions) == 1
    assert injected(session) == [ONE_MOMENT], "one, for the first"


async def test_a_caller_who_speaks_for_long_is_listened_to(autojump_clock: Clock) -> None:
    """UserStartedSpeaking comes at the beginning of the turn, text at its end: the audio tells."""

    async def script(agent: AgentSession) -> None:
        await agent.user_started_speaking()
        await trio.sleep(26)
        await agent.user_said("A long story.")
        await agent.say("I see.", SECOND)

    clip = load_clip("hello")
    long = (clip * (25 * 8000 // len(clip) + 1))[: 25 * 8000]
    async with in_memory(script, QUIET, settings(deepgram=SHIPPED)) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(long)
            await phone.wait_heard(1.0)
            await phone.hang_up()
        await world.quiet()
    assert len(world.agent.sessions) == 1
    assert injected(session) == []


async def test_a_slow_function_of_deepgrams_is_waited_for(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.user_said("Book a table.")
        call = {"id": "fc_1", "name": "book", "arguments": "{}", "client_side": False}
        await agent.send({"type": "FunctionCallRequest", "functions": [call]})
        agent.failed = True  # and it speaks no filler meanwhile
        await trio.sleep(25)
        agent.failed = False
        await agent.send(
            {"type": "FunctionCallResponse", "id": "fc_1", "name": "book", "content": "7"}
        )
        await agent.say("Table seven.", SECOND)

    async with in_memory(script, QUIET, settings(deepgram=SHIPPED)) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.hang_up()
        await world.quiet()
    assert len(world.agent.sessions) == 1


async def test_an_agent_that_thinks_slowly_is_waited_for(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.user_said("Why?")
        for _ in range(7):
            await trio.sleep(5)
            await agent.warning("SLOW_THINK_REQUEST", "We have now waited for a think response.")
        await agent.say("Because.", SECOND)

    async with in_memory(script, QUIET, settings(deepgram=SHIPPED)) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.wait_heard(4.0)
            await trio.sleep(1)
            await phone.hang_up()
        await world.quiet()
    assert len(world.agent.sessions) == 1
    assert len(injected(session)) >= 3, "the caller hears that they were not forgotten"


async def test_suspicions_do_not_use_up_the_reconnections_for_losses(
    autojump_clock: Clock,
) -> None:
    """Two sessions stall, and then two are lost: the fifth carries the call."""

    async def script(agent: AgentSession) -> None:
        if agent.number <= 2:
            await agent.user_said("Hello?")
            agent.failed = True
            await trio.sleep_forever()
        elif agent.number <= 4:
            await agent.reset()
        await agent.wait_for_user_message()
        await agent.say("Here I am.", ANSWER)

    async with in_memory(script, QUIET, settings(deepgram=SHIPPED)) as world:
        async with world.call() as phone:
            await world.agent.wait_for_session(5)
            await phone.wait_heard(1.0)
            await phone.hang_up()
        await world.quiet()
    assert world.agent.opened == 5
    assert world.ending["outcome"] == "caller_hung_up"


async def test_with_no_reconnection_left_a_silent_session_is_kept(autojump_clock: Clock) -> None:
    """It may yet speak; an apology would be the end."""

    async def script(agent: AgentSession) -> None:
        await agent.user_said("Hello?")
        agent.failed = True
        await trio.sleep(20)
        agent.failed = False
        await agent.say("Sorry, here I am.", ANSWER)

    async with in_memory(script, QUIET, settings()) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.hang_up()
        await world.quiet()
    assert world.agent.opened == 1
    assert any("keeping it" in str(line["event"]) for line in world.logs)


async def test_a_backchannel_is_not_the_agents_reply(autojump_clock: Clock) -> None:
    """Think Live says "mhm" while the reply is still due."""

    async def script(agent: AgentSession) -> None:
        await agent.user_said("Let me explain.")
        await agent.say("Mhm.", SECOND, behavior="backchannel")
        await trio.sleep_forever()

    async with in_memory(script, QUIET, settings(deepgram=SHIPPED)) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await trio.sleep(12)
            await phone.hang_up()
        await world.quiet()
    assert injected(session) == [ONE_MOMENT]


# ---- marks --------------------------------------------------------------------------------------


async def test_a_mark_that_never_comes_back_holds_no_clock(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("Hello.", SECOND)

    async with in_memory(script, QUIET, settings()) as world:
        async with world.call() as phone:
            await world.agent.wait_for_session()
            world.live_call.conversation.mark_returned = lambda name: None
            await phone.wait_ended(timeout=120)
    assert world.ending["outcome"] == "idle"
    assert world.ending["seconds"] < 80


# ---- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("paced", [1.0, 0.0])
async def test_a_key_stops_an_announcement(autojump_clock: Clock, paced: float) -> None:
    """Also what the agent has yet to send of it; and the answer is heard."""

    async def script(agent: AgentSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "A long announcement.", SECOND * 20)
            await agent.wait_for_user_message()
            await agent.say("Sales it is.", ANSWER)

    behaviour = msgspec.structs.replace(QUIET, speed=paced)
    async with in_memory(script, behaviour, settings()) as world:
        async with world.call(strict=False) as phone:
            await trio.sleep(3)
            pressed = phone.elapsed
            await phone.press("1")
            clear = await phone.wait_event("clear")
            assert clear.at - pressed < 0.1
            await trio.sleep(1.5)
            before = phone.heard_seconds
            await phone.wait_heard(before + 1.0)
            answered = phone.elapsed
            await phone.hang_up()
    assert answered - pressed < 5
    assert phone.received_audio.count(ANSWER[:800]) >= 1


async def test_a_key_does_not_stop_a_greeting_that_must_be_heard(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("This call is recorded.", SECOND * 6)

    using = settings(call={"interruptible_greeting": False})
    async with in_memory(script, QUIET, using) as world:
        async with world.call() as phone:
            await trio.sleep(1)
            await phone.press("1")
            await phone.wait_heard(6.0)
            assert not any(event.kind == "clear" for event in phone.events)
            await phone.hang_up()


async def test_functions_that_lack_an_id_are_answered(autojump_clock: Clock) -> None:
    async def tell_time() -> str:
        """Tell the time."""
        return "noon"

    async def script(agent: AgentSession) -> None:
        await agent.send(
            {"type": "FunctionCallRequest", "functions": [{"name": "tell_time", "arguments": {}}]}
        )

    async with in_memory(script, QUIET, settings()) as world:
        world.app.extensions["bridge"].functions.loaded[""] = Functions.of(tell_time)
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            answer = await session.wait_for_message("FunctionCallResponse")
            await phone.hang_up()
    assert answer == {"type": "FunctionCallResponse", "name": "tell_time", "content": '"noon"'}
