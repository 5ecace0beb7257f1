"""Whole calls over real sockets, under real hypercorn, on the real clock.

What does not need them is tested on the virtual clock. Here it is shown once more that nothing
depends on its perfection: bytes are compared and events waited for; how long anything took is not.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from quart_trio import QuartTrio
from trio.testing import wait_all_tasks_blocked

from bridge.config.file import FixedConfig
from bridge.http.app import create_app
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.agent.script import ECHO_BEHAVIOUR, echo
from bridge.testing.agent.server import AgentSession, Behaviour, Script, SimulatedAgent, silent
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say
from bridge.testing.speech import SILENCE, load_clip
from tests.world import AUTH_TOKEN, QUIET, SECRETS, World, on_loopback, open_media_socket, settings

# A machine that does something else for a while must not fail a test.
PATIENCE = 60.0

# What the agent is owed at the end, and what a slow machine needs for it, is not the point here.
SLOW = settings(call={"teardown_seconds": 10})

# Frames so long that the caller's last one is all but never full.
LONG_FRAMES = settings(call={"teardown_seconds": 10, "frame_ms": 250})

PHONES = 5


def voice(seed: str, seconds: float = 0.7) -> bytes:
    """µ-law that is like no other's, and holds no silence, so that silence can be told from it."""
    generator = random.Random(seed)
    return bytes(generator.randrange(255) for _ in range(round(8000 * seconds)))


def spoken(audio: bytes) -> bytes:
    """Audio without silence: on a machine that stalls, the bridge fills a gap of a fifth of a
    second with it, in the middle of a word if need be."""
    return audio.replace(SILENCE, b"")


def with_knobs(behaviour: Behaviour, **knobs: Any) -> Behaviour:
    return msgspec.structs.replace(behaviour, **knobs)


class Tasks(trio.abc.Instrument):
    """How many more tasks there are than at first, and waiting for fewer."""

    def __init__(self) -> None:
        self.alive = 0
        self._ended = trio.Event()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.alive += 1

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.alive -= 1
        self._ended.set()

    async def wait_for(self, number: int) -> None:
        while self.alive > number:
            self._ended = trio.Event()
            await self._ended.wait()


@asynccontextmanager
async def calls(
    script: Script = silent, behaviour: Behaviour = QUIET, using: Any = SLOW
) -> AsyncIterator[World]:
    """A world on loopback in which, after the calls, nothing of them may be left on any side."""
    tasks = Tasks()
    with trio.fail_after(PATIENCE):
        async with on_loopback(script, behaviour, using) as world:
            # The server says that it has started before its last tasks have.
            await wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(tasks)
            try:
                yield world
                await world.quiet()
                assert len(world.app.extensions["bridge"].calls) == 0
                assert world.agent.active == 0
                assert world.agent.failures == []
                # Tasks of connections, of the calls and of websocket readers, everybody's.
                await tasks.wait_for(0)
            finally:
                trio.lowlevel.remove_instrument(tasks)


async def outcome(app: QuartTrio, phone: SimulatedPhone) -> str:
    ended = await app.extensions["bridge"].recorder.ending_of(phone.call_sid)
    return str(ended and ended.outcome)


# ---- audio --------------------------------------------------------------------------------------


async def test_each_of_several_calls_is_whole_and_hears_no_other() -> None:
    """Every byte, in order, both ways, with as many calls at once."""
    together = trio.Event()
    phones: list[SimulatedPhone] = []

    async def script(agent: AgentSession) -> None:
        await together.wait()
        await agent.say("words", voice(f"agent {agent.number}"))

    async def ring(number: int) -> None:
        async with world.call(from_number=f"+1555000000{number}") as phone:
            phones.append(phone)
            await together.wait()
            async with trio.open_nursery() as both:
                both.start_soon(phone.say, voice(f"caller {number}"))
                both.start_soon(phone.wait_heard, len(voice("")) / 8000)
            await phone.hang_up()

    async with calls(script) as world, trio.open_nursery() as nursery:
        for number in range(PHONES):
            nursery.start_soon(ring, number)
        await world.agent.wait_for_session(PHONES)
        together.set()
    said = {voice(f"caller {number}") for number in range(PHONES)}
    heard_by_agents = {spoken(bytes(session.received_audio)) for session in world.agent.sessions}
    assert heard_by_agents == said
    answers = {
        spoken(bytes(session.received_audio)): voice(f"agent {session.number}")
        for session in world.agent.sessions
    }
    assert len(phones) == PHONES
    for phone in phones:
        assert phone.received_audio == answers[spoken(phone.sent_audio)]
        assert await outcome(world.app, phone) == "caller_hung_up"
    for session in world.agent.sessions:
        assert session.faults == []
        assert session.closed is not None
        assert session.closed.by == "client"


@pytest.mark.parametrize("chunks", [(1, 159, 160, 161, 7), (8000,)])
async def test_a_burst_of_any_size_is_heard_to_the_last_byte(chunks: tuple[int, ...]) -> None:
    """All at once, in messages of odd sizes, and not a multiple of the phone's frames."""
    words = voice("burst", 1.0) + b"odd"

    async def script(agent: AgentSession) -> None:
        await agent.say("words", words)

    behaviour = with_knobs(QUIET, speed=0.0, chunk_bytes=chunks)
    async with calls(script, behaviour) as world, world.call() as phone:
        await phone.wait_heard(len(words) / 8000)
        await phone.hang_up()
    assert phone.received_audio == words


async def test_the_last_words_before_a_hang_up_reach_the_agent() -> None:
    """`stop` comes right behind the last frame, and both are in the same breath of TCP."""
    async with calls(using=LONG_FRAMES) as world, world.call() as phone:
        session = await world.agent.wait_for_session()
        await phone.say(voice("last words", 0.21))
        await phone.hang_up()
    assert spoken(bytes(session.received_audio)) == voice("last words", 0.21)
    assert await outcome(world.app, phone) == "caller_hung_up"


async def test_the_echo_agent_repeats_the_callers_own_voice() -> None:
    """Real speech, found by its loudness, comes back as it was said."""
    clip = load_clip("caller")
    # With what is silent around it; the loud part alone is sure to be found.
    utterance, loud = clip[2000:7200], clip[3680:6880]
    behaviour = with_knobs(
        ECHO_BEHAVIOUR, greeting="", speech_end=0.3, speed=0.0, chunk_bytes=(8000,)
    )
    async with calls(echo, behaviour) as world, world.call() as phone:
        session = await world.agent.wait_for_session()
        await phone.say(utterance)
        heard = await session.wait_for_end_of_speech()
        answer = load_clip("you-said") + heard.audio
        await phone.wait_heard(len(answer) / 8000)
        await phone.hang_up()
    assert spoken(loud) in spoken(heard.audio)
    assert spoken(heard.audio) in spoken(utterance)
    assert phone.received_audio == answer
    assert spoken(answer) in spoken(phone.heard)


# ---- barge-in -----------------------------------------------------------------------------------


async def test_a_caller_who_cuts_in_stops_the_agent() -> None:
    """The caller's own voice makes the agent say UserStartedSpeaking; `clear` empties the phone,
    nothing of the interrupted reply comes after it, and the next reply is whole."""
    story, reply = voice("story", 20.0), voice("reply", 0.3)

    async def script(agent: AgentSession) -> None:
        assert (await agent.say("A long story.", story)).interrupted
        await agent.wait_for_end_of_speech()
        await agent.user_said("wait")
        await agent.say("Yes?", reply)

    behaviour = with_knobs(QUIET, hears=True, speed=8.0, stale_chunks=3, speech_end=0.2)
    async with calls(script, behaviour) as world, world.call() as phone:
        await phone.wait_heard(0.2)
        await phone.say(load_clip("caller")[3200:7200])
        clear = await phone.wait_event("clear")
        await phone.wait_heard((media_before(phone) - clear.size + len(reply)) / 8000)
        await phone.hang_up()
    before = media_before(phone)
    assert clear.size > 0
    assert before < len(story)
    assert phone.received_audio[:before] == story[:before]
    assert phone.received_audio[before:] == reply
    # What was cleared was never heard, and everything else was.
    assert round(phone.heard_seconds * 8000) == before - clear.size + len(reply)
    assert story[before - clear.size : before] not in phone.heard
    assert [event.kind for event in phone.events].count("clear") == 1


def media_before(phone: SimulatedPhone) -> int:
    """Bytes of audio the phone was sent before the first `clear`."""
    kinds = [event.kind for event in phone.events]
    until = phone.events[: kinds.index("clear")]
    return sum(event.size for event in until if event.kind == "media")


# ---- endings ------------------------------------------------------------------------------------


async def goodbye(agent: AgentSession) -> None:
    await agent.call_functions([{"name": "end_call"}])
    await agent.say("goodbye", voice("goodbye", 0.3))
    await agent.close(1000)


async def trouble(agent: AgentSession) -> None:
    await agent.say("goodbye", voice("goodbye", 0.3))
    await agent.error("INTERNAL_SERVER_ERROR")


async def vanish(agent: AgentSession) -> None:
    await agent.reset()


@pytest.mark.parametrize(
    ("script", "expected", "after"),
    [
        (goodbye, "agent_ended", [Hangup()]),
        (trouble, "agent_failed", [Say(SLOW.words.apology), Hangup()]),
        (vanish, "agent_failed", [Say(SLOW.words.apology), Hangup()]),
    ],
)
async def test_the_agent_ends_the_call(script: Script, expected: str, after: list[Any]) -> None:
    """What it said before is passed on; then Twilio asks what comes next, and is told."""
    async with calls(script) as world, world.call() as phone:
        await phone.wait_ended()
    assert await outcome(world.app, phone) == expected
    assert phone.ending == "completed"
    assert phone.verbs[1:] == after
    assert phone.received_audio == (b"" if script is vanish else voice("goodbye", 0.3))


async def test_a_phone_that_drops_takes_its_agent_session_along() -> None:
    """No `stop`, no close, and still the agent hears what was said, and goodbye."""
    async with calls(using=LONG_FRAMES) as world, world.call() as phone:
        session = await world.agent.wait_for_session()
        await phone.say(voice("dropped", 0.21))
        await phone.drop()
    assert await outcome(world.app, phone) == "phone_lost"
    assert spoken(bytes(session.received_audio)) == voice("dropped", 0.21)
    assert session.closed is not None
    assert session.closed.by == "client"


async def test_a_phone_that_drops_while_the_agent_speaks_leaves_nothing() -> None:
    """The writer to the phone must not be what keeps the call alive."""

    async def script(agent: AgentSession) -> None:
        await agent.say("a long story", voice("story", 60.0))

    async with calls(script, with_knobs(QUIET, speed=0.0)) as world, world.call() as phone:
        await phone.wait_heard(0.05)
        await phone.drop()
    assert await outcome(world.app, phone) == "phone_lost"


async def test_one_call_that_ends_badly_is_no_other_calls_business() -> None:
    async def script(agent: AgentSession) -> None:
        if agent.number == 1:
            await agent.reset()
        await agent.say("words", voice("words", 0.5))

    async with calls(script) as world, world.call() as first:
        await first.wait_ended()
        async with world.call() as second, world.call() as third:
            await third.wait_heard(0.1)
            await third.drop()
            await second.wait_heard(0.5)
            await second.hang_up()
    assert await outcome(world.app, first) == "agent_failed"
    assert await outcome(world.app, third) == "phone_lost"
    assert await outcome(world.app, second) == "caller_hung_up"
    assert second.received_audio == voice("words", 0.5)


@pytest.mark.parametrize(
    "behaviour",
    [
        {"reject_status": 401},
        {"reject_status": 500},
        {"answers_handshake": False},
        {"sends_welcome": False},
        {"applies_settings": False},
    ],
)
async def test_an_agent_that_does_not_take_the_call(behaviour: dict[str, Any]) -> None:
    """The caller gets the apology, when the agent has had its time and no later than that."""
    using = settings(deepgram={"connect_timeout": 0.3})
    refusing = with_knobs(QUIET, **behaviour)
    async with calls(behaviour=refusing, using=using) as world, world.call() as phone:
        await phone.wait_ended()
    assert await outcome(world.app, phone) == "agent_unreachable"
    assert phone.verbs[1:] == [Say(using.words.apology), Hangup()]
    assert phone.received_audio == b""


def caller() -> SimulatedPhone:
    return SimulatedPhone(strict=True, auth_token=AUTH_TOKEN)


async def test_an_agent_that_is_not_there() -> None:
    """Nothing listens at the agent's address."""
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))  # and not listening: nobody else gets the port
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}/v1/agent/converse"
        using = settings(deepgram={"url": url}, server={"bind": "127.0.0.1:0"})
        app = create_app(FixedConfig(using), SECRETS)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                stop = trio.Event()
                start = partial(serve, app, hypercorn_config(using), shutdown=stop)
                (address,) = await nursery.start(start)
                async with SimulatedPhone(strict=True, auth_token=AUTH_TOKEN).place_call(
                    address
                ) as phone:
                    await phone.wait_ended()
                stop.set()
    assert phone.verbs == [phone.verbs[0], Say(using.words.apology), Hangup()]
    assert isinstance(phone.verbs[0], ConnectStream)
    assert await outcome(app, phone) == "agent_unreachable"
    assert len(app.extensions["bridge"].calls) == 0


async def test_a_stranger_on_the_media_socket_costs_no_agent_time() -> None:
    """Whoever connects and says nothing is sent away, and the agent never hears of it."""
    using = settings(call={"start_timeout": 0.3})
    async with calls(using=using) as world, trio.open_nursery() as nursery:
        port = int(world.base_url.rpartition(":")[2])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        socket = await open_media_socket(nursery, stream, "127.0.0.1")
        with pytest.raises(Exception, match="1002"):
            await socket.get_message()
        await socket.aclose()
        await stream.aclose()
    assert world.agent.connections == 0


async def test_a_server_that_stops_ends_its_calls() -> None:
    """Agent and phone are told goodbye, and Twilio still finds somebody to ask what comes next."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            agent = SimulatedAgent(behaviour=QUIET)
            port = await nursery.start(agent.serve)
            stop, url = trio.Event(), f"ws://127.0.0.1:{port}/v1/agent/converse"
            using = settings(deepgram={"url": url}, server={"bind": "127.0.0.1:0"})
            app = create_app(FixedConfig(using), SECRETS)
            start = partial(serve, app, hypercorn_config(using), shutdown=stop)
            (address,) = await nursery.start(start)
            async with SimulatedPhone(strict=True, auth_token=AUTH_TOKEN).place_call(
                address
            ) as phone:
                session = await agent.wait_for_session()
                # `applied` is set before the server knows of it; who sends audio has a session.
                await session.wait_until(lambda: session.received_bytes)
                stop.set()
                await phone.wait_ended()
            await agent.wait_until_idle()
            nursery.cancel_scope.cancel()
    assert await outcome(app, phone) == "server_shutdown"
    (closed,) = [event.text for event in phone.events if event.kind == "closed"]
    assert closed in ("1000", "1001")
    assert phone.verbs[1:] == [Hangup()]
    assert phone.ending == "completed"
    assert session.closed is not None
    assert (session.closed.by, session.closed.code) == ("client", 1000)
    assert len(app.extensions["bridge"].calls) == 0
