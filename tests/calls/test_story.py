"""A call from its first ring to its last byte, on the virtual clock, through the whole stack."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from bridge.audio import silence
from bridge.testing.agent.server import AgentSession, Behaviour
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.speech import load_clip
from tests.world import QUIET, World, in_memory, open_media_socket, settings, start_message

Clock = trio.testing.MockClock

# Two seconds in which no two frames are alike.
SPEECH = bytes((n * n // 160 + n) % 251 for n in range(16_000))


def replace(behaviour: Behaviour, **knobs: Any) -> Behaviour:
    import msgspec

    return msgspec.structs.replace(behaviour, **knobs)


async def test_both_sides_hear_each_other_byte_for_byte(autojump_clock: Clock) -> None:
    words = SPEECH + b"odd"

    async def script(agent: AgentSession) -> None:
        await agent.say("words", words)

    async with in_memory(script) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(SPEECH)
            await phone.wait_played()
            await phone.hang_up()
        await world.quiet()
    assert phone.received_audio == words
    assert bytes(session.received_audio) == phone.sent_audio
    assert SPEECH in phone.sent_audio
    assert session.faults == []
    assert session.authorization == "Token dg-test-key-0123456789"
    line = world.ending
    assert line["outcome"] == "caller_hung_up"
    assert line["call_sid"] == phone.call_sid
    assert line["from_phone_bytes"] == line["to_agent_bytes"] == len(phone.sent_audio)
    assert line["to_phone_bytes"] == len(words)
    assert line["dropped_bytes"] == line["bad_messages"] == 0
    assert line["request_ids"] == session.request_id
    assert [entry["event"] for entry in world.logs if entry["log_level"] != "debug"] == [
        "call started",
        "call ended",
    ]


@pytest.mark.parametrize("frame_ms", [20, 60, 100, 250])
async def test_the_agent_gets_frames_of_the_configured_length(
    autojump_clock: Clock, frame_ms: int
) -> None:
    async with in_memory(using=settings(call={"frame_ms": frame_ms})) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(SPEECH)
            await phone.hang_up()
        await world.quiet()
    sizes = [size for _, size in session.audio_log]
    # What comes within a frame's length, which is one of the phone's pieces more or less.
    frame = frame_ms * 8
    assert max(sizes) <= frame + 160
    assert len(sizes) <= 1.5 * len(phone.sent_audio) / frame + 1
    assert bytes(session.received_audio) == phone.sent_audio


async def test_no_audio_is_delayed_by_more_than_a_frame(autojump_clock: Clock) -> None:
    """On the virtual clock everything but the waiting for a frame to fill takes no time."""
    async with in_memory() as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(SPEECH)
            await phone.hang_up()
        await world.quiet()
    assert len(session.audio_log) > 30
    gaps = [b[0] - a[0] for a, b in zip(session.audio_log, session.audio_log[1:], strict=False)]
    assert max(gaps) <= 0.0601


@pytest.mark.parametrize("chunks", [(1,), (159,), (160,), (161,), (7, 2000, 333), (8000,)])
@pytest.mark.parametrize("speed", [0.0, 1.0, 5.0])
async def test_agent_audio_of_any_size_and_speed(
    autojump_clock: Clock, chunks: tuple[int, ...], speed: float
) -> None:
    words = SPEECH[:1234] if chunks == (1,) else SPEECH

    async def script(agent: AgentSession) -> None:
        await agent.say("one", words)
        await agent.say("two", words)

    async with in_memory(script, replace(QUIET, chunk_bytes=chunks, speed=speed)) as world:
        async with world.call() as phone:
            await phone.wait_heard(2 * len(words) / 8000)
            await phone.hang_up()
    assert phone.received_audio == words * 2
    media = [event.size for event in phone.events if event.kind == "media"]
    # Whole 20 ms frames, but for the end of each of the two utterances.
    assert sum(size % 160 != 0 for size in media) <= 2
    assert max(media) <= 8000


async def test_the_call_is_introduced_with_the_webhooks_facts(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        options = {"from_number": "+15551112222", "to_number": "+15553334444"}
        async with world.call(**options) as phone:
            await world.agent.wait_for_session()
            await phone.hang_up()
    (line,) = [entry for entry in world.logs if entry["event"] == "call started"]
    assert (line["caller"], line["called"]) == ("+15551112222", "+15553334444")


async def test_settings_are_sent_as_configured(autojump_clock: Clock) -> None:
    using = settings(agent={"greeting": "Ahoy"})
    async with in_memory(using=using) as world, world.call() as phone:
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        await phone.hang_up()
    assert session.settings is not None
    assert session.settings["agent"]["greeting"] == "Ahoy"
    assert session.settings["audio"]["input"] == {"encoding": "mulaw", "sample_rate": 8000}
    assert session.settings["tags"] == [phone.call_sid]


async def test_the_calls_sid_joins_the_configured_tags(autojump_clock: Clock) -> None:
    tags = ["sales", "spring"]
    using = settings(deepgram={"settings": {"tags": tags, "mip_opt_out": True}, "prewarm": True})
    async with in_memory(using=using) as world, world.call() as phone:
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        assert world.agent.opened == 1  # the prewarmed one
        await phone.hang_up()
    assert session.settings is not None
    assert session.settings["tags"] == [*tags, phone.call_sid]
    assert session.settings["mip_opt_out"] is True
    assert using.deepgram.settings["tags"] == tags


# ---- barge-in -----------------------------------------------------------------------------------


async def test_barge_in_clears_what_the_phone_has_not_played(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "a long story", SPEECH * 5)
            await trio.sleep(1.5)
            await agent.user_started_speaking()
            interrupted_at.append(trio.current_time())

    interrupted_at: list[float] = []
    behaviour = replace(QUIET, speed=4.0, stale_chunks=0)
    async with in_memory(script, behaviour) as world, world.call() as phone:
        clear = await phone.wait_event("clear")
        await phone.wait_quiet(3)
        await phone.hang_up()
    assert clear.size > 0
    assert 1.4 < phone.heard_seconds < 1.6
    assert phone.heard_seconds + clear.size / 8000 == pytest.approx(
        len(phone.received_audio) / 8000, abs=0.001
    )


@pytest.mark.parametrize("audio_done", [True, False])
@pytest.mark.parametrize("stale_text", [True, False])
async def test_stale_audio_is_not_heard_and_the_next_reply_is(
    autojump_clock: Clock, audio_done: bool, stale_text: bool
) -> None:
    reply = bytes(reversed(SPEECH))

    async def script(agent: AgentSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, "A long. Story. Indeed.", SPEECH * 5)
            await trio.sleep(1.5)
            await agent.user_started_speaking()
        await trio.sleep(0.5)
        await agent.user_said("wait")
        await agent.say("reply", reply)

    behaviour = replace(
        QUIET,
        stale_chunks=4,
        stale_text=stale_text,
        audio_done_when_interrupted=audio_done,
    )
    async with in_memory(script, behaviour) as world, world.call() as phone:
        await phone.wait_event("clear")
        heard_before = len(phone.received_audio)
        await phone.wait_quiet(3)
        await phone.hang_up()
    assert phone.received_audio[heard_before:] == reply


# ---- what is missing, unknown or wrong ----------------------------------------------------------


async def test_silence_is_filled_in_when_the_phone_sends_none(autojump_clock: Clock) -> None:
    """Twilio sends no frames in silence on some calls; the agent must hear time pass."""
    async with in_memory(behaviour=replace(QUIET, idle_timeout=5.0)) as world:
        async with world.call(silence_frames=False) as phone:
            session = await world.agent.wait_for_session()
            await trio.sleep(30)
            assert session.closed is None
            await phone.say(SPEECH)
            await phone.hang_up()
        await world.quiet()
    heard = bytes(session.received_audio)
    assert SPEECH in heard
    assert set(heard.replace(SPEECH, b"")) == set(silence(1))
    assert len(heard) / 8000 == pytest.approx(32, abs=0.5)


async def test_messages_of_unknown_types_change_nothing(autojump_clock: Clock) -> None:
    async def script(agent: AgentSession) -> None:
        await agent.say("words", SPEECH)

    behaviour = replace(QUIET, unknown_messages=True, latency_every=0.1, agent_thinking=True)
    async with in_memory(script, behaviour) as world, world.call() as phone:
        await phone.wait_heard(2.0)
        await phone.hang_up()
    assert phone.received_audio == SPEECH


class RawPhone:
    """The phone's socket, without a phone: what is sent is up to the test."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._nursery: trio.Nursery | None = None

    async def connect(self, nursery: trio.Nursery) -> Any:
        stream = await self._world.phone_options["open_stream"]("127.0.0.1", 5000, False)
        return await open_media_socket(nursery, stream)


def media(payload: str = "AAAA", sid: str = "MZ1") -> str:
    return f'{{"event":"media","media":{{"payload":"{payload}"}},"streamSid":"{sid}"}}'


async def test_a_bad_message_is_counted_and_the_call_goes_on(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    async with in_memory() as world:
        socket = await RawPhone(world).connect(nursery)
        for text in (
            "no json",
            media(),  # before start
            '{"event":"connected"}',
            start_message(world.app),
            media("not base64"),
            media("BBBB", sid="MZ2"),
            start_message(world.app),
            b"binary",
            '{"event":"something-new"}',
            media("CCCC"),
            '{"event":"stop","streamSid":"MZ1"}',
        ):
            await socket.send_message(text)
        session = await world.agent.wait_for_session()
        await world.quiet()
    line = world.ending
    assert line["outcome"] == "caller_hung_up"
    assert line["bad_messages"] == 6
    assert line["from_phone_bytes"] == 3
    assert session.faults == []


async def test_no_agent_is_called_before_start(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    async with in_memory() as world:
        socket = await RawPhone(world).connect(nursery)
        await socket.send_message('{"event":"connected"}')
        began = trio.current_time()
        with pytest.raises(Exception, match="1002"):
            await socket.get_message()
        assert trio.current_time() - began == pytest.approx(5.0)
        assert world.agent.connections == 0
    assert world.ending["outcome"] == "protocol_error"
    assert world.ending["reason"] == "no start message within 5 seconds"


async def test_audio_in_another_format_is_refused(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    async with in_memory() as world:
        socket = await RawPhone(world).connect(nursery)
        await socket.send_message(start_message(world.app).replace("8000", "16000"))
        with pytest.raises(Exception, match="1002"):
            await socket.get_message()
        assert world.agent.connections == 0
    assert "µ-law at 8 kHz" in world.ending["reason"]


# ---- endings ------------------------------------------------------------------------------------


async def say_goodbye(agent: AgentSession) -> None:
    await agent.call_functions([{"name": "end_call"}])
    await agent.say("goodbye", SPEECH[:800])
    await agent.close(1000)


async def close_without_a_word(agent: AgentSession) -> None:
    await agent.close(1000)


async def close_without_a_code(agent: AgentSession) -> None:
    await agent.close(1005)


async def close_with_trouble(agent: AgentSession) -> None:
    await agent.close(1011)


async def fail(agent: AgentSession) -> None:
    await agent.error("INTERNAL_SERVER_ERROR", "out of order")


async def drop_connection(agent: AgentSession) -> None:
    await agent.reset()


@pytest.mark.parametrize(
    ("script", "behaviour", "outcome", "reason"),
    [
        (say_goodbye, {}, "agent_ended", "the agent called end_call"),
        (close_without_a_word, {}, "agent_failed", "closed with 1000"),
        (close_without_a_code, {}, "agent_failed", "closed with 1005"),
        (close_with_trouble, {}, "agent_failed", "closed with 1011"),
        (fail, {}, "agent_failed", "INTERNAL_SERVER_ERROR: out of order"),
        (fail, {"closes_after_error": False}, "agent_failed", "INTERNAL_SERVER_ERROR"),
        (fail, {"legacy_errors": True}, "agent_failed", "INTERNAL_SERVER_ERROR: out of order"),
        (drop_connection, {}, "agent_failed", "lost"),
        (None, {"reject_status": 401}, "agent_unreachable", "DEEPGRAM_API_KEY"),
        (None, {"reject_status": 429}, "agent_unreachable", "as many sessions"),
        (None, {"answers_handshake": False}, "agent_unreachable", "within 5 s"),
        (None, {"sends_welcome": False}, "agent_unreachable", "within 5 s"),
        (None, {"applies_settings": False}, "agent_unreachable", "within 5 s"),
        (None, {"settings_error": "INVALID_SETTINGS"}, "agent_failed", "INVALID_SETTINGS"),
    ],
)
async def test_the_agent_ends_the_call(
    autojump_clock: Clock, script: Any, behaviour: dict[str, Any], outcome: str, reason: str
) -> None:
    async def nothing(agent: AgentSession) -> None:
        pass

    async with in_memory(script or nothing, replace(QUIET, **behaviour)) as world:
        async with world.call() as phone:
            await phone.wait_ended()
        apology = [verb for verb in phone.verbs if type(verb).__name__ == "Say"]
        await world.quiet()
    assert world.ending["outcome"] == outcome
    assert reason in world.ending["reason"]
    assert bool(apology) == (outcome != "agent_ended")
    assert not any("exc_info" in entry for entry in world.logs)


async def test_the_phone_is_lost_without_stop(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(SPEECH)
            await phone.drop()
        await world.quiet()
    assert world.ending["outcome"] == "phone_lost"
    assert SPEECH in bytes(session.received_audio)


async def test_a_hang_up_while_the_agent_connects_leaves_no_session(autojump_clock: Clock) -> None:
    async with in_memory(behaviour=replace(QUIET, answers_handshake=False)) as world:
        async with world.call() as phone:
            await trio.sleep(0.1)
            began = trio.current_time()
            await phone.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert world.agent.active == 0
        assert trio.current_time() - began < 0.1
    assert world.ending["outcome"] == "caller_hung_up"


async def test_an_agent_that_never_answers_the_goodbye_is_cut_off(autojump_clock: Clock) -> None:
    async with in_memory(behaviour=replace(QUIET, answers_close=False)) as world:
        async with world.call() as phone:
            await world.agent.wait_for_session()
            await trio.sleep(1)
            began = trio.current_time()
            await phone.hang_up()
            await world.quiet()
        assert trio.current_time() - began <= 2.0
    assert world.ending["outcome"] == "caller_hung_up"


async def test_a_two_minute_call_is_whole_and_takes_no_time(autojump_clock: Clock) -> None:
    clip = load_clip("caller")

    async def script(agent: AgentSession) -> None:
        for _ in range(4):
            await agent.say("words", SPEECH)
            await trio.sleep(28)

    phone: SimulatedPhone
    async with in_memory(script, using=settings(call={"idle_seconds": 3600})) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            for _ in range(2):
                await phone.say(clip)
                await trio.sleep(50 - len(clip) / 8000 % 50)
            await trio.sleep(120 - phone.elapsed)
            await phone.hang_up()
        await world.quiet()
    assert phone.elapsed == pytest.approx(120, abs=1)
    assert bytes(session.received_audio) == phone.sent_audio
    assert phone.received_audio == SPEECH * 4


@pytest.mark.parametrize("languages", [["es", "en"], "es", None, [7]])
async def test_the_languages_that_the_agent_heard_are_kept(
    autojump_clock: trio.testing.MockClock, languages: object
) -> None:
    """flux-general-multi tells them. Told in another way, they cost nobody a word."""

    async def script(agent: AgentSession) -> None:
        await agent.send(
            {"type": "ConversationText", "role": "user", "content": "Hola", "languages": languages}
        )
        await agent.say("Hola.", b"\x00" * 800)

    async with in_memory(script) as world, world.call() as phone:
        await phone.wait_event("mark_echoed")
        call = world.live_call
        line = call.story.lines[0]
        await phone.hang_up()
    assert line.words == "Hola"
    assert line.languages == (languages if languages == ["es", "en"] else [])
