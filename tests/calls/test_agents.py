"""Which agent a call has, and with which tables, from its first message to its last."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bridge.functions import Functions
from bridge.testing.agent.server import AgentSession
from tests.world import QUIET, in_memory, settings

Clock = trio.testing.MockClock

NUMBER = "+33123456789"
STORED = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


@pytest.mark.parametrize("prewarm", [False, True])
async def test_a_call_has_the_tables_of_its_agent(autojump_clock: Clock, prewarm: bool) -> None:
    common: dict[str, Any] = {
        "deepgram": {"prewarm": prewarm, "settings": {"mip_opt_out": True, "tags": ["all"]}},
        "functions": {"transfer_to": {"desk": "+15551112222"}},
    }
    accueil = {
        "numbers": [NUMBER, "sip:accueil@example.com"],
        "deepgram": {"settings": {"tags": ["accueil"]}},
        "functions": {"end_call": False, "transfer_to": {"bureau": "+33111111111"}},
    }
    using = settings(**common, agents={"accueil": accueil})
    async with in_memory(using=using) as world:
        bridge = world.app.extensions["bridge"]
        for called, tags, names in (
            ("+15550100002", ["all"], {"end_call", "transfer_call"}),
            (NUMBER, ["accueil"], {"transfer_call"}),
            ("sip:accueil@EXAMPLE.com;transport=tls", ["accueil"], {"transfer_call"}),
        ):
            async with world.call(to_number=called) as phone:
                session = await world.agent.wait_for_session(len(world.agent.sessions) + 1)
                await session.applied.wait()
                (call,) = bridge.calls
                await phone.hang_up()
            await world.quiet()
            assert session.settings is not None
            assert session.settings["mip_opt_out"] is True
            assert session.settings["tags"] == [*tags, phone.call_sid]
            functions = session.settings["agent"]["think"]["functions"]
            assert {one["name"] for one in functions} == names
            assert call.report.agent == ("accueil" if tags == ["accueil"] else "")


async def test_a_stored_configuration_calls_the_functions_it_describes(
    autojump_clock: Clock,
) -> None:
    """bridge sends its id alone, again for a new session, and answers functions by their names."""

    async def opening_hours() -> dict[str, str]:
        return {"from": "9"}

    answers: list[Any] = []

    async def script(agent: AgentSession) -> None:
        if agent.number == 1:
            (call,) = await agent.call_functions([{"name": "opening_hours", "arguments": "{}"}])
            answers.append(json.loads(call.response or ""))
            await agent.reset()

    using = settings(deepgram={"max_reconnects": 1})
    using = msgspec.structs.replace(using, agent={"id": STORED})
    async with in_memory(script, QUIET, using) as world:
        world.app.extensions["bridge"].functions.loaded[""] = Functions.of(opening_hours)
        async with world.call() as phone:
            await (await world.agent.wait_for_session(2)).applied.wait()
            await phone.hang_up()
        await world.quiet()
        assert [one.settings["agent"] for one in world.agent.sessions if one.settings] == [
            STORED,
            STORED,
        ]
    assert answers == [{"from": "9"}]
