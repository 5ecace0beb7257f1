"""An agent whose process hangs (finding B4): its kernel keeps TCP up, and nothing is answered.

A ping finds it out within ten seconds, also while nobody expects it to speak.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import trio
import trio.testing
from wsproto.connection import ConnectionType

from bridge.config.words import Words
from bridge.deepgram.session import LOST_AFTER, AgentSession
from bridge.testing.agent.server import AgentSession as SimulatedSession
from bridge.testing.agent.server import Behaviour
from bridge.transport.websocket import WebSocket
from tests.world import QUIET, in_memory, settings

Clock = trio.testing.MockClock

NOTICED_WITHIN = 10.0
RECONNECTS = settings(deepgram={"max_reconnects": 1}, call={"idle_seconds": 300})


def freezes_first(freezes_after: float) -> Callable[[int], Behaviour]:
    """The behaviour of each session: the first freezes, so long after it has begun."""

    def behaviour(number: int) -> Behaviour:
        return msgspec.structs.replace(QUIET, freezes_after=freezes_after if number == 1 else 0.0)

    return behaviour


@pytest.mark.parametrize("freezes_after", [0.01, 1.0, 7.3])
async def test_a_frozen_agent_is_replaced_within_ten_seconds(
    autojump_clock: Clock, freezes_after: float
) -> None:
    """And the new session knows what was said, and speaks first."""

    async def script(agent: SimulatedSession) -> None:
        if agent.number == 1 and freezes_after > 1:
            await agent.user_said("My name is Ada.")
            await agent.say("Hello, Ada.", bytes(4000))

    async with in_memory(script, freezes_first(freezes_after), RECONNECTS) as world:
        async with world.call() as phone:
            first = await world.agent.wait_for_session(1)
            await first.applied.wait()
            frozen_at = trio.current_time() + freezes_after
            second = await world.agent.wait_for_session(2)
            assert trio.current_time() - frozen_at <= NOTICED_WITHIN
            await second.wait_until(lambda: bool(second.mouth.spoken))
            if freezes_after > 1:
                assert second.mouth.spoken[0].text == Words().cut_off
                assert "Ada" in str(second.settings)
            await phone.hang_up()
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    (line,) = [line for line in world.logs if line["event"] == "agent lost, reconnecting"]
    assert "no answer to a ping" in line["reason"]


async def test_agents_that_freeze_again_and_again_end_the_call(autojump_clock: Clock) -> None:
    """A frozen session counts as a lost one, and the caller hears the apology in the end."""
    frozen = msgspec.structs.replace(QUIET, freezes_after=0.01)
    async with in_memory(behaviour=frozen, using=RECONNECTS) as world:
        async with world.call() as phone:
            with trio.fail_after(3 * NOTICED_WITHIN):
                await phone.wait_ended()
        await world.quiet()
    assert world.agent.opened == 2
    assert world.ending["outcome"] == "agent_failed"


async def test_an_agent_that_is_only_silent_is_kept(autojump_clock: Clock) -> None:
    """It answers pings, and one at a time is all that silence costs."""
    async with in_memory(using=RECONNECTS) as world:
        async with world.call() as phone:
            await trio.sleep(200)
            assert world.agent.opened == 1
            await phone.hang_up()
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"


async def test_an_agent_that_speaks_is_not_pinged(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its audio shows that it is alive: nothing is added to a frame of it."""
    pings = 0

    async def counted(websocket: object) -> None:
        nonlocal pings
        pings += 1

    async def script(agent: SimulatedSession) -> None:
        while True:
            await agent.say("Music.", bytes(8000))

    monkeypatch.setattr("bridge.transport.websocket.WebSocket.ping", counted)
    async with in_memory(script, using=RECONNECTS) as world:
        async with world.call() as phone:
            await trio.sleep(5 * LOST_AFTER)
            assert world.agent.opened == 1
            await phone.hang_up()
        await world.quiet()
    assert pings <= 2, "at the beginning, perhaps"


async def test_a_stop_of_our_own_process_is_not_the_agents(autojump_clock: Clock) -> None:
    """The clock has gone on, and what the agent sent meanwhile has not been read yet."""
    ours, theirs = trio.testing.memory_stream_pair()
    websocket = WebSocket(ours, ConnectionType.CLIENT, max_message=1000, write_timeout=5)
    session = AgentSession(websocket)
    await session.watch(1.0)
    autojump_clock.jump(10 * LOST_AFTER)
    await session.watch(1.0)
    assert not session.is_over
    for _ in range(int(LOST_AFTER)):
        await session.watch(1.0)
    assert session.is_over
    await theirs.aclose()
