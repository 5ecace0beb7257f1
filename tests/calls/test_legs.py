"""Two media streams of one call: the later one continues what the first began."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.twiml import Hangup, Pause, Redirect, Say
from tests.world import QUIET, World, in_memory, injected, settings

Clock = trio.testing.MockClock
SECOND = bytes((n * n // 160 + n) % 251 for n in range(8_000))
SID = "CA" + "0123456789abcdef" * 2
PLEASE_GO_ON = "I'm sorry, the line was interrupted. Please go on."


async def talks(agent: AgentSession) -> None:
    if agent.number > 1:
        await agent.wait_for_message("InjectAgentMessage")
        await trio.sleep(2)
    await agent.say(f"This is session {agent.number}.", SECOND)
    await agent.user_said(f"Words to session {agent.number}.")


def outcomes(record: Any) -> list[str]:
    return [leg.outcome for leg in record.legs]


def check_conversation(world: World, record: Any) -> None:
    """Nothing of the first leg is lost, and the second session had it to go on with."""
    assert " ".join(line.words for line in record.transcript) == (
        f"This is session 1. Words to session 1. {PLEASE_GO_ON} "
        "This is session 2. Words to session 2."
    )
    assert len(record.request_ids) == len(record.legs) == 2
    first, second = record.legs
    assert second.at >= first.at + first.seconds - 0.001
    assert record.seconds == pytest.approx(second.at + second.seconds, abs=0.01)
    session = world.agent.sessions[1]
    assert session.settings is not None
    assert "greeting" not in session.settings["agent"]
    assert [item["content"] for item in session.context_messages] == [
        *("This is session 1.", "Words to session 1."),
    ]
    assert injected(session) == [PLEASE_GO_ON]


async def test_one_after_the_other(autojump_clock: Clock) -> None:
    """Its TwiML is replaced, to press keys for example, and leads back to the webhook."""
    using = settings(costs={"agent_per_minute": 60.0}, agent={"greeting": "Hello!"})
    async with in_memory(talks, QUIET, using) as world:
        async with world.call() as phone:
            await trio.sleep(5)
            back = f"<Redirect>{world.base_url}/incoming-call</Redirect>"
            await phone.update(f"<Response><Pause length='7'/>{back}</Response>", world.base_url)
            await world.agent.wait_for_session(2)
            await trio.sleep(10)
            await phone.hang_up()
        await world.quiet()
    record = world.record_of(phone)
    check_conversation(world, record)
    assert outcomes(record) == ["caller_hung_up", "caller_hung_up"]
    # Twelve seconds apart; the agent costs what both sessions lasted.
    assert record.legs[1].at == pytest.approx(12, abs=0.2)
    assert record.cost == pytest.approx(record.agent_seconds)
    assert record.agent_seconds == pytest.approx(sum(leg.seconds for leg in record.legs), abs=0.5)


@pytest.mark.parametrize("first_hangs_up", [True, False])
async def test_the_second_takes_over_from_one_that_is_on(
    autojump_clock: Clock, first_hangs_up: bool
) -> None:
    """One agent at a time; the first one's end is no end of the call: no apology, no hang-up."""
    async with in_memory(talks, QUIET) as world:
        async with world.call(call_sid=SID) as one:
            await trio.sleep(5)
            async with world.call(call_sid=SID) as two:
                session = await world.agent.wait_for_session(2)
                await session.applied.wait()
                assert world.agent.active == 1
                await one.wait_stream_closed()
                await trio.sleep(12)
                waits = [verb for verb in one.verbs[1:] if not isinstance(verb, Redirect)]
                assert waits == [Pause(5.0)] * len(waits)
                assert one.ending is None
                assert session.closed is None
                if first_hangs_up:
                    await one.hang_up()
                    await trio.sleep(1)
                assert session.closed is None
                await two.hang_up()
            await one.wait_ended()
        await world.quiet()
    record = world.record_of(two)
    check_conversation(world, record)
    assert outcomes(record) == ["handed_over", "caller_hung_up"]
    assert [type(verb) for verb in one.verbs if isinstance(verb, Say | Hangup)] == (
        [] if first_hangs_up else [Hangup]
    )
    handed = [line for line in world.logs if line["event"] == "call handed over"]
    assert [line["reason"] for line in handed] == ["another media stream of the call has begun"]
    assert world.ending["outcome"] == "caller_hung_up"


async def test_an_agent_that_does_not_answer_close_holds_up_the_second_for_a_teardown_at_most(
    autojump_clock: Clock,
) -> None:
    stubborn = msgspec.structs.replace(QUIET, answers_close=False)
    async with in_memory(talks, stubborn) as world:
        async with world.call(call_sid=SID, strict=False):
            await trio.sleep(3)
            async with world.call(call_sid=SID, strict=False) as two:
                await world.agent.wait_for_session(2)
                assert two.elapsed <= 2.1
                await two.hang_up()


async def test_three_at_once_leave_one(autojump_clock: Clock) -> None:
    async with in_memory(talks, QUIET) as world:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                async with world.call(call_sid=SID):
                    await trio.sleep(20)
                    assert world.agent.active == 1

            for _ in range(3):
                nursery.start_soon(call)
        await world.quiet()
        bridge = world.app.extensions["bridge"]
        assert len(bridge.entrance.slots) == 0
        record = bridge.recorder.known(SID).record
    assert sorted(outcomes(record)) == ["caller_hung_up", "handed_over", "handed_over"]


async def test_the_longest_call_counts_all_legs(autojump_clock: Clock) -> None:
    using = settings(call={"max_minutes": 2})
    async with in_memory(talks, QUIET, using) as world:
        async with world.call() as phone:
            await trio.sleep(65)
            back = f"<Redirect>{world.base_url}/incoming-call</Redirect>"
            await phone.update(f"<Response>{back}</Response>", world.base_url)
            await phone.wait_ended()
        await world.quiet()
    assert world.record_of(phone).outcome == "max_duration"
    assert phone.elapsed == pytest.approx(120, abs=12)
