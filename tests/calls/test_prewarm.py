"""A session that is opened at the webhook: claimed, given back, lost, mismatched, cut off.

Whatever happens to it, the agent has no session left when the calls are over, and a call whose warm
session came to nothing is like any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from bridge.config.file import FixedConfig
from bridge.deepgram.prewarm import GIVE_BACK_SECONDS, HOLD_SECONDS, CloseBy, Prepared, Prewarming
from bridge.testing.agent.server import AgentSession, Behaviour
from bridge.testing.phone.webhook import request
from tests.world import AUTH_TOKEN, QUIET, World, in_memory, settings

Clock = Any
SID = "CA" + "5" * 32
FORM = [("CallSid", SID), ("From", "+15550100001"), ("To", "+15550100002")]

# A second from the handshake to SettingsApplied, as over a continent.
FAR = replace(QUIET, welcome_delay=0.4, settings_applied_delay=0.6)
GREETING = b"\x11" * 8000

WARM = settings(deepgram={"prewarm": True, "max_reconnects": 2})


async def greet(agent: AgentSession) -> None:
    await agent.say("Hello.", GREETING)


@asynccontextmanager
async def running(
    script: Any = greet, behaviour: Behaviour = FAR, using: Any = WARM
) -> AsyncIterator[World]:
    """The world, with what lives as long as the server; nothing may be left of it."""
    async with in_memory(script, behaviour, using) as world:
        bridge = world.app.extensions["bridge"]
        async with bridge.running():
            yield world
            await world.quiet()
        assert len(bridge.prewarming) == 0
        await world.agent.wait_until_idle()


async def announce(world: World) -> None:
    """The webhook of a call whose socket is yet to come."""
    await request(
        f"{world.base_url}/incoming-call",
        FORM,
        token=AUTH_TOKEN,
        open_stream=world.phone_options["open_stream"],
    )


def slow_to_connect(world: World, seconds: float) -> None:
    """Twilio opens the media socket so long after the webhook has been answered."""
    connect = world.phone_options["open_stream"]
    connections = 0

    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        nonlocal connections
        connections += 1
        if connections == 2:
            await trio.sleep(seconds)
        stream: trio.abc.Stream = await connect(host, port, tls)
        return stream

    world.phone_options["open_stream"] = open_stream


async def seconds_to_greeting(world: World, **options: Any) -> float:
    began = trio.current_time()
    async with world.call(**options) as phone:
        await phone.wait_heard(0.02)
        waited = trio.current_time() - began
        await phone.wait_heard(len(GREETING) / 8000)
        assert phone.received_audio == GREETING
        await phone.hang_up()
    await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    return waited


@pytest.mark.parametrize(("twilio", "cold", "warm"), [(0.7, 1.7, 1.0), (2.0, 3.0, 2.0)])
async def test_the_caller_waits_for_the_longer_and_not_for_both(
    autojump_clock: Clock, twilio: float, cold: float, warm: float
) -> None:
    for using, expected in ((settings(), cold), (WARM, warm)):
        async with running(using=using) as world:
            slow_to_connect(world, twilio)
            assert await seconds_to_greeting(world) == pytest.approx(expected, abs=0.1)
            assert world.agent.connections == 1


async def test_a_conversation_in_a_warm_session(autojump_clock: Clock) -> None:
    """All of it reaches the right session, and the record says who answered."""
    sales = {"numbers": ["+15550100002"], "greeting": "Sales for {caller}."}
    using = replace(WARM, agents={"sales": sales})

    async def script(agent: AgentSession) -> None:
        await agent.wait_until(lambda: b"\x22" * 1600 in bytes(agent.received_audio))
        await agent.say("Yes.", GREETING)

    async with running(script, using=using) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            assert session.settings is not None
            agent = session.settings["agent"]
            assert agent["greeting"] == "Sales for +15550100001."
            assert [one["name"] for one in agent["think"]["functions"]] == ["end_call"]
            await phone.say(b"\x22" * 1600)
            await phone.wait_heard(len(GREETING) / 8000)
            await trio.sleep(2 * HOLD_SECONDS)  # the hold has expired
            await phone.hang_up()
        await world.quiet()
        assert world.ending["outcome"] == "caller_hung_up"
        assert world.agent.connections == 1
        assert session.closed is not None
        assert (session.closed.by, session.closed.code) == ("client", 1000)


async def test_it_is_given_back_when_the_call_never_comes(autojump_clock: Clock) -> None:
    async with running() as world:
        await announce(world)
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        began = trio.current_time()
        await world.agent.wait_until_idle()
        assert trio.current_time() - began == pytest.approx(HOLD_SECONDS, abs=0.1)
        assert session.closed is not None
        assert (session.closed.by, session.closed.code) == ("client", 1000)


async def test_a_webhook_that_is_asked_twice_opens_one(autojump_clock: Clock) -> None:
    async with running() as world:
        await announce(world)
        await announce(world)
        await trio.sleep(HOLD_SECONDS / 2)
        assert world.agent.connections == 1


async def test_a_refused_caller_gets_no_prewarmed_session(autojump_clock: Clock) -> None:
    using = replace(WARM, server=replace(WARM.server, max_calls=1))
    async with running(using=using) as world:
        await announce(world)
        async with world.call() as phone:
            await phone.wait_ended()
        assert world.agent.connections == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        replace(FAR, reject_status=503, reject_times=1),
        replace(FAR, reject_status=429, reject_times=1),
    ],
)
async def test_an_agent_that_refuses_it_is_asked_again_by_the_call(
    autojump_clock: Clock, behaviour: Behaviour
) -> None:
    async with running(behaviour=behaviour) as world:
        slow_to_connect(world, 0.5)
        assert await seconds_to_greeting(world) == pytest.approx(1.5, abs=0.1)
        assert world.agent.connections == 2


async def test_a_session_that_dies_while_it_waits_is_replaced(autojump_clock: Clock) -> None:
    """By one with a greeting: the caller has heard none."""
    sessions = 0

    async def die_first(agent: AgentSession) -> None:
        nonlocal sessions
        sessions += 1
        if sessions == 1:
            await agent.close(1011)
        else:
            await agent.say("Hello.", GREETING)

    async with running(die_first) as world:
        slow_to_connect(world, 2.0)
        assert await seconds_to_greeting(world) == pytest.approx(3.0, abs=0.1)
        assert world.agent.connections == 2


async def test_an_edit_in_between_opens_another(autojump_clock: Clock) -> None:
    """The call's functions are no longer those that the warm session was told of."""
    async with running() as world:
        bridge = world.app.extensions["bridge"]
        slow_to_connect(world, 2.0)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def edit() -> None:
                await trio.sleep(1.5)
                functions = replace(WARM.functions, end_call=False)
                bridge._config = FixedConfig(replace(WARM, functions=functions))

            assert await seconds_to_greeting(world) == pytest.approx(3.0, abs=0.1)
        assert world.agent.connections == 2


@pytest.mark.parametrize("after", [0.0, 0.05, 0.39, 0.41, 0.8, 0.99, 1.01, 1.5, 3.0])
@pytest.mark.parametrize("end", ["the caller hangs up", "the server stops", "the call is cut"])
@pytest.mark.parametrize("answers_close", [True, False])
async def test_nothing_is_left_whenever_it_ends(
    autojump_clock: Clock, after: float, end: str, answers_close: bool
) -> None:
    """In each phase of the warm session and of the call: opening, waiting, claimed, in use."""
    behaviour = replace(FAR, answers_close=answers_close)
    teardown = WARM.call.teardown_seconds
    async with in_memory(greet, behaviour, WARM) as world:
        bridge = world.app.extensions["bridge"]
        slow_to_connect(world, 0.7)
        with trio.CancelScope() as server:
            async with bridge.running():
                async with world.phone(strict=False).place_call(world.base_url) as phone:
                    await trio.sleep(after)
                    began = trio.current_time()
                    match end:
                        case "the caller hangs up":
                            await phone.hang_up()
                        case "the server stops":
                            server.cancel()
                            await trio.lowlevel.checkpoint()
                        case "the call is cut":
                            await phone.drop()
                await bridge.calls.wait_until_empty()
        assert trio.current_time() - began <= teardown + HOLD_SECONDS + 0.1
        with trio.fail_after(teardown + 2):
            await bridge.calls.wait_until_empty()
        assert len(bridge.prewarming) == 0
        assert bridge.entrance.slots.waiting == 0
        if answers_close:
            with trio.fail_after(teardown + 1):
                await world.agent.wait_until_idle()


async def test_a_session_that_is_just_being_given_back_does_not_ask_its_call_when_it_ends(
    autojump_clock: Clock,
) -> None:
    """Asked in a task that is cancelled, the call would take it for its own end, and have no time
    left when that comes."""
    closing_by: list[float] = []

    @asynccontextmanager
    async def open_(message: str, close_by: CloseBy) -> AsyncIterator[Any]:
        try:
            yield SimpleNamespace(is_over=False)
        finally:
            closing_by.append(close_by())

    async def prepare() -> Prepared:
        return Prepared("", {}, "")

    prewarming = Prewarming()
    async with trio.open_nursery() as prewarming.nursery:
        prewarming.begin("CA1", prepare, open_)
        await trio.testing.wait_all_tasks_blocked()
        # The call comes in the very pass of the event loop in which the waiting is over.
        autojump_clock.jump(HOLD_SECONDS)
        assert await prewarming.claim("CA1", lambda: pytest.fail("the call was asked")) is None
    assert closing_by == [HOLD_SECONDS + GIVE_BACK_SECONDS]


@pytest.mark.parametrize("by", ["bridge serve", "hypercorn"])
async def test_with_several_processes_it_is_off_and_says_so_once(
    autojump_clock: Clock, by: str
) -> None:
    server = replace(WARM.server, workers=2 if by == "bridge serve" else 1)
    async with running(using=replace(WARM, server=server)) as world:
        # What hypercorn's worker says of itself; see `bridge.server.hypercorn.worker`.
        world.app.extensions["bridge"].entrance.alone = by == "bridge serve"
        for _ in range(2):
            await announce(world)
        await trio.sleep(1)
        assert world.agent.connections == 0
        told = [line for line in world.logs if "deepgram.prewarm is off" in line["event"]]
        assert len(told) == 1


async def test_an_unexpected_failure_affects_no_call(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call loses its prewarmed session; other calls are not affected."""
    async with running() as world:
        bridge = world.app.extensions["bridge"]
        fill_in, broken = bridge.setup.filled_in, iter([True])

        async def filled_in(*args: Any) -> Any:
            if next(broken, False):
                raise RuntimeError("boom")
            return await fill_in(*args)

        monkeypatch.setattr(bridge.setup, "filled_in", filled_in)
        assert await seconds_to_greeting(world) == pytest.approx(1.0, abs=0.1)
        (line,) = [line for line in world.logs if line["event"] == "prewarming crashed"]
        assert line["exc_info"]
