"""A conversation people would stay on the line for: the whole stack on the virtual clock."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bridge.caller import CallInfo
from bridge.config.settings import Settings
from bridge.config.words import Words
from bridge.functions import Functions
from bridge.testing.agent.server import AgentSession, Behaviour, silent
from tests.world import QUIET, World, injected, settings
from tests.world import in_memory as in_memory_with

Clock = trio.testing.MockClock
SECOND = bytes(range(1, 251)) * 32


# As shipped: several tries, and a lost agent is called again.
AS_SHIPPED = {"connect_budget": 8.0, "max_reconnects": 2}


def in_memory(
    script: Any = silent, behaviour: Any = QUIET, using: Settings | None = None
) -> AbstractAsyncContextManager[World]:
    using = using or settings()
    shipped = msgspec.structs.replace(using.deepgram, **AS_SHIPPED)
    return in_memory_with(script, behaviour, msgspec.structs.replace(using, deepgram=shipped))


def quiet(**knobs: Any) -> Behaviour:
    return msgspec.structs.replace(QUIET, **knobs)


def lines(call: Any) -> list[tuple[str, str, str]]:
    return [(line.role, line.words, line.heard) for line in call.story.lines]


async def talk(agent: AgentSession) -> None:
    """Keep the session; the test says what is said."""


# ---- playback and transcript --------------------------------------------------------------------


async def test_the_transcript_knows_what_was_heard(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("One.", SECOND)
        await agent.user_said("go on")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "Two.", SECOND * 2)
            await trio.sleep(1.1)
            nursery.start_soon(agent.say, "Three.", SECOND)
            await trio.sleep(0.9)
            await agent.user_started_speaking()
        await agent.user_said("stop")

    async with in_memory(script, quiet(speed=2.0, stale_chunks=0)) as world:
        async with world.call() as phone:
            await world.agent.wait_for_session()
            await trio.sleep(1.5)
            call = world.live_call
            await phone.wait_event("clear")
            await phone.wait_quiet(1)
            said = lines(call)
            await phone.hang_up()
    assert ("agent", "One.", "heard") in said
    assert ("caller", "go on", "heard") in said
    cut = [line for line in call.story.lines if line.heard == "cut"]
    assert [line.words for line in cut] == ["Two."]
    assert 0 < (cut[0].heard_seconds or 0) < 2.0


async def test_marks_of_a_cleared_utterance_do_not_count_as_heard(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("A long story.", SECOND * 4)
        await agent.user_started_speaking()

    async with in_memory(script, quiet(speed=0.0)) as world:
        async with world.call() as phone:
            await phone.wait_event("clear")
            await phone.wait_quiet(1)
            assert phone.events[-1].kind in ("mark_echoed", "clear")
            (line,) = world.live_call.story.lines
            assert line.heard in ("cut", "unheard")
            assert not world.live_call.downlink.playback.may_be_playing
            await phone.hang_up()


async def test_a_protected_greeting_is_heard_to_its_end(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "Welcome.", SECOND * 2)
            await trio.sleep(0.5)
            await agent.send({"type": "UserStartedSpeaking"})
        await trio.sleep(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "More.", SECOND * 2)
            await trio.sleep(0.5)
            await agent.send({"type": "UserStartedSpeaking"})

    using = settings(call={"interruptible_greeting": False})
    async with in_memory(script, using=using) as world:
        async with world.call() as phone:
            clear = await phone.wait_event("clear")
            assert clear.at > 3
            await phone.hang_up()
    assert phone.heard_seconds > 2.0


# ---- the agent fails ----------------------------------------------------------------------------


async def test_a_busy_agent_is_tried_again(autojump_clock: Clock) -> None:
    async with in_memory(behaviour=quiet(reject_status=429, reject_times=2)) as world:
        async with world.call() as phone:
            await world.agent.wait_for_session()
            await phone.hang_up()
        await world.quiet()
    assert world.agent.rejected == [429, 429]
    assert world.ending["outcome"] == "caller_hung_up"


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_permanent_refusal_is_not_retried(autojump_clock: Clock, status: int) -> None:
    async with in_memory(behaviour=quiet(reject_status=status)) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert world.agent.rejected == [status]
    assert world.ending["outcome"] == "agent_unreachable"


async def test_the_budget_bounds_all_tries(autojump_clock: Clock) -> None:
    async with in_memory(behaviour=quiet(reject_status=500)) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert len(world.agent.rejected) > 3
    assert world.ending["seconds"] <= 8.0
    assert any(type(verb).__name__ == "Say" for verb in phone.verbs)


async def test_a_lost_session_goes_on_with_the_conversation_so_far(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        if agent.number == 1:
            await agent.user_said("I want a table for two.")
            await agent.say("At what time?", SECOND)
            await agent.reset()

    using = settings(agent={"greeting": "Hello."})
    async with in_memory(script, quiet(greeting=None), using=using) as world:
        async with world.call() as phone:
            second = await world.agent.wait_for_session(2)
            await second.applied.wait()
            await phone.say(SECOND)
            await phone.hang_up()
        await world.quiet()
    assert second.settings is not None
    agent = second.settings["agent"]
    assert "greeting" not in agent
    spoken = [(item["role"], item["content"]) for item in agent["context"]["messages"]]
    assert ("user", "I want a table for two.") in spoken
    assert ("assistant", "At what time?") in spoken
    assert SECOND in bytes(second.received_audio)
    assert world.ending["outcome"] == "caller_hung_up"
    assert second.faults == []


async def test_the_callers_speech_meanwhile_is_kept(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        if agent.number == 1:
            await agent.wait_until(lambda: agent.received_bytes > 8000)
            await agent.reset()

    def behaviour(number: int) -> Behaviour:
        return quiet() if number == 1 else quiet(settings_applied_delay=1.0)

    async with in_memory(script, behaviour) as world:
        async with world.call() as phone:
            await phone.say(SECOND * 4)
            second = await world.agent.wait_for_session(2)
            await phone.hang_up()
        await world.quiet()
    got = bytes(world.agent.sessions[0].received_audio) + bytes(second.received_audio)
    assert len(got) >= len(phone.sent_audio) - 480
    assert world.ending["dropped_bytes"] == 0


async def test_reconnections_are_counted_and_end(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.reset()

    async with in_memory(script) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert world.agent.opened == 3
    assert world.ending["outcome"] == "agent_failed"


async def test_an_error_that_would_recur_is_the_end(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.error("INVALID_SETTINGS", "no such voice")

    async with in_memory(script) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert world.agent.opened == 1
    assert world.ending["reason"] == "INVALID_SETTINGS: no such voice"


# ---- the built-in functions ---------------------------------------------------------------------


async def test_end_call_waits_for_the_goodbye_to_be_heard(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        (call,) = await agent.call_functions([{"name": "end_call", "arguments": "{}"}])
        answers.append(call.response or "")
        await agent.say("Goodbye!", SECOND * 2)

    answers: list[str] = []
    async with in_memory(script, quiet(speed=0.0)) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert "goodbye" in answers[0]
    assert phone.heard_seconds == pytest.approx(2.0, abs=0.01)
    assert world.ending["outcome"] == "agent_ended"
    (entry,) = [
        f
        for f in world.agent.sessions[0].settings["agent"]["think"]["functions"]  # type: ignore[index]
        if f["name"] == "end_call"
    ]
    assert entry["defer_until_eot"] is True


async def test_end_call_after_the_goodbye_was_said_already(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("Goodbye!", SECOND * 2)
        await agent.call_functions([{"name": "end_call", "arguments": "{}"}])

    async with in_memory(script, quiet(speed=0.0)) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert phone.heard_seconds == pytest.approx(2.0, abs=0.01)
    assert 5.0 <= world.ending["seconds"] < 8.0


async def test_a_caller_who_cuts_into_the_goodbye_stays(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.call_functions([{"name": "end_call", "arguments": "{}"}])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "Goodbye!", SECOND * 3)
            await trio.sleep(1)
            await agent.user_started_speaking()
        await agent.user_said("Wait, one more thing.")
        await agent.say("Of course.", SECOND)

    async with in_memory(script) as world:
        async with world.call() as phone:
            await phone.wait_heard(2.0)
            await phone.wait_quiet(5)
            assert phone.ending is None
            await phone.hang_up()
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"


async def test_transfer_call_dials_when_the_line_before_it_was_heard(
    autojump_clock: Clock,
) -> None:
    async def script(agent: AgentSession) -> None:
        arguments = json.dumps({"destination": "reception"})
        await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
        await agent.say("I connect you.", SECOND)

    using = settings(functions={"transfer_to": {"reception": "+15551112222"}})
    async with in_memory(script, using=using) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert phone.heard_seconds == pytest.approx(1.0, abs=0.01)
    assert world.ending["outcome"] == "transferred"
    assert phone.ending == "dialled"
    assert "+15551112222" in str(phone.verbs[-2])


async def test_transfer_only_to_names_in_the_configuration(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        arguments = json.dumps({"destination": "+15550009999"})
        (call,) = await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
        answers.append(call.response or "")

    answers: list[str] = []
    using = settings(functions={"transfer_to": {"reception": "+15551112222"}})
    async with in_memory(script, using=using) as world:
        async with world.call() as phone:
            await world.agent.wait_for_session()
            await phone.wait_quiet(3)
            await phone.hang_up()
        await world.quiet()
    assert "error" in answers[0]
    assert world.ending["outcome"] == "caller_hung_up"


async def test_functions_know_the_call(autojump_clock: Clock) -> None:
    async def who(call: CallInfo) -> dict[str, str]:
        """Who is calling."""
        return {"caller": call.caller, "called": call.called, "sid": call.call_sid}

    async def script(agent: AgentSession) -> None:
        (call,) = await agent.call_functions([{"name": "who", "arguments": ""}])
        answers.append(json.loads(call.response or ""))

    answers: list[dict[str, str]] = []
    async with in_memory(script) as world:
        world.app.extensions["bridge"].functions.loaded[""] = Functions.of(who)
        async with world.call(from_number="+15551234567") as phone:
            await world.agent.wait_for_session()
            await phone.wait_quiet(1)
            await phone.hang_up()
    assert answers == [{"caller": "+15551234567", "called": "+15550100002", "sid": phone.call_sid}]


# ---- silence, stalls, the longest call ----------------------------------------------------------


async def test_both_sides_are_silent(autojump_clock: Clock) -> None:
    async with in_memory(talk, quiet()) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.wait_ended(timeout=120)
    assert injected(session) == [Words().still_there, Words().idle_goodbye]
    assert world.ending["outcome"] == "idle"
    assert 60 <= world.ending["seconds"] < 75


async def test_an_agent_that_heard_and_says_nothing_is_replaced(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        if agent.number == 1:
            await agent.user_said("What time is it?")

    async with in_memory(script, quiet()) as world:
        async with world.call() as phone:
            second = await world.agent.wait_for_session(2)
            await second.applied.wait()
            first = world.agent.sessions[0]
            await phone.hang_up()
    assert injected(first) == [Words().one_moment] * 2
    assert second.settings is not None


async def test_the_longest_call_ends_with_a_warning(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        while True:
            await agent.user_said("Go on.")
            await agent.say("And then.", SECOND)
            await trio.sleep(10)

    using = settings(call={"max_minutes": 2})
    async with in_memory(script, using=using) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.wait_ended(timeout=200)
    assert injected(session) == [Words().last_minute, Words().time_is_up]
    assert world.ending["outcome"] == "max_duration"
    assert 120 <= world.ending["seconds"] <= 131


async def test_the_server_stops_and_the_agent_says_goodbye(autojump_clock: Clock) -> None:
    async with in_memory(talk) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await trio.sleep(2)
            world.app.extensions["bridge"].wind_down()
            await phone.wait_ended()
    assert injected(session) == [Words().stopping]
    assert phone.heard_seconds > 1
    assert world.ending["outcome"] == "server_shutdown"


# ---- keypad -------------------------------------------------------------------------------------


async def test_typed_digits_reach_the_agent_in_one_piece(autojump_clock: Clock) -> None:
    async with in_memory(talk) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await phone.press("4711#")
            await phone.press("23")
            await trio.sleep(4)
            call = world.live_call
            await phone.hang_up()
    typed = [m["content"] for _, m in session.messages if m["type"] == "InjectUserMessage"]
    assert len(typed) == 2
    assert "4711" in typed[0].replace(" ", "")
    assert "23" in typed[1].replace(" ", "")
    assert [line[:2] for line in lines(call) if line[0] == "keypad"] == [
        ("keypad", "4711"),
        ("keypad", "23"),
    ]


# ---- who answers --------------------------------------------------------------------------------


async def test_another_number_is_answered_by_another_agent(autojump_clock: Clock) -> None:
    using = settings(
        agents={"sales": {"numbers": ["+15557654321"], "greeting": "Sales, hello {caller}!"}}
    )
    async with in_memory(talk, using=using) as world:
        async with world.call(to_number="+15557654321", from_number="+15550001111") as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await phone.hang_up()
    assert session.settings is not None
    assert session.settings["agent"]["greeting"] == "Sales, hello +15550001111!"
    assert session.settings["agent"]["speak"] == using.agent["speak"]


# ---- timings ------------------------------------------------------------------------------------


async def test_every_turn_is_timed(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.user_said("Hello?")
        await trio.sleep(0.8)
        await agent.latency_report(ttt_text_latency=0.5)
        await agent.say("Hi.", SECOND)

    async with in_memory(script, quiet(speed=4.0)) as world:
        async with world.call() as phone:
            await phone.wait_heard(1.0)
            await phone.wait_quiet(0.5)
            turn = world.live_call.story.turns[-1]
            await phone.hang_up()
    assert turn.first_audio_sent_at - turn.confirmed_at == pytest.approx(0.8, abs=0.05)
    # The mark that tells of it is read at a tick.
    assert 1.0 <= turn.heard_at - turn.first_audio_sent_at <= 1.0 + 0.06 + 0.05


async def test_how_long_audio_is_on_its_way_is_measured(autojump_clock: Clock) -> None:
    """On the virtual clock nothing takes time but the wait for a frame, and for the tick."""

    async def script(agent: AgentSession) -> None:
        await agent.say("Hello.", SECOND)

    async with in_memory(script, quiet(speed=1.0)) as world:
        async with world.call() as phone:
            await phone.say(SECOND)
            await phone.wait_heard(1.0)
            await phone.hang_up()
        exposed = world.app.extensions["bridge"].metrics.expose(None)[0].decode()
    values = dict(line.rsplit(" ", 1) for line in exposed.splitlines() if line[0] != "#")
    for direction, longest in (("uplink", 0.07), ("downlink", 0.062)):
        name = f"bridge_{direction}_delay_seconds"
        count = float(values[f"{name}_count"])
        assert count >= 1
        assert 0 <= float(values[f"{name}_sum"]) <= count * longest
