"""Five minutes on the line with everything in them, checked line by line.

The whole stack on the virtual clock: a greeting, questions, a function, an interruption, digits, a
lost agent, a silence, a function that fails, and a goodbye that is heard to its end.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from bridge.caller import CallInfo
from bridge.config.words import Words
from bridge.functions import Functions
from bridge.testing.agent.server import AgentSession
from bridge.testing.agent.voice import sentences
from tests.world import QUIET, in_memory, settings

Clock = trio.testing.MockClock
SECOND = bytes(range(1, 251)) * 32
DISHES = ("fish", "lamb", "pasta", "cheese", "cake")


async def opening_hours(day: str, call: CallInfo) -> str:
    """When the restaurant is open."""
    await trio.sleep(1.2)
    return f"{day}: five to eleven"


async def book_table(guests: int) -> str:
    """Book a table."""
    raise RuntimeError("the book is locked")


async def waiter(agent: AgentSession) -> None:
    """The agent's part. The second session knows the first one's conversation."""
    if agent.number == 1:
        await agent.say("Welcome to the Trattoria.", SECOND * 2)
        await trio.sleep(10)
        await agent.user_said("When are you open on Monday?")
        await agent.call_functions([{"name": "opening_hours", "arguments": '{"day": "Monday"}'}])
        await agent.say("On Monday we are open from five to eleven.", SECOND * 3)
        await trio.sleep(20)
        await agent.user_said("Tell me about the menu.")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "We have a very long menu.", SECOND * 8)
            await trio.sleep(2.5)
            await agent.user_started_speaking()
        await trio.sleep(1)
        await agent.user_said("No, just the soup.")
        await agent.say("Tomato soup.", SECOND)
        assert await agent.wait_for_user_message() == "I pressed 4711 on my phone's keypad."
        await agent.say("Thank you, member 4711.", SECOND * 2)
        for dish in DISHES:
            await trio.sleep(27)
            await agent.user_said(f"And the {dish}?")
            await agent.say(f"The {dish} is very good today.", SECOND * 3)
        await trio.sleep(20)
        await agent.reset()
        return
    await agent.wait_for_message("InjectAgentMessage")  # the line was interrupted
    await trio.sleep(5)
    await agent.user_said("Are you back?")
    await agent.say("Yes, I am.", SECOND)
    # Both sides are silent for half a minute: bridge has the agent ask, and the caller is there.
    await agent.wait_for_message("InjectAgentMessage")
    await trio.sleep(4)
    await agent.user_said("Yes. A table for four, please.")
    await agent.call_functions([{"name": "book_table", "arguments": '{"guests": 4}'}])
    await agent.say("I'm sorry, I cannot book right now.", SECOND * 2)
    await trio.sleep(45)
    await agent.user_said("Never mind, bye.")
    await agent.call_functions([{"name": "end_call", "arguments": "{}"}])
    await agent.say("Goodbye!", SECOND)


async def test_five_minutes_with_everything_in_them(autojump_clock: Clock) -> None:
    using = settings(call={"idle_seconds": 30, "max_minutes": 10}, deepgram={"max_reconnects": 2})
    async with in_memory(waiter, QUIET, using) as world:
        bridge = world.app.extensions["bridge"]
        bridge.functions.loaded[""] = Functions.of(opening_hours, book_table)
        async with world.call() as phone:
            first = await world.agent.wait_for_session()
            (call,) = bridge.calls
            await phone.wait_event("clear", timeout=120)
            await trio.sleep(10)
            await phone.press("4711#")
            await phone.wait_ended(timeout=400)
        await world.quiet()

    said = [(line.role, line.words, line.heard) for line in call.story.lines]
    assert said == [
        ("agent", "Welcome to the Trattoria.", "heard"),
        ("caller", "When are you open on Monday?", "heard"),
        ("agent", "On Monday we are open from five to eleven.", "heard"),
        ("caller", "Tell me about the menu.", "heard"),
        ("agent", "We have a very long menu.", "cut"),
        ("caller", "No, just the soup.", "heard"),
        ("agent", "Tomato soup.", "heard"),
        ("keypad", "4711", "heard"),
        ("agent", "Thank you, member 4711.", "heard"),
        *(
            line
            for dish in DISHES
            for line in (
                ("caller", f"And the {dish}?", "heard"),
                ("agent", f"The {dish} is very good today.", "heard"),
            )
        ),
        *(("agent", sentence, "heard") for sentence in sentences(Words().cut_off)),
        ("caller", "Are you back?", "heard"),
        ("agent", "Yes, I am.", "heard"),
        ("agent", Words().still_there, "heard"),
        ("caller", "Yes. A table for four, please.", "heard"),
        ("agent", "I'm sorry, I cannot book right now.", "heard"),
        ("agent", Words().still_there, "heard"),
        ("caller", "Never mind, bye.", "heard"),
        ("agent", "Goodbye!", "heard"),
    ]
    cut = call.story.lines[4]
    assert cut.heard_seconds == pytest.approx(2.5, abs=0.1)

    second = world.agent.sessions[1]
    assert second.settings is not None
    context = second.settings["agent"]["context"]["messages"]
    spoken = [item["content"] for item in context if "content" in item]
    assert spoken[0] == "Welcome to the Trattoria."
    assert spoken[-1] == "The cake is very good today."
    called = [item["function_calls"][0] for item in context if "function_calls" in item]
    assert [(one["name"], one["response"]) for one in called] == [
        ("opening_hours", '"Monday: five to eleven"')
    ]
    assert "greeting" not in second.settings["agent"]
    failed = [call for call in second.calls.all.values() if call.name == "book_table"]
    assert [call.response for call in failed] == ['{"error":"the function failed"}']

    turns = call.story.turns
    took = [
        turn.first_audio_sent_at - turn.confirmed_at
        for turn in turns
        if turn.confirmed_at is not None and turn.first_audio_sent_at is not None
    ]
    assert took[0] == pytest.approx(1.2, abs=0.1), "the function took its time"
    assert all(0 <= seconds < 1.5 for seconds in took)
    assert all(
        (turn.heard_at or 0) > (turn.first_audio_sent_at or 0) for turn in turns if turn.heard_at
    )

    assert world.ending["outcome"] == "agent_ended"
    assert world.ending["reason"] == "the agent called end_call"
    assert 290 <= world.ending["seconds"] <= 330
    assert call.report.reconnects == 1
    assert first.faults == second.faults == []
    assert phone.faults == []
    assert not any("exc_info" in line and line["event"] == "call ended" for line in world.logs)
