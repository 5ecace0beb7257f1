"""A call in French beside English ones: bridge says no English word to the caller or the agent."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bridge.config.settings import Settings
from bridge.config.toml import parse
from bridge.config.words import Words
from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import Say
from tests.world import World, in_memory, settings

Clock = trio.testing.MockClock

NUMBER = "+33123456789"
ENGLISH = Words()
FRENCH = parse((files("bridge.config") / "languages" / "fr.toml").read_text("utf-8")).words
GREETING = "Bonjour ! Je vois {caller}."


def french(**tables: dict[str, Any]) -> Settings:
    """English settings, in which one agent speaks French."""
    words = tomllib.loads((files("bridge.config") / "languages" / "fr.toml").read_text("utf-8"))
    call = {"idle_seconds": 20, "stall_seconds": 5, "max_minutes": 10} | tables.pop("call", {})
    agent = {"numbers": [NUMBER], "greeting": GREETING, "call": call, **words}
    return settings(agents={"accueil": agent}, **tables)


class Heard:
    """Everything that bridge said in one world: to the agent's model and voice, and by Twilio."""

    def __init__(self, world: World, *phones: SimulatedPhone) -> None:
        self.given = [
            message.get("message") or message["content"]
            for session in world.agent.sessions
            for _, message in session.messages
            if message["type"] in ("InjectAgentMessage", "InjectUserMessage")
        ]
        self.said = [verb for phone in phones for verb in phone.verbs if isinstance(verb, Say)]

    def check(self, *expected: str) -> None:
        """Exactly these words were said, in French by a French voice; none of them is English."""
        assert [*self.given, *(say.text for say in self.said)] == list(expected)
        english = {text for text in msgspec.structs.asdict(ENGLISH).values() if text}
        assert not english & set(expected)
        assert {(say.language, say.voice) for say in self.said} <= {("fr-FR", "Polly.Lea-Neural")}


async def talk(agent: AgentSession) -> None:
    """Greet as the settings say, if they do, and answer pressed keys."""
    assert agent.settings is not None
    await agent.say(agent.settings["agent"].get("greeting", "Hello."))
    while True:
        await agent.wait_for_user_message()
        await agent.say("D'accord.", bytes(8000))


async def test_keys_silence_and_the_goodbye(autojump_clock: Clock) -> None:
    async with in_memory(talk, using=french()) as world:
        async with world.call(to_number=NUMBER, from_number="+266696687") as phone:
            session = await world.agent.wait_for_session()
            await phone.wait_quiet(1)
            await phone.press("12#")
            await phone.wait_ended(timeout=120)
        Heard(world, phone).check(FRENCH.pressed("12"), FRENCH.still_there, FRENCH.idle_goodbye)
        assert session.settings is not None
        assert session.settings["agent"]["greeting"] == "Bonjour ! Je vois un numéro inconnu."
    assert world.ending["outcome"] == "idle"


async def test_a_stalled_agent(autojump_clock: Clock) -> None:
    async def stall(agent: AgentSession) -> None:
        if agent.number == 1:
            await agent.user_said("Quelle heure est-il ?")
        else:
            await agent.say("Il est midi.")

    using = french(deepgram={"max_reconnects": 1})
    async with in_memory(stall, using=using) as world:
        async with world.call(to_number=NUMBER) as phone:
            await (await world.agent.wait_for_session(2)).applied.wait()
            await phone.wait_quiet(1)
            await phone.hang_up()
        heard = Heard(world, phone)
        assert heard.given[0] == FRENCH.one_moment
        assert set(heard.given) <= {FRENCH.one_moment, FRENCH.cut_off, "Quelle heure est-il ?"}


async def test_the_last_minute(autojump_clock: Clock) -> None:
    async def chat(agent: AgentSession) -> None:
        while True:
            await agent.user_said("Continuez.")
            await agent.say("Et puis.", bytes(8000))
            await trio.sleep(5)

    async with in_memory(chat, using=french(call={"max_minutes": 2})) as world:
        async with world.call(to_number=NUMBER) as phone:
            await phone.wait_ended(timeout=200)
        Heard(world, phone).check(FRENCH.last_minute, FRENCH.time_is_up)


async def test_the_server_stops(autojump_clock: Clock) -> None:
    async with in_memory(talk, using=french()) as world:
        async with world.call(to_number=NUMBER) as phone:
            await world.agent.wait_for_session()
            await phone.wait_quiet(1)
            world.app.extensions["bridge"].wind_down()
            await phone.wait_ended()
        Heard(world, phone).check(FRENCH.stopping)


async def test_the_apology(autojump_clock: Clock) -> None:
    async def fail(agent: AgentSession) -> None:
        await agent.error("INTERNAL_SERVER_ERROR")

    async with in_memory(fail, using=french()) as world:
        async with world.call(to_number=NUMBER) as phone:
            await phone.wait_ended()
        Heard(world, phone).check(FRENCH.apology)
        # The other agent's callers are still spoken to in English.
        async with world.call() as phone:
            await phone.wait_ended()
        (say,) = Heard(world, phone).said
        assert say == Say(ENGLISH.apology)


@pytest.mark.parametrize("after", ["agent", "hang_up"])
async def test_a_transfer_that_nobody_takes(autojump_clock: Clock, after: str) -> None:
    async def transfers(agent: AgentSession) -> None:
        if agent.number == 1:
            arguments = json.dumps({"destination": "accueil"})
            await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
            await agent.say("Je vous mets en relation.", bytes(8000))
        else:
            await agent.wait_for_message("InjectAgentMessage")

    functions = {"transfer_to": {"accueil": "+33111111111"}, "after_failed_transfer": after}
    async with in_memory(transfers, using=french(functions=functions)) as world:
        async with world.call(to_number=NUMBER, dials=["busy"]) as phone:
            if after == "agent":
                await (await world.agent.wait_for_session(2)).applied.wait()
                await phone.wait_quiet(1)
                await phone.hang_up()
            else:
                await phone.wait_ended()
        heard = Heard(world, phone)
        heard.check(FRENCH.transfer_failed)
        assert len(heard.said) == (after == "hang_up")


async def test_busy(autojump_clock: Clock) -> None:
    async with in_memory(talk, using=french(server={"max_calls": 1})) as world:
        async with world.call() as phone:
            await phone.wait_quiet(1)
            async with world.call(to_number=NUMBER) as one_more:
                await one_more.wait_ended()
            Heard(world, one_more).check(FRENCH.busy)
            await phone.hang_up()
