"""The reply time: what the simulated phone measures with its own ears and what the server measures
agree, whatever lies between the two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from rich.console import Console

from bridge.call.turns import Turn
from bridge.cli.phone.caller import Plan, call
from bridge.cli.phone.view import CallView
from bridge.testing.agent.server import AgentSession
from bridge.testing.speech import SILENCE, load_clip
from tests.world import QUIET, in_memory, settings

Clock = trio.testing.MockClock

HEARS = msgspec.structs.replace(QUIET, hears=True, speed=2.0)
AGREE = 0.05  # seconds
PAUSE = SILENCE * 8000
WORDS = load_clip("still-there")


async def replies(agent: AgentSession) -> None:
    """Greet, then answer everything: the end of a turn takes half a second to notice, recognition
    0.3 s, the language model 0.2, 0.5 and 0.8 s."""
    await agent.say("Hello! How can I help you today?")
    for thinks in (0.2, 0.5, 0.8):
        await agent.wait_for_end_of_speech()
        await trio.sleep(0.3)
        await agent.user_said("One more, please.")
        await trio.sleep(thinks)
        await agent.latency_report(ttt_text_latency=thinks, total_latency=thinks + 0.8)
        await agent.say("You said:")


async def talk(
    plan: Plan, script: Callable[[AgentSession], Awaitable[None]], **world_options: Any
) -> tuple[CallView, list[Turn], str]:
    """Place a call, whose network stalls between two of its seconds; how the phone saw it, the
    server's turns, and the server's metrics."""
    stall: tuple[float, float] = world_options.pop("stall", (0.0, 0.0))
    behaviour = world_options.pop("behaviour", HEARS)
    async with in_memory(script, behaviour, **world_options) as world:
        to_server = world.phone_options["open_stream"]

        async def through_a_network(host: str, port: int, tls: bool) -> trio.abc.Stream:
            return Stalling(await to_server(host, port, tls), *(placed + at for at in stall))

        placed = trio.current_time()
        view = CallView(Console(quiet=True))
        caller = world.phone(on_event=view.event, open_stream=through_a_network)
        began: list[Any] = []

        async def note_the_call() -> None:
            await world.agent.wait_for_session()
            began.extend(world.app.extensions["bridge"].calls)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_the_call)
            await call(caller, world.base_url, plan, view)
        await world.quiet()
        metrics = world.app.extensions["bridge"].metrics.expose(None)[0].decode()
    assert caller.faults == []
    return view, began[0].story.turns, metrics


class Stalling(trio.abc.Stream):
    """A stream that takes nothing between two times on the clock; then all that waits goes out."""

    def __init__(self, stream: trio.abc.Stream, since: float, until: float) -> None:
        self._stream = stream
        self._since = since
        self._until = until

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._since <= trio.current_time() < self._until:
            await trio.sleep_until(self._until)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


def times(turns: list[Turn]) -> tuple[list[float], list[float]]:
    spoken = [turn.reply_seconds for turn in turns if turn.reply_seconds is not None]
    typed = [turn.typed_reply_seconds for turn in turns if turn.typed_reply_seconds is not None]
    return spoken, typed


def metric(exposed: str, name: str) -> float:
    (line,) = [line for line in exposed.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


SPOKEN = Plan(WORDS, then=(WORDS, load_clip("goodbye")), transcript=False)


@pytest.mark.parametrize("frame_ms", [20, 200])
async def test_the_phone_and_the_server_agree(autojump_clock: Clock, frame_ms: int) -> None:
    view, turns, metrics = await talk(SPOKEN, replies, using=settings(call={"frame_ms": frame_ms}))
    spoken, typed = times(turns)
    assert spoken == pytest.approx(view.reply_seconds, abs=AGREE)
    assert len(spoken) == 3
    # Half a second, recognition and thinking: what the caller waits, and not what is left of it
    # when the words are known. A frame of 200 ms makes the agent later, and both know it.
    for measured, thinks in zip(spoken, (0.2, 0.5, 0.8), strict=True):
        assert 0.5 + 0.3 + thinks - 0.05 <= measured <= 0.5 + 0.3 + thinks + frame_ms / 1000 + 0.1
    assert (typed, view.typed_reply_seconds) == ([], [])
    assert metric(metrics, "bridge_reply_seconds_count") == 3
    assert metric(metrics, "bridge_reply_seconds_sum") == pytest.approx(sum(spoken))
    assert metric(metrics, "bridge_typed_reply_seconds_count") == 0
    # Deepgram's own, beside it.
    reported = [turn.latencies for turn in turns if turn.reply_seconds is not None]
    assert [one["ttt_text_latency"] for one in reported] == [0.2, 0.5, 0.8]
    total = metric(metrics, 'bridge_agent_latency_seconds_sum{part="total"}')
    assert total == pytest.approx(1.0 + 1.3 + 1.6)


async def test_a_network_that_stalls_at_the_end_of_the_words_does_not_hide_it(
    autojump_clock: Clock,
) -> None:
    """The last words come 1 s late, with the silence behind them, and the reply half a second."""
    view, turns, _ = await talk(SPOKEN, replies)
    (end, *_) = [turn.end for turn in view.caller.turns]
    assert end is not None
    smooth, _ = times(turns)

    view, turns, _ = await talk(SPOKEN, replies, stall=(end - 0.1, end + 1.0))
    spoken, _ = times(turns)
    assert spoken == pytest.approx(view.reply_seconds, abs=AGREE)
    assert spoken[0] > smooth[0] + 0.4


async def test_keys_are_measured_apart(autojump_clock: Clock) -> None:
    """From the last key: the pause that ends an entry is time the caller waits."""

    async def script(agent: AgentSession) -> None:
        await agent.say("Hello! How can I help you today?")
        await agent.wait_for_end_of_speech()
        await agent.user_said("My number.")
        await trio.sleep(0.2)
        await agent.say("Please key it in.")
        await agent.wait_for_user_message()
        await trio.sleep(0.4)
        await agent.say("Thank you.")

    plan = Plan(WORDS, then=(PAUSE,), keys="471", transcript=False)
    view, turns, metrics = await talk(plan, script)
    spoken, typed = times(turns)
    assert spoken == pytest.approx(view.reply_seconds, abs=AGREE)
    assert typed == pytest.approx(view.typed_reply_seconds, abs=AGREE)
    assert (len(spoken), len(typed)) == (1, 1)
    assert 0.5 < spoken[0] < 1.0
    assert 2.4 < typed[0] < 3.0
    assert metric(metrics, "bridge_reply_seconds_count") == 1
    assert metric(metrics, "bridge_typed_reply_seconds_sum") == pytest.approx(typed[0])


async def test_a_phone_that_sends_nothing_in_silence(autojump_clock: Clock) -> None:
    """What bridge sends the agent in its place is no speech: the words end where they ended."""
    async with in_memory(replies, HEARS) as world:
        async with world.call(silence_frames=False) as phone:
            await phone.wait_event("mark_echoed")
            live = world.live_call
            await trio.sleep(1)
            await phone.say(WORDS)
            said = phone.elapsed
            await phone.wait_event("mark_echoed", count=2)
            await phone.hang_up()
    (spoken,), _ = times(live.story.turns)
    (_, (began, _)) = phone.heard_stretches
    # The clip itself ends with a moment of silence.
    assert began - said - 0.05 < spoken < began - said + 0.2


async def test_a_filler_of_bridges_is_no_reply(autojump_clock: Clock) -> None:
    async def slow(agent: AgentSession) -> None:
        await agent.say("Hello! How can I help you today?")
        await agent.wait_for_end_of_speech()
        await agent.user_said("Are you open on Sunday?")
        await trio.sleep(4)
        await agent.say("You said:")

    using = settings(call={"stall_seconds": 2})
    view, turns, _ = await talk(Plan(WORDS, linger=8, transcript=False), slow, using=using)
    (spoken,), _ = times(turns)
    assert spoken > 4, "the filler came after 2 s"
    assert view.reply_seconds[0] < 3, "which only the phone takes for a reply"


@pytest.mark.parametrize("behavior", ["filler", "backchannel"])
async def test_a_filler_of_deepgrams_is_no_reply_either(
    autojump_clock: Clock, behavior: str
) -> None:
    async def fills(agent: AgentSession) -> None:
        await agent.say("Hello! How can I help you today?")
        await agent.wait_for_end_of_speech()
        await agent.user_said("Are you open on Sunday?")
        await agent.say("Mhm.", behavior=behavior)
        await trio.sleep(2)
        await agent.say("You said:")

    _, turns, _ = await talk(Plan(WORDS, linger=5, transcript=False), fills)
    (spoken,), _ = times(turns)
    assert spoken > 2


async def test_an_agent_that_speaks_over_the_caller_does_not_reply(autojump_clock: Clock) -> None:
    async def rude(agent: AgentSession) -> None:
        await agent.say("Hello! How can I help you today?")
        await agent.wait_for_speech()
        await trio.sleep(0.5)
        await agent.user_said("Are")
        await agent.say("You said:")

    view, turns, metrics = await talk(Plan(WORDS * 3, transcript=False), rude)
    assert times(turns) == ([], [])
    assert view.reply_seconds == []
    assert [turn.confirmed_at is not None for turn in turns] == [False, True]
    assert metric(metrics, "bridge_reply_seconds_count") == 0


async def test_a_reply_that_is_interrupted_before_it_plays_was_none(autojump_clock: Clock) -> None:
    """It waits behind the greeting, which the caller cannot interrupt; then the caller goes."""

    async def script(agent: AgentSession) -> None:
        await agent.say("Hello! How can I help you today? " * 5)
        await agent.wait_for_end_of_speech()
        await agent.user_said("Stop, please.")
        await agent.say("You said:")

    using = settings(call={"interruptible_greeting": False})
    plan = Plan(WORDS, wait=0, linger=1, transcript=False)
    at_once = msgspec.structs.replace(HEARS, speed=0)
    _, turns, metrics = await talk(plan, script, using=using, behaviour=at_once)
    assert turns[-1].confirmed_at is not None
    assert turns[-1].first_audio_sent_at is not None
    assert times(turns) == ([], [])
    assert metric(metrics, "bridge_reply_seconds_count") == 0
