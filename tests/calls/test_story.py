"""A call from its first ring to its last byte, on the virtual clock, through the whole stack."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from bridge.simulator.agent import AgentSession, Behaviour
from tests.world import QUIET, in_memory, settings

Clock = trio.testing.MockClock


async def test_both_sides_hear_each_other_byte_for_byte(autojump_clock: Clock) -> None:
    words = bytes(range(256)) * 63 + b"odd"

    async def script(agent: AgentSession) -> None:
        await agent.say("words", words)

    async with in_memory(script) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(bytes(range(1, 255)) * 160)
            await phone.wait_played()
            await phone.hang_up()
        await world.agent.wait_until_idle()
        assert phone.received_audio == words
        assert bytes(session.received_audio) == phone.sent_audio
        assert session.faults == []
        assert session.authorization == "Token dg-test-key-0123456789"
