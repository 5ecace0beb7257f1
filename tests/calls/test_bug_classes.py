"""The bugs that bridges like this one are reported to have, each by its name, none of them here.

On the virtual clock, through the whole stack; what depends on real sockets is in
tests/endtoend/test_endings.py. Unless a test says otherwise, a call has two seconds to end.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult

import msgspec
import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection

from bridge.call.call import Call
from bridge.call.conversation import Conversation
from bridge.call.uplink import Uplink
from bridge.deepgram.session import SEND_TIMEOUT
from bridge.deepgram.session import AgentSession as OurAgentSession
from bridge.server.hypercorn.connection import GuardedTCPServer
from bridge.server.serve import hypercorn_config
from bridge.testing.agent.server import AgentSession, Behaviour
from bridge.testing.phone.phone import CallEndedError, SimulatedPhone
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say
from bridge.transport.websocket import WebSocket
from bridge.twilio.media_stream import MediaStream
from tests.alive import Alive
from tests.world import (
    QUIET,
    World,
    in_memory,
    open_media_socket,
    serve_connection,
    settings,
    start_message,
)

Clock = trio.testing.MockClock

TEARDOWN = 2.0  # call.teardown_seconds
INSTANT = 0.01  # of virtual time: as long as no task waits for another
TICK = 0.06  # call.frame_ms: what the phone says is heard at a tick, that it is gone at the next
LONG = 600.0  # seconds after which what has not happened never does

SPEECH = bytes(n % 251 for n in range(8000))
STORY = SPEECH * 30


def quiet(**knobs: Any) -> Behaviour:
    """An agent that does nothing by itself but what `knobs` say."""
    return msgspec.structs.replace(QUIET, **knobs)


async def tell_a_story(agent: AgentSession) -> None:
    await agent.say("A long story.", STORY)


# ---- complaint 4: zombies -----------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["hang_up", "drop"])
async def test_agent_session_left_open_after_hang_up(autojump_clock: Clock, leave: str) -> None:
    """When the phone is gone so is the session: closed by us, with a Close frame, at once."""
    async with in_memory() as world, world.call() as phone:
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        await phone.say(SPEECH)
        began = trio.current_time()
        await getattr(phone, leave)()
        await world.quiet()
        assert trio.current_time() - began <= 2 * TICK + INSTANT
    assert session.closed is not None
    assert (session.closed.by, session.closed.code) == ("client", 1000)
    assert world.agent.active == 0


async def test_slot_held_after_stop(autojump_clock: Clock) -> None:
    """With room for one call, the next is taken as soon as the first is torn down; not when a phone
    that said `stop` closes its socket, nor when an agent that was told goodbye answers."""
    using = settings(server={"max_calls": 1})
    async with in_memory(behaviour=quiet(answers_close=False), using=using) as world:
        async with raw_phone(world) as phone:
            await phone.start()
            await world.agent.wait_for_session()
            async with world.call() as refused:
                assert not any(isinstance(verb, ConnectStream) for verb in refused.verbs)
            began = trio.current_time()
            await phone.stop()
            await world.app.extensions["bridge"].calls.wait_until_empty()
            assert trio.current_time() - began <= TEARDOWN
            async with world.call() as taken:
                assert isinstance(taken.verbs[0], ConnectStream)
                await world.agent.wait_for_session(2)


async def test_reconnect_loop_outliving_the_call(autojump_clock: Clock) -> None:
    """Whether the agent refuses, resets or fails: no session is opened after the call has ended."""

    async def fail(agent: AgentSession) -> None:
        await (agent.reset() if agent.number == 1 else agent.error("INTERNAL_SERVER_ERROR"))

    for behaviour in (quiet(), quiet(reject_status=429), quiet(settings_error="INVALID_SETTINGS")):
        async with in_memory(fail, behaviour) as world:
            for _ in range(2):
                async with world.call() as phone:
                    await phone.wait_ended()
            await world.app.extensions["bridge"].calls.wait_until_empty()
            dialled = world.agent.connections
            await trio.sleep(LONG)
            assert world.agent.connections == dialled
            assert world.agent.active == 0


async def test_memory_growth_per_call(autojump_clock: Clock) -> None:
    """A hundred calls of all kinds, and not one object of theirs is left."""

    async def script(agent: AgentSession) -> None:
        await agent.say("Hello.", SPEECH[:800])
        if agent.number % 4 == 1:
            await agent.close()
        if agent.number % 4 == 2:
            await agent.reset()
        if agent.number % 4 == 3:
            await agent.error("INTERNAL_SERVER_ERROR")

    async def ring(number: int) -> None:
        async with world.call(strict=False) as phone:
            with suppress(CallEndedError), trio.move_on_after(1):
                await phone.wait_heard(0.05 * (number % 3))
                if number % 3 == 0:
                    await phone.drop()
                elif number % 3 == 1:
                    await phone.hang_up()
                await phone.wait_ended()

    alive = Alive(*OURS)
    async with in_memory(script) as world:
        await ring(0)
        await world.quiet()
        await settle()
        tasks = live_tasks()
        for number in range(100):
            await ring(number)
        await world.quiet()
        await settle()
        # A simulated agent's session is kept for the test to look at, and with it its task.
        world.agent.sessions.clear()
        assert alive.count() == {}
        assert live_tasks() <= tasks


OURS = (
    Call,
    MediaStream,
    OurAgentSession,
    Conversation,
    Uplink,
    WebSocket,
    GuardedTCPServer,
)


def live_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def settle() -> None:
    """Let everything end that is ending, also what waits for a while, but not for long."""
    await trio.sleep(60)
    await trio.testing.wait_all_tasks_blocked()


# ---- tasks that wait, and for what --------------------------------------------------------------


async def test_sender_blocked_forever_on_a_queue(autojump_clock: Clock) -> None:
    """The agent reads nothing for a while and the caller goes on talking: the uplink drops its
    oldest, and neither the blocked sender nor a full queue keeps the call from ending."""
    async with in_memory() as world:
        agent_wires = hold_agent_wires(world)
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            block_writes(agent_wires[0])
            await phone.say(SPEECH * 4)
            began = trio.current_time()
            await phone.hang_up()
            await world.app.extensions["bridge"].calls.wait_until_empty()
            assert trio.current_time() - began <= TEARDOWN
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
    # All but what the queue holds, two seconds, and the frame that was on its way.
    assert world.ending["dropped_bytes"] == pytest.approx(8000 * (4 - 2), abs=8000 * 0.3)


async def test_sender_blocked_forever_on_a_socket(autojump_clock: Clock) -> None:
    """An agent that never reads again is lost after SEND_TIMEOUT, although it still speaks."""
    async with in_memory(tell_a_story, quiet(speed=1.0)) as world:
        agent_wires = hold_agent_wires(world)
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            block_writes(agent_wires[0])
            began = trio.current_time()
            await phone.wait_ended()
            assert trio.current_time() - began <= SEND_TIMEOUT + TEARDOWN
        await world.quiet()
    assert world.ending["outcome"] == "agent_failed"


async def test_blocked_send_freezing_the_watchdog(autojump_clock: Clock) -> None:
    """A phone that does not read holds up nothing but its own agent's voice: its own `stop` is
    heard, and tasks of the server and other calls go on as if nothing were."""
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(trio.current_time())
            await trio.sleep(0.1)

    async def script(agent: AgentSession) -> None:
        await agent.say("words", STORY if agent.number == 1 else SPEECH)

    async with in_memory(script, quiet(speed=0.0)) as world, trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        async with raw_phone(world) as stuck:
            stuck.block_servers_writes()
            await stuck.start()
            await world.agent.wait_for_session()
            began = trio.current_time()
            async with world.call() as other:
                await other.say(SPEECH)
                await other.wait_heard(1.0)
                assert trio.current_time() - began <= 1.0 + 2 * INSTANT
                assert len(world.app.extensions["bridge"].calls) == 2
                stopped = trio.current_time()
                await stuck.stop()
                await other.hang_up()
                await world.quiet()
                assert trio.current_time() - stopped <= TEARDOWN
        assert other.received_audio == SPEECH
        nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in itertools.pairwise(beats)]
    assert max(gaps) <= 0.1 + INSTANT
    outcomes = [line["outcome"] for line in world.logs if line["event"] == "call ended"]
    assert outcomes == ["caller_hung_up"] * 2


@pytest.mark.parametrize("gone", ["phone", "agent", "both"])
async def test_busy_loop_after_disconnect(autojump_clock: Clock, gone: str) -> None:
    """After a disconnect the process does nothing: hardly a step of the scheduler to clean up, and
    none for ten minutes, in which a live call would have taken a hundred thousand."""
    async with in_memory(tell_a_story, quiet(answers_close=False)) as world:
        async with world.call(strict=False) as phone:
            session = await world.agent.wait_for_session()
            await phone.wait_heard(0.5)
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            if gone in ("agent", "both"):
                await session.reset()
            if gone in ("phone", "both"):
                await phone.drop()
            await phone.wait_ended()
            await world.app.extensions["bridge"].calls.wait_until_empty()
        await settle()
        assert steps.taken <= 1000
        steps.taken = 0
        await trio.sleep(LONG)
        trio.lowlevel.remove_instrument(steps)
        assert steps.taken <= 10


class Steps(trio.abc.Instrument):
    """Counts what the scheduler does."""

    def __init__(self) -> None:
        self.taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


# ---- hanging up when it does not suit -----------------------------------------------------------


@pytest.mark.parametrize("speed", [0.0, 1.0, 20.0])
async def test_hang_up_while_the_agent_speaks(autojump_clock: Clock, speed: float) -> None:
    """Agent audio, buffered or still to come, does not delay the end of the call."""
    async with in_memory(tell_a_story, quiet(speed=speed)) as world, world.call() as phone:
        await phone.wait_heard(0.5)
        began = trio.current_time()
        await phone.hang_up()
        await world.quiet()
        assert trio.current_time() - began <= TICK + INSTANT
    assert world.ending["outcome"] == "caller_hung_up"
    assert levels(world) == ["info", "info"]


@pytest.mark.parametrize("read_on", [True, False])
async def test_half_closed_phone(autojump_clock: Clock, read_on: bool) -> None:
    """A phone that closes its sending half has ended the call, whether or not it still listens."""
    async with in_memory(tell_a_story) as world, raw_phone(world) as phone:
        await phone.start()
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        if not read_on:
            phone.block_servers_writes()
        began = trio.current_time()
        await phone.stream.send_eof()
        await world.quiet()
        assert trio.current_time() - began <= TEARDOWN
        assert world.ending["outcome"] == "phone_lost"


@pytest.mark.parametrize(
    "stage", ["before start", "connecting", "handshake", "welcome", "settings"]
)
@pytest.mark.parametrize("how", ["stop", "lose"])
async def test_hang_up_before_the_session_is_up(
    autojump_clock: Clock, stage: str, how: str
) -> None:
    """However far the agent's session has come, it is given up at once, nothing of it is left, and
    it does not come up for a caller who is gone."""
    knobs: dict[str, Any] = {
        "handshake": {"answers_handshake": False},
        "welcome": {"sends_welcome": False},
        "settings": {"applies_settings": False},
    }.get(stage, {})
    async with in_memory(behaviour=quiet(**knobs)) as world, raw_phone(world) as phone:
        wires = hold_agent_wires(world, connect=stage != "connecting")
        if stage != "before start":
            await phone.start()
        await trio.sleep(1)
        assert len(wires) == (stage not in ("before start", "connecting"))
        began = trio.current_time()
        if how == "stop":
            await phone.stop()
        await phone.lose()
        await world.quiet()
        assert trio.current_time() - began <= 2 * TICK + INSTANT
        await trio.sleep(LONG)
        for wire in wires:
            with pytest.raises(trio.ClosedResourceError):
                await wire.receive_some()
        assert world.agent.active == 0
        stopped = how == "stop" and stage != "before start"
        assert world.ending["outcome"] == ("caller_hung_up" if stopped else "phone_lost")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("agents_way", ["close", "reset", "error"])
@pytest.mark.parametrize("phones_way", ["hang_up", "drop"])
async def test_both_ends_racing_to_end(
    autojump_clock: Clock, agents_way: str, phones_way: str, seed: int
) -> None:
    """Both end the call in the same instant, in some order of the scheduler's: one of them is the
    outcome, once, and nothing is left."""
    now = trio.Event()

    async def script(agent: AgentSession) -> None:
        await now.wait()
        for _ in range(seed):  # a few steps later, which is still the same instant
            await trio.lowlevel.checkpoint()
        if agents_way == "error":
            await agent.error("INTERNAL_SERVER_ERROR")
        await (agent.close(1000) if agents_way == "close" else agent.reset())

    async with in_memory(script) as world, world.call(strict=False) as phone:
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        began = trio.current_time()
        now.set()
        await getattr(phone, phones_way)()
        await world.quiet()
        assert trio.current_time() - began <= TEARDOWN
    phones = "caller_hung_up" if phones_way == "hang_up" else "phone_lost"
    agents = "agent_ended" if agents_way == "close" else "agent_failed"
    assert world.ending["outcome"] in (phones, agents)
    assert not any("exc_info" in line for line in world.logs)


async def test_symptom_reported_as_the_cause(autojump_clock: Clock) -> None:
    """The agent fails and says no goodbye; the caller, who has heard nothing for half a second,
    hangs up. The call failed before that, and the phone has been told so, at once."""

    async def fail(agent: AgentSession) -> None:
        failed_at.append(trio.current_time())
        await agent.error("INTERNAL_SERVER_ERROR", close=False)

    failed_at: list[float] = []
    async with in_memory(fail, quiet(answers_close=False)) as world, raw_phone(world) as phone:
        await phone.start()
        await trio.sleep(0.5)
        with suppress(ConnectionClosed):
            await phone.stop()
        await world.app.extensions["bridge"].calls.wait_until_empty()
        assert trio.current_time() - failed_at[0] <= TEARDOWN
        assert phone.closed_at is not None
        assert phone.closed_at - failed_at[0] <= INSTANT
    assert world.ending["outcome"] == "agent_failed"


@pytest.mark.parametrize("knobs", [{"sends_welcome": False}, {"applies_settings": False}])
async def test_phone_kept_waiting_for_the_agents_goodbye(
    autojump_clock: Clock, knobs: dict[str, Any]
) -> None:
    """An agent that never got ready says no goodbye either. The phone gets its own, a Close frame,
    when the agent is given up, and not when nothing more can be waited for."""
    async with in_memory(behaviour=quiet(answers_close=False, **knobs)) as world:
        async with world.call() as phone:
            began = trio.current_time()
            closed = await phone.wait_event("closed")
            gave_up = began + settings().deepgram.connect_timeout
            assert trio.current_time() - gave_up <= INSTANT
            assert closed.text == "1000"
            await phone.wait_ended()
    assert world.ending["outcome"] == "agent_unreachable"


@pytest.mark.parametrize("answers_close", [True, False])
@pytest.mark.parametrize("then", ["hang_up", "drop"])
async def test_error_lost_when_the_caller_hangs_up_after_it(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, answers_close: bool, then: str
) -> None:
    """A bug in our own code ends the call, and the phone leaves while the agent is still told
    goodbye: the outcome stays `internal_error`, with its traceback."""

    class Bug(Exception):
        pass

    async def follow(self: Conversation, *args: Any, **more: Any) -> None:
        await trio.sleep(1)
        raise Bug

    monkeypatch.setattr(Conversation, "follow", follow)
    async with in_memory(behaviour=quiet(answers_close=answers_close)) as world:
        async with world.call(strict=False) as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await trio.sleep(1)
            await getattr(phone, then)()
            await world.app.extensions["bridge"].calls.wait_until_empty()
    # In the same instant either may have been the first; but the error is never lost.
    (line,) = [line for line in world.logs if line["event"] == "call ended"]
    assert "Bug" in repr(line.get("exc_info"))


TOOLS = '''
import threading
import trio
from bridge.functions import function

asked, cancelled, release = [], [], threading.Event()

@function(deadline=600.0)
async def wait_patiently() -> str:
    """Waits for what never comes."""
    asked.append("wait_patiently")
    try:
        await trio.sleep_forever()
    finally:
        cancelled.append("wait_patiently")

@function(deadline=600.0)
def hold_a_thread() -> str:
    """Waits in a thread, where nothing can be cancelled."""
    asked.append("hold_a_thread")
    release.wait(60)
    return "too late"
'''


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of functions that do not come to an end, as a user would write one."""
    name = "tools_that_do_not_end"
    (tmp_path / f"{name}.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = __import__(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.parametrize("tool", ["wait_patiently", "hold_a_thread"])
@pytest.mark.parametrize("leave", ["hang_up", "drop"])
async def test_tool_in_flight_at_hang_up(
    autojump_clock: Clock, tools: ModuleType, tool: str, leave: str
) -> None:
    """The function ends with the call, or, in a thread, is abandoned; either way its answer is not
    sent, and the call does not wait for it longer than for its other tasks."""

    async def script(agent: AgentSession) -> None:
        await agent.call_functions([{"name": tool}])

    using = settings(functions={"module": tools.__name__})
    try:
        async with in_memory(script, using=using) as world, world.call() as phone:
            session = await world.agent.wait_for_session()
            with trio.fail_after(60):
                while not tools.asked:  # noqa: ASYNC110 - it may run in a thread
                    await trio.sleep(0.1)
            began = trio.current_time()
            await getattr(phone, leave)()
            await world.quiet()
            assert trio.current_time() - began <= TEARDOWN
        (call,) = session.calls.all.values()
        assert call.response is None
        assert tools.cancelled == (["wait_patiently"] if tool == "wait_patiently" else [])
        outcome = "caller_hung_up" if leave == "hang_up" else "phone_lost"
        assert world.ending["outcome"] == outcome
        assert not any("exc_info" in line for line in world.logs)
    finally:
        tools.release.set()


# ---- what is said about it, and to whom ---------------------------------------------------------


async def hang_up(phone: SimulatedPhone, agent: AgentSession) -> None:
    await phone.hang_up()


async def hang_up_speaking(phone: SimulatedPhone, agent: AgentSession) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_in_vain, phone)
        nursery.start_soon(agent.say, "A long story.", STORY)
        await trio.sleep(0.5)
        await phone.hang_up()
        nursery.cancel_scope.cancel()


async def agent_hangs_up(phone: SimulatedPhone, agent: AgentSession) -> None:
    agent.nursery.start_soon(partial(agent.call_functions, [{"name": "end_call"}]))
    await agent.wait_for_message("FunctionCallResponse")
    await agent.close(1000)
    await phone.wait_ended()


async def say_in_vain(phone: SimulatedPhone) -> None:
    with pytest.raises(CallEndedError):
        await phone.say(STORY)


@pytest.mark.parametrize("answers_close", [True, False])
@pytest.mark.parametrize("end", [hang_up, hang_up_speaking, agent_hangs_up])
async def test_traceback_on_normal_hang_up(
    autojump_clock: Clock,
    end: Callable[[SimulatedPhone, AgentSession], Awaitable[None]],
    answers_close: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A normal end is one line at level info, and no line of any library's."""
    async with in_memory(behaviour=quiet(answers_close=answers_close)) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await end(phone, session)
        await world.quiet()
    lines = [line for line in world.logs if line["log_level"] != "debug"]
    function = ["function call"] if end is agent_hangs_up else []
    assert [line["event"] for line in lines] == ["call started", *function, "call ended"]
    assert set(levels(world)) == {"info"}
    assert not any("exc_info" in line for line in world.logs)
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


async def test_traceback_when_the_agent_speaks_on_after_stop(autojump_clock: Clock) -> None:
    """The caller's last words take their time, since the agent reads slowly, while it goes on
    speaking to a phone that was sent Close and has not answered yet. Neither side is at fault: one
    line, at level info."""
    async with in_memory(tell_a_story, quiet(speed=1.0)) as world, raw_phone(world) as phone:
        agent_wires = hold_agent_wires(world)
        await phone.start()
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        await trio.sleep(0.1)
        block_writes(agent_wires[0])
        await trio.sleep(0.3)
        began = trio.current_time()
        await phone.stop()
        phone.keep_silent()
        await world.app.extensions["bridge"].calls.wait_until_empty()
        assert trio.current_time() - began <= TEARDOWN
    assert world.ending["outcome"] == "caller_hung_up"
    assert levels(world) == ["info", "info"]
    assert not any("exc_info" in line for line in world.logs)


def levels(world: World) -> list[str]:
    return [line["log_level"] for line in world.logs if line["log_level"] != "debug"]


async def test_state_shared_between_two_calls(autojump_clock: Clock) -> None:
    """Two calls at once, a third after them: each has its own agent, its own audio, its own facts,
    its own interruption and its own end. Nothing crosses, and nothing is inherited."""
    voices = {1: b"\x11", 2: b"\x22", 3: b"\x33"}
    callers = {1: "+15551110001", 2: "+15552220002", 3: "+15553330003"}
    both = trio.Event()

    async def script(agent: AgentSession) -> None:
        await both.wait()
        if agent.number == 2:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.say, "words", voices[2] * 80_000)
                await trio.sleep(0.5)
                await agent.user_started_speaking()
        else:
            await agent.say("words", voices[agent.number] * 8000)

    async with in_memory(script) as world, AsyncExitStack() as stack:
        first = await stack.enter_async_context(world.call(from_number=callers[1]))
        await world.agent.wait_for_session(1)
        second = await stack.enter_async_context(world.call(from_number=callers[2]))
        await world.agent.wait_for_session(2)
        both.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.say, b"\x44" * 16_000)
            nursery.start_soon(second.say, b"\x55" * 4000)
            await second.wait_event("clear")
        await second.drop()
        await first.wait_heard(1.0)
        await first.hang_up()
        third = await stack.enter_async_context(world.call(from_number=callers[3]))
        await third.wait_heard(1.0)
        await third.hang_up()
        await world.quiet()
    phones = {1: first, 2: second, 3: third}
    outcomes = {1: "caller_hung_up", 2: "phone_lost", 3: "caller_hung_up"}
    ends = {line["call_sid"]: line for line in world.logs if line["event"] == "call ended"}
    begins = [line["caller"] for line in world.logs if line["event"] == "call started"]
    for number, phone in phones.items():
        # Sessions are numbered as they were opened, and the first two as they were called.
        session = world.agent.sessions[number - 1]
        assert set(phone.received_audio) == set(voices[number])
        assert bytes(session.received_audio) == phone.sent_audio
        assert [event.kind for event in phone.events].count("clear") == (number == 2)
        line = ends[phone.call_sid]
        assert line["outcome"] == outcomes[number]
        assert line["from_phone_bytes"] == len(phone.sent_audio)
        assert line["to_phone_bytes"] == len(phone.received_audio)
    assert len(ends) == 3
    assert begins == [*callers.values()]
    bridge = world.app.extensions["bridge"]
    assert [(await bridge.recorder.ending_of(phones[n].call_sid)).outcome for n in phones] == [
        *outcomes.values()
    ]


async def test_the_apology_is_the_failed_calls_own(autojump_clock: Clock) -> None:
    """One call's agent fails, the other's says goodbye: only one caller hears the apology."""

    async def script(agent: AgentSession) -> None:
        if agent.number == 2:
            await agent.call_functions([{"name": "end_call"}])
        await together.wait()
        await (agent.reset() if agent.number == 1 else agent.close(1000))

    together = trio.Event()
    async with in_memory(script) as world, world.call() as one:
        await world.agent.wait_for_session(1)
        async with world.call() as other:
            await world.agent.wait_for_session(2)
            together.set()
            await one.wait_ended()
            await other.wait_ended()
    assert one.verbs[1:] == [Say(settings().words.apology), Hangup()]
    assert other.verbs[1:] == [Hangup()]


# ---- help ---------------------------------------------------------------------------------------


def hold_agent_wires(world: World, *, connect: bool = True) -> list[Any]:
    """Our ends of the connections to the agent, from now on; without `connect`, none comes up."""
    bridge = world.app.extensions["bridge"]
    to_agent, wires = bridge.setup.open_stream, []

    async def open_stream(target: SplitResult) -> trio.abc.Stream:
        if not connect:
            await trio.sleep_forever()
        wires.append(await to_agent(target))
        return wires[-1]

    bridge.setup.open_stream = open_stream
    return wires


def block_writes(stream: Any) -> None:
    """From now on a write to this memory stream does not return, as when the peer does not read
    and the kernel's buffers are full."""
    deliver = stream.send_stream.send_all_hook

    async def deliver_and_block() -> None:
        await deliver()  # what is left lying in a memory stream would be in front of its EOF
        await trio.sleep_forever()

    stream.send_stream.send_all_hook = deliver_and_block


class RawPhone:
    """A phone's socket without a phone: nothing is sent or answered by itself but pongs."""

    def __init__(
        self,
        app: Any,
        socket: WebSocketConnection,
        stream: Any,
        servers_end: Any,
        nursery: trio.Nursery,
    ) -> None:
        self._app = app
        self.socket = socket
        self.stream = stream
        self._servers_end = servers_end
        self._nursery = nursery
        self.closed_at: float | None = None

    async def start(self) -> None:
        await self.socket.send_message('{"event":"connected","protocol":"Call","version":"1.0.0"}')
        await self.socket.send_message(start_message(self._app))
        self._nursery.start_soon(self._listen)

    async def stop(self) -> None:
        await self.socket.send_message('{"event":"stop","streamSid":"MZ1"}')

    async def lose(self) -> None:
        """The connection is gone, without a word."""
        await trio.aclose_forcefully(self.stream)

    def keep_silent(self) -> None:
        """Say nothing more, not even the answer to a Close."""
        self.stream.send_stream.send_all_hook = trio.sleep_forever

    def block_servers_writes(self) -> None:
        """As when the phone has stopped reading and the buffers are full."""
        block_writes(self._servers_end)

    async def _listen(self) -> None:
        try:
            while True:
                await self.socket.get_message()
        except ConnectionClosed:
            self.closed_at = trio.current_time()


@asynccontextmanager
async def raw_phone(world: World) -> AsyncIterator[RawPhone]:
    """A media socket to the server of `world`, open."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, world.app, hypercorn_config(settings()), theirs)
        async with trio.open_nursery() as reader:
            socket = await open_media_socket(reader, ours)
            yield RawPhone(world.app, socket, ours, theirs, reader)
            await trio.aclose_forcefully(ours)
            reader.cancel_scope.cancel(reason="the test has let go of the phone")
