"""What a phone and an agent may say that neither should: each piece gets a cheap answer, a call
goes on as long as there is anything to go on with, and nothing of it reaches a log line raw.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection

from bridge.deepgram import session as agent_session
from bridge.functions import Functions
from bridge.testing.agent.server import AgentSession
from bridge.twilio.media_stream import MAX_CONSECUTIVE_BAD_MESSAGES
from tests.endtoend.scene import until
from tests.world import World, in_memory, open_media_socket, settings

Clock = trio.testing.MockClock

CALL, STREAM = "CA" + "1" * 32, "MZ" + "2" * 32
NASTY = "\x00\x1b[31m\r\nlevel=error forged=1 <Say>&\"'; DROP TABLE calls;-- \u202e"


def say(event: str, **more: Any) -> str:
    return json.dumps({"event": event, "streamSid": STREAM, **more})


def start(**more: Any) -> str:
    details = {
        "accountSid": "AC" + "3" * 32,
        "streamSid": STREAM,
        "callSid": CALL,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"From": "+15551234567", "To": "+15557654321"},
    }
    return say("start", start={**details, **more})


def media(payload: Any = "f39/", sid: str = STREAM) -> str:
    return json.dumps({"event": "media", "streamSid": sid, "media": {"payload": payload}})


GOOD, STOP = media(), say("stop")

# Not one is a message; to each the answer is to count it and to go on.
BAD: dict[str, str | bytes] = {
    "empty": "",
    "not json": "hello",
    "half of it": GOOD[: len(GOOD) // 2],
    "a byte too much": GOOD + "}",
    "binary": b"\x00\xff" * 100,
    "binary json": GOOD.encode(),
    "a list": "[]",
    "null": "null",
    "a number of 60,000 digits": "9" * 60_000,
    "no event": "{}",
    "an event that is a number": '{"event":1}',
    "deep lists": "[" * 60_000,
    "deep objects": '{"event":' * 7_000,
    "deep inside a media message": f'{{"event":"media","media":{"[" * 50_000}',
    "wide": json.dumps(dict.fromkeys(map(str, range(5000)), 1)),
    "media without media": say("media"),
    "media of null": say("media", media=None),
    "a payload that is a number": media(7),
    "a payload that is not base64": media("!!!!"),
    "a payload cut short": media("AAA"),
    "a payload with a line feed": media("AAAA\n"),
    "a payload of url-safe base64": media("_-__"),
    "another stream": media(sid="MZ" + "4" * 32),
    "a long stream": media(sid="M" * 50_000),
    "another start": start(),
    "a start of another call": start(callSid="CA" + "5" * 32),
    "connected again": say("connected"),
    "a mark without a name": say("mark", mark={}),
    "a key that is a list": say("dtmf", dtmf={"digit": []}),
    "half a surrogate": '{"event":"dtmf","dtmf":{"digit":"\\ud800"}}',
    "a broken escape": '{"event":"dtmf","dtmf":{"digit":"\\x"}}',
    "not a number": '{"event":"media","media":{"payload":NaN}}',
    "a key twice": '{"event":"media","event":"mark","mark":{"name":"x"}}',
    "a control character": '{"event":"dt\x01mf"}',
}
# These are messages, and mean nothing.
HARMLESS: dict[str, str] = {
    "a new event": say("rejoice"),
    "an event with markup": say(NASTY),
    "a mark that was not sent": say("mark", mark={"name": NASTY}),
    "a mark with a long name": say("mark", mark={"name": "m" * 60_000}),
    "no key": say("dtmf", dtmf={"digit": ""}),
    "two keys": say("dtmf", dtmf={"digit": "12"}),
    "a key that none is": say("dtmf", dtmf={"digit": NASTY}),
    "no audio": media(""),
    "a lot of audio": media("f39/" * 12_000),
}


async def connect(world: World, nursery: trio.Nursery) -> WebSocketConnection:
    stream = await world.phone_options["open_stream"]("127.0.0.1", 5000, False)
    return await open_media_socket(nursery, stream)


def ticketed(world: World, **more: Any) -> str:
    """A start with the ticket its webhook was given."""
    ticket = world.app.extensions["bridge"].entrance.ticket(CALL)
    parameters = more.pop("customParameters", {"From": "+15551234567", "To": "+15557654321"})
    return start(customParameters={**parameters, "ticket": ticket}, **more)


async def close_code(socket: WebSocketConnection) -> int:
    try:
        while True:
            await socket.get_message()
    except ConnectionClosed as closed:
        return 1006 if closed.reason is None else int(closed.reason.code)


async def listening(world: World) -> AgentSession:
    """Wait until the agent has its Settings and hears the caller."""
    agent = await world.agent.wait_for_session()
    with trio.fail_after(10):
        await until(lambda: agent.settings is not None)
    return agent


def above_info(world: World) -> list[str]:
    return [line["event"] for line in world.logs if line["log_level"] not in ("debug", "info")]


# ---- the phone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*BAD, *HARMLESS])
async def test_a_call_goes_on_after_it(
    autojump_clock: Clock, nursery: trio.Nursery, case: str
) -> None:
    """It is counted if it is bad, said at debug level at most, and the next message is heard."""
    async with in_memory() as world:
        socket = await connect(world, nursery)
        await socket.send_message(ticketed(world))
        agent = await listening(world)
        await socket.send_message({**BAD, **HARMLESS}[case])
        await socket.send_message(media("AAEC"))
        await socket.send_message(STOP)
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    assert world.ending["bad_messages"] == (case in BAD)
    assert b"\x00\x01\x02" in agent.received_audio
    assert above_info(world) == []
    shown = [str(value) for line in world.logs for value in line.values()]
    assert max(map(len, shown)) < 1000, "a log line repeats what a stranger sent"


@pytest.mark.parametrize("case", BAD)
async def test_it_costs_no_agent_before_the_start(
    autojump_clock: Clock, nursery: trio.Nursery, case: str
) -> None:
    """A second start and the like apart, of which the first would be one."""
    if "start" in case:
        return
    async with in_memory() as world:
        socket = await connect(world, nursery)
        await socket.send_message(BAD[case])
        await socket.send_message(GOOD)
        assert await close_code(socket) == 1002
        assert world.agent.connections == 0
    assert world.ending["outcome"] == "protocol_error"
    assert trio.current_time() == pytest.approx(5.0)


@pytest.mark.parametrize("case", ["not json", "binary", "another stream", "deep objects"])
@pytest.mark.parametrize("begun", [False, True])
async def test_nothing_but_nonsense_is_the_end(
    autojump_clock: Clock, nursery: trio.Nursery, case: str, begun: bool
) -> None:
    """A hundred in a row: `protocol_error` with the reason, Close 1002, no agent session."""
    async with in_memory() as world:
        socket = await connect(world, nursery)
        if begun:
            await socket.send_message(ticketed(world))
            await world.agent.wait_for_session()
        for _ in range(MAX_CONSECUTIVE_BAD_MESSAGES):
            await socket.send_message(BAD[case])
        assert await close_code(socket) == 1002
        # Its answer comes behind the rest of its flood, which is not waited for longer than this.
        await trio.sleep(2)
        await world.quiet()
        assert world.agent.active == 0
    assert world.ending["outcome"] == "protocol_error"
    assert "100 consecutive messages that are not Media Streams messages" in world.ending["reason"]
    assert world.ending["bad_messages"] == MAX_CONSECUTIVE_BAD_MESSAGES
    assert trio.current_time() < 10


async def test_a_great_many_bad_messages_among_good_ones_end_nothing(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """An honest phone whose every second message this version misunderstands is still heard; at
    250 messages a second."""
    async with in_memory() as world:
        socket = await connect(world, nursery)
        await socket.send_message(ticketed(world))
        await world.agent.wait_for_session()
        for _ in range(1000):
            await socket.send_message("bad")
            await socket.send_message(GOOD)
        await socket.send_message(STOP)
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    assert world.ending["bad_messages"] == 1000
    assert world.ending["from_phone_frames"] == 1000
    assert 1000 / 250 - 1 < world.ending["seconds"] < 2000 / 250


@pytest.mark.parametrize("field", ["callSid", "streamSid"])
@pytest.mark.parametrize("sid", ["", "x" * 65, "../../etc/passwd", "CA1\n", "CA 1", NASTY, "Ä"])
async def test_a_sid_that_is_none_begins_nothing(
    autojump_clock: Clock, nursery: trio.Nursery, field: str, sid: str
) -> None:
    """It would be in every message to the phone, in log lines and in the name of a file."""
    async with in_memory() as world:
        socket = await connect(world, nursery)
        await socket.send_message(ticketed(world, **{field: sid}))
        assert await close_code(socket) == 1002
        assert world.agent.connections == 0
    assert world.ending["outcome"] == "protocol_error"


async def test_parameters_reach_the_agent_and_are_never_executed(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Markup and templates come through as text, filled in once; control characters, by which a
    prompt could be forged, as a space."""
    think = {**settings().agent["think"], "prompt": "You talk to {name}."}
    using = settings(agent={"greeting": "Hello {name}!", "think": think})
    name = NASTY + "{caller} {{name}} {0.__class__}"
    async with in_memory(using=using) as world:
        socket = await connect(world, nursery)
        await socket.send_message(
            ticketed(world, customParameters={"From": NASTY, "name": name, "x" * 500: "y"})
        )
        agent = await listening(world)
        await socket.send_message(STOP)
        await world.quiet()
    assert agent.settings is not None
    name = re.sub("[\x00-\x1f\u202e]+", " ", name).strip()
    assert agent.settings["agent"]["greeting"] == f"Hello {name}!"
    assert agent.settings["agent"]["think"]["prompt"] == f"You talk to {name}."
    assert world.ending["outcome"] == "caller_hung_up"


async def test_a_message_too_big_is_told_so(autojump_clock: Clock, nursery: trio.Nursery) -> None:
    """1009, and the call is over on all sides."""
    async with in_memory() as world:
        socket = await connect(world, nursery)
        await socket.send_message(ticketed(world))
        await world.agent.wait_for_session()
        await socket.send_message("x" * 65_537)
        assert await close_code(socket) == 1009
        await world.quiet()
    assert world.ending["outcome"] == "phone_lost"


# ---- the agent -----------------------------------------------------------------------------------

AGENT_BAD = {
    "empty": "",
    "not json": "hello",
    "deep": "[" * 500_000,
    "a list": "[]",
    "no type": "{}",
    "a type that is a number": '{"type":1}',
    "a known type of the wrong shape": '{"type":"FunctionCallRequest","functions":{"id":1}}',
    "half a surrogate": '{"type":"ConversationText","role":"user","content":"\\ud800"}',
}


@pytest.mark.parametrize("case", AGENT_BAD)
async def test_a_session_goes_on_after_it(autojump_clock: Clock, case: str) -> None:
    """What the agent says next is heard."""

    async def script(agent: AgentSession) -> None:
        await agent._ws.send_message(AGENT_BAD[case])
        await agent.say("words", bytes(1600))

    async with in_memory(script) as world, world.call() as phone:
        await phone.wait_heard(0.2)
        await phone.hang_up()
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    assert world.ending["bad_messages"] == 1
    assert phone.received_audio == bytes(1600)


async def test_an_agent_that_talks_nothing_but_nonsense_is_replaced(autojump_clock: Clock) -> None:
    """After a hundred in a row the session counts as broken: another one, and the call goes on."""

    async def script(agent: AgentSession) -> None:
        if agent.number == 1:
            for _ in range(agent_session.MAX_CONSECUTIVE_BAD_MESSAGES):
                await agent._ws.send_message("nonsense")
        else:
            await agent.say("words", bytes(1600))

    using = settings(deepgram={"max_reconnects": 1})
    async with in_memory(script, using=using) as world, world.call() as phone:
        await phone.wait_heard(0.2)
        await phone.hang_up()
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    (line,) = [line for line in world.logs if line["event"] == "agent lost, reconnecting"]
    assert line["reason"] == "100 consecutive messages that are not Voice Agent messages"


ARGUMENTS = {
    "nothing": "",
    "not json": "{",
    "a list": "[1]",
    "text": '"4"',
    "another name": '{"people": 4}',
    "another type": '{"guests": "four"}',
    "too many": '{"guests": 4, "more": 1}',
    "null": '{"guests": null}',
    "a float": '{"guests": 4.5}',
    "out of range": '{"guests": 1e400}',
    "huge": '{"guests": ' + "9" * 5000 + "}",
    "deep": '{"guests": ' + "[" * 100_000,
    "markup": json.dumps({"guests": NASTY}),
    "dunder": '{"__class__": 1, "guests": 4}',
    "half a surrogate": '{"guests": "\\ud800"}',
}


@pytest.mark.parametrize("case", ARGUMENTS)
async def test_arguments_that_do_not_fit_are_answered_and_nothing_is_called(
    autojump_clock: Clock, case: str
) -> None:
    """The agent is told in one line of bounded length what did not fit, and the call goes on."""
    called: list[int] = []

    async def book(guests: int) -> str:
        """Book a table."""
        called.append(guests)
        return "booked"

    answers: list[dict[str, Any]] = []
    answered = trio.Event()

    async def script(agent: AgentSession) -> None:
        (call,) = await agent.call_functions([{"name": "book", "arguments": ARGUMENTS[case]}])
        answers.append(json.loads(call.response or ""))
        answered.set()

    async with in_memory(script) as world:
        world.app.extensions["bridge"].functions.loaded[""] = Functions.of(book)
        async with world.call() as phone:
            await answered.wait()
            await phone.hang_up()
        await world.quiet()
    assert called == []
    assert list(answers[0]) == ["error"]
    assert len(answers[0]["error"]) < 700
    assert world.ending["outcome"] == "caller_hung_up"
