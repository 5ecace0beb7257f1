"""No caller waits in silence: from the end of their words to the next sound at most
`stall_seconds` and one second, whatever happens to the agent's session meanwhile.

Each kind of loss is played on the virtual clock; `pytest -s` prints the longest silence of each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bridge.caller import CallInfo
from bridge.config.words import Words
from bridge.functions import Functions
from bridge.testing.agent.server import AgentSession, Behaviour
from bridge.testing.phone.phone import SimulatedPhone
from tests.world import QUIET, World, in_memory, settings

Clock = trio.testing.MockClock
Agent = Callable[[AgentSession], Awaitable[None]]

SECOND = bytes(range(1, 251)) * 32
QUESTION = "Are you open on Sunday?"
ANSWER = "Yes, from noon."
GREETING = "Hello!"
STALL = 10.0
BOUND = STALL + 1.0

SHIPPED = {"connect_budget": 8.0, "max_reconnects": 2}


def silences(world: World, phone: SimulatedPhone) -> list[float]:
    """How long the caller heard nothing, each time, from their own words or the last sound on."""
    began = trio.current_time() - phone.elapsed
    sounds = [
        (at - began, 0.0)
        for session in world.agent.sessions
        for at, message in session.sent
        if message["type"] == "UserStartedSpeaking" or message.get("role") == "user"
    ]
    sounds += [(event.at, event.size / 8000) for event in phone.events if event.kind == "media"]
    heard_until, gaps = 0.0, []
    for at, seconds in sorted(sounds):
        gaps.append(at - heard_until)
        heard_until = max(heard_until, at) + seconds
    return gaps


def spoken(session: AgentSession) -> list[str]:
    return [utterance.text for utterance in session.mouth.spoken]


def given(session: AgentSession) -> list[str]:
    return [m["content"] for _, m in session.messages if m["type"] == "InjectUserMessage"]


def context(session: AgentSession) -> list[dict[str, Any]]:
    assert session.settings is not None
    items: list[dict[str, Any]] = session.settings["agent"].get("context", {}).get("messages", [])
    return items


async def answer(agent: AgentSession) -> None:
    """Answer whatever is given as the caller's words."""
    while True:
        words = await agent.wait_for_user_message()
        await agent.say(f"{ANSWER} ({words})", SECOND)


# ---- what happens to the first session ----------------------------------------------------------


async def greet_and_hear(agent: AgentSession) -> None:
    await agent.say(GREETING, SECOND)
    await trio.sleep(3)
    await agent.user_said(QUESTION)


async def lost_before_the_greeting(agent: AgentSession) -> None:
    await agent.reset()


async def refused_to_listen(agent: AgentSession) -> None:
    await agent.error("FAILED_TO_START_LISTENING")


async def closed_before_the_greeting(agent: AgentSession) -> None:
    await agent.close(1000)


async def silent_before_the_greeting(agent: AgentSession) -> None:
    await trio.sleep_forever()


async def lost_while_an_answer_is_owed(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await trio.sleep(1)
    await agent.reset()


async def failed_while_an_answer_is_owed(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await agent.error("INTERNAL_SERVER_ERROR")


async def called_a_function_that_does_not_exist(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await agent.error("NON_EXISTENT_FUNCTION_CALLED")


async def closed_without_an_error(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await agent.close(1000)


async def closed_without_a_code(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await agent.close(1005)


async def stalled_and_dead(agent: AgentSession) -> None:
    """The socket is open, and nothing comes any more: not even the filler."""
    await greet_and_hear(agent)
    agent.failed = True
    await trio.sleep_forever()


async def stalled_in_the_callers_turn(agent: AgentSession) -> None:
    await agent.say(GREETING, SECOND)
    await trio.sleep(3)
    await agent.user_started_speaking()
    await trio.sleep_forever()


async def stalled_but_speaking_fillers(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await trio.sleep_forever()


async def text_without_audio(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await agent.say(ANSWER, b"")
    agent.failed = True
    await trio.sleep_forever()


async def lost_in_a_function(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.call_functions, [{"name": "book_table", "arguments": "{}"}])
        await trio.sleep(2)
        await agent.reset()


async def lost_in_the_middle_of_a_reply(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.say, ANSWER, SECOND * 5)
        await trio.sleep(1)
        await agent.reset()


async def lost_while_nobody_speaks(agent: AgentSession) -> None:
    await agent.say(GREETING, SECOND)
    await trio.sleep(5)
    await agent.reset()


async def refused_to_resume(agent: AgentSession) -> None:
    await greet_and_hear(agent)
    await agent.reset()


BEFORE_THE_GREETING = [
    lost_before_the_greeting,
    refused_to_listen,
    closed_before_the_greeting,
    silent_before_the_greeting,
]
QUESTION_UNANSWERED = [
    lost_while_an_answer_is_owed,
    failed_while_an_answer_is_owed,
    called_a_function_that_does_not_exist,
    closed_without_an_error,
    closed_without_a_code,
    stalled_and_dead,
    stalled_but_speaking_fillers,
    text_without_audio,
    lost_in_a_function,
    refused_to_resume,
]
INTERRUPTED = [
    stalled_in_the_callers_turn,
    lost_in_the_middle_of_a_reply,
    lost_while_nobody_speaks,
]


async def book_table(call: CallInfo) -> str:
    """Book a table."""
    await trio.sleep(8)
    return "table 7"


async def carried(
    first: Agent, later: Callable[[int], Behaviour], *, greets: bool = False
) -> tuple[World, SimulatedPhone, list[float]]:
    """Play a call whose first session meets `first`, until the last one has spoken: the world, the
    phone, and the silences."""

    async def script(agent: AgentSession) -> None:
        await (first(agent) if agent.number == 1 else answer(agent))

    def behaviour(number: int) -> Behaviour:
        return QUIET if number == 1 else later(number)

    using = settings(
        deepgram=SHIPPED,
        call={"stall_seconds": STALL, "idle_seconds": 300},
        agent={"greeting": GREETING} if greets else {},
    )
    async with in_memory(script, behaviour, using) as world:
        world.app.extensions["bridge"].functions.loaded[""] = Functions.of(book_table)
        async with world.call(strict=False) as phone:
            with trio.fail_after(60):
                last = await world.agent.wait_for_session(3 if first is refused_to_resume else 2)
                await last.wait_until(lambda: bool(last.mouth.spoken))
            await trio.sleep(3)
            gaps = silences(world, phone)
            await phone.hang_up()
        await world.quiet()
    return world, phone, gaps


def report(kind: Agent, gaps: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n    {kind.__name__}: longest silence {max(gaps):.2f} s", end="")


def greeting_again(number: int) -> Behaviour:
    return msgspec.structs.replace(QUIET, greeting=None)


@pytest.mark.parametrize("kind", BEFORE_THE_GREETING)
async def test_a_caller_who_has_not_been_greeted_is_greeted(
    autojump_clock: Clock, kind: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    world, _, gaps = await carried(kind, greeting_again, greets=True)
    report(kind, gaps, capsys)
    assert max(gaps) <= BOUND
    assert spoken(world.agent.sessions[1]) == [GREETING]
    assert world.ending["outcome"] == "caller_hung_up"


@pytest.mark.parametrize(
    ("kind", "answers_context"),
    [
        *((kind, False) for kind in QUESTION_UNANSWERED),
        *((kind, True) for kind in (lost_while_an_answer_is_owed, lost_in_a_function)),
    ],
)
async def test_a_question_is_answered_once(
    autojump_clock: Clock,
    kind: Agent,
    answers_context: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether or not a session answers a question at the end of its context by itself."""

    def later(number: int) -> Behaviour:
        refuses = kind is refused_to_resume and number == 2
        return msgspec.structs.replace(
            QUIET,
            greeting=None,
            answers_context=answers_context,
            settings_error="UNPARSABLE_CLIENT_MESSAGE" if refuses else "",
        )

    world, phone, gaps = await carried(kind, later)
    report(kind, gaps, capsys)
    assert max(gaps) <= BOUND
    last = world.agent.sessions[-1]
    assert spoken(last)[0] == f"{ANSWER} ({QUESTION})"
    assert sum(QUESTION in words for words in spoken(last)) == 1
    assert given(last) == [QUESTION]
    assert QUESTION not in str(context(last))
    at = next(at for at, message in last.messages if message["type"] == "InjectUserMessage")
    applied = next(at for at, message in last.sent if message["type"] == "SettingsApplied")
    assert at - applied <= 1.0
    assert world.ending["outcome"] == "caller_hung_up"
    assert phone.faults == []


@pytest.mark.parametrize("kind", INTERRUPTED)
async def test_a_caller_who_was_cut_off_is_asked_to_go_on(
    autojump_clock: Clock, kind: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    world, _, gaps = await carried(kind, greeting_again, greets=True)
    report(kind, gaps, capsys)
    assert max(gaps) <= BOUND
    second = world.agent.sessions[1]
    assert spoken(second) == [Words().cut_off]
    assert given(second) == []
    assert "greeting" not in second.settings["agent"]  # type: ignore[index]
    assert world.ending["outcome"] == "caller_hung_up"


async def test_what_a_function_was_doing_is_told(autojump_clock: Clock) -> None:
    world, _, _ = await carried(lost_in_a_function, greeting_again)
    (called,) = [item for item in context(world.agent.sessions[1]) if "function_calls" in item]
    (one,) = called["function_calls"]
    assert (one["name"], one["arguments"]) == ("book_table", "{}")
    assert "interrupted" in one["response"]


async def test_an_agent_that_is_lost_too_often_apologises(autojump_clock: Clock) -> None:
    """By Twilio's voice, when no session is left."""

    async def script(agent: AgentSession) -> None:
        await agent.close(1000)

    async with in_memory(script, QUIET, settings(deepgram=SHIPPED)) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    assert world.agent.opened == 3
    assert world.ending["outcome"] == "agent_failed"
    assert any(type(verb).__name__ == "Say" for verb in phone.verbs)
