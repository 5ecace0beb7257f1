"""Words that are written instead of spoken: how they reach the agent, and what is kept of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bridge.call.typed import MAX_TYPED
from bridge.functions.errors import NotTaken
from bridge.testing.agent.server import AgentSession
from tests.world import QUIET, in_memory, settings

Clock = trio.testing.MockClock
SECOND = bytes(range(1, 251)) * 32


def lines(call: Any) -> list[tuple[str, str, str]]:
    return [(line.role, line.words, line.heard) for line in call.story.lines]


def injected(session: Any) -> list[str]:
    return [m["content"] for _, m in session.messages if m["type"] == "InjectUserMessage"]


async def talk(agent: AgentSession) -> None:
    """Keep the session; the test says what is said."""


async def test_written_words_reach_the_agent_and_stand_in_the_transcript_once(
    autojump_clock: Clock,
) -> None:
    async with in_memory(talk) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await trio.sleep(1.1)  # no whole number of ticks
            asked = trio.current_time()
            world.live_call.say("When do you open?")
            assert await session.wait_for_user_message() == "When do you open?"
            assert trio.current_time() - asked < 0.1, "at once, not with the next tick"
            await trio.sleep(1)
            said = lines(world.live_call)
            await phone.hang_up()
    assert said == [("caller", "When do you open?", "heard")]


async def test_the_same_words_twice_are_two_lines(autojump_clock: Clock) -> None:
    async with in_memory(talk) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            world.live_call.say("Yes.")
            await trio.sleep(1)
            world.live_call.say("Yes.")
            await trio.sleep(1)
            await session.user_said("Yes.")  # and this time with the voice
            await trio.sleep(1)
            said = lines(world.live_call)
            await phone.hang_up()
    assert said == [("caller", "Yes.", "heard")] * 3
    assert injected(session) == ["Yes.", "Yes."]


async def test_keys_stand_in_the_transcript_once_though_the_agent_repeats_their_sentence(
    autojump_clock: Clock,
) -> None:
    async with in_memory(talk) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await phone.press("5#")
            await trio.sleep(1)
            said = lines(world.live_call)
            await phone.hang_up()
    assert len(injected(session)) == 1
    assert said == [("keypad", "5", "heard")]


async def test_written_words_interrupt_the_agent_as_spoken_ones_do(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("A long story.", SECOND * 10)
        await agent.wait_for_user_message()
        await agent.say("Of course.", SECOND)

    # The story is all on the phone when it is interrupted, as a real agent's would be.
    async with in_memory(script, msgspec.structs.replace(QUIET, speed=20.0)) as world:
        async with world.call() as phone:
            await phone.wait_heard(2.0)
            world.live_call.say("Stop, please.")
            await phone.wait_heard(2.9)
            await phone.wait_quiet(0.5)
            heard, said = phone.heard_seconds, lines(world.live_call)
            barge_ins = world.live_call.story.barge_ins
            await phone.hang_up()
    assert 2.9 < heard < 3.5, "of the story two seconds, and all of the answer"
    assert barge_ins == 1
    assert said == [
        ("agent", "A long story.", "cut"),
        ("caller", "Stop, please.", "heard"),
        ("agent", "Of course.", "heard"),
    ]


async def test_a_greeting_that_may_not_be_interrupted_is_not(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("This call may be recorded.", SECOND * 3)

    using = settings(call={"interruptible_greeting": False})
    async with in_memory(script, using=using) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.wait_heard(1.0)
            world.live_call.say("Hello?")
            await phone.wait_heard(2.9)
            barge_ins = world.live_call.story.barge_in_seconds
            await phone.hang_up()
    assert injected(session) == ["Hello?"]
    assert barge_ins == []


async def test_words_written_before_there_is_an_agent_wait_for_it(autojump_clock: Clock) -> None:
    slow = msgspec.structs.replace(QUIET, welcome_delay=1.0)
    async with in_memory(talk, slow) as world:
        async with world.call() as phone:
            await trio.testing.wait_all_tasks_blocked()  # until the phone has said `start`
            for n in range(MAX_TYPED):
                world.live_call.say(f"Word {n}.")
            with pytest.raises(NotTaken, match="too many"):
                world.live_call.say("One more.")
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await trio.sleep(1)
            await phone.hang_up()
    assert injected(session) == [f"Word {n}." for n in range(MAX_TYPED)]


async def test_a_call_that_is_ending_takes_nothing(autojump_clock: Clock) -> None:
    async with in_memory(talk) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            call = world.live_call
            await phone.hang_up()
        await world.quiet()
        with pytest.raises(NotTaken, match="the call is ending"):
            call.say("Wait!")
    assert lines(call) == []
