"""Every way in which a call can end, for real: the server under hypercorn, on real sockets.

Each test says who notices and which outcome is recorded. What holds after all of them is asserted
by `scene`: one line per call, no traceback, no complaint about a normal end; and no task,
descriptor, agent session or slot left. Times are bounded with much slack for slow machines; that
the bounds are exact is shown on the virtual clock, in tests/sweep and tests/calls.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from bridge.deepgram import session as agent_session
from bridge.http import media_socket
from bridge.testing.agent.server import AgentSession, Behaviour
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import Hangup, Say
from bridge.testing.speech import SILENCE
from bridge.transport import tcp_keepalive as vanished
from tests.endtoend.scene import (
    SLACK,
    TEARDOWN,
    USING,
    Line,
    Stage,
    at_once,
    scene,
    until,
    until_closed,
)
from tests.world import AUTH_TOKEN, QUIET, settings, start_message

# A long story, and one word of it. No byte of either is silence.
STORY = bytes(n % 251 for n in range(251)) * 4000  # two minutes
WORD = STORY[:1600]

# An agent that does not take a call is given up after so long.
HASTY = settings(call={"teardown_seconds": TEARDOWN}, deepgram={"connect_timeout": 0.5})

# What may pass is asked for again for so long.
IMPATIENT = settings(call={"teardown_seconds": TEARDOWN}, deepgram={"connect_budget": 0.5})

# The caller's last words have their time even where everything takes long.
PATIENT = settings(call={"teardown_seconds": 10})

WRITE_TIMEOUT = 1.0


def quiet(**knobs: Any) -> Behaviour:
    """An agent that does nothing by itself but what `knobs` say."""
    return msgspec.structs.replace(QUIET, **knobs)


async def tell_a_story(agent: AgentSession) -> None:
    """Say more than anybody listens to, faster than it can be heard."""
    await agent.say("A long story.", STORY)


async def ask_for_a_function(agent: AgentSession) -> None:
    """Ask for something, and do not care whether it is answered."""
    await agent.call_functions([{"name": "look_it_up", "arguments": {"what": "it"}}])


@pytest.fixture
def soon_noticed(monkeypatch: pytest.MonkeyPatch) -> float:
    """A peer that has vanished is noticed within the returned seconds, the kernel's rounding
    included."""
    for name in ("IDLE_SECONDS", "PROBE_INTERVAL_SECONDS", "MAX_PROBES", "UNACKNOWLEDGED_SECONDS"):
        monkeypatch.setattr(vanished, name, 1)
    return 4.0


@pytest.fixture
def hasty_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that reads nothing is given up sooner."""
    monkeypatch.setattr(media_socket, "WRITE_TIMEOUT", WRITE_TIMEOUT)


# ---- the phone ends it, in each phase -----------------------------------------------------------


async def hang_up(phone: SimulatedPhone, line: Line) -> None:
    """`stop`, then Close: the caller has hung up."""
    await phone.hang_up()


async def lose(phone: SimulatedPhone, line: Line) -> None:
    """FIN without a word: Twilio has lost the call."""
    await phone.drop()


async def reset(phone: SimulatedPhone, line: Line) -> None:
    """RST: what Twilio ran on is gone."""
    line.reset()
    await phone.drop()


Leave = Callable[[SimulatedPhone, Line], Awaitable[None]]

ways_to_leave = pytest.mark.parametrize(
    ("leave", "outcome"),
    [(hang_up, "caller_hung_up"), (lose, "phone_lost"), (reset, "phone_lost")],
)


@pytest.mark.parametrize("how", ["close", "fin", "reset"])
async def test_the_phone_leaves_before_start(how: str) -> None:
    """The receiver notices, `phone_lost`; no agent is dialled for nobody."""
    async with scene() as stage, stage.media_socket() as (socket, line):
        await socket.send_message('{"event":"connected","protocol":"Call","version":"1.0.0"}')
        began = trio.current_time()
        if how == "close":
            await socket.aclose()
        elif how == "fin":
            line.half_close()
        else:
            line.reset()
        ended = await stage.ended("phone_lost", since=began, reason="before start")
        assert ended["call_sid"] == ""
        assert stage.agent.connections == 0


async def test_the_phone_never_says_start() -> None:
    """The receiver notices after `call.start_timeout`, `protocol_error`: the socket is closed with
    1002, and no agent is dialled."""
    using = settings(call={"teardown_seconds": TEARDOWN, "start_timeout": 0.3})
    async with scene(using=using) as stage, stage.media_socket() as (socket, _):
        began = trio.current_time()
        assert await until_closed(socket) == 1002
        await stage.ended("protocol_error", since=began + 0.3, reason="no start message")
        assert stage.agent.connections == 0


@ways_to_leave
async def test_the_phone_leaves_while_the_agent_connects(leave: Leave, outcome: str) -> None:
    """The receiver notices; the half-open connection to the agent is closed, not waited for."""
    async with scene(behaviour=quiet(answers_handshake=False)) as stage:
        async with stage.call() as phone:
            await until(lambda: stage.agent.connections == 1)
            began = trio.current_time()
            await leave(phone, stage.lines[-1])
            await stage.ended(outcome, since=began)
        assert stage.agent.opened == 0


@ways_to_leave
async def test_the_phone_leaves_before_settings_are_applied(leave: Leave, outcome: str) -> None:
    """The receiver notices; the session that was opened, but not yet used, is closed."""
    async with scene(behaviour=quiet(applies_settings=False)) as stage, stage.call() as phone:
        session = await stage.agent.wait_for_session()
        await until(lambda: session.settings is not None)
        began = trio.current_time()
        await leave(phone, stage.lines[-1])
        await stage.ended(outcome, since=began)


@ways_to_leave
async def test_the_phone_leaves_during_the_greeting(leave: Leave, outcome: str) -> None:
    """The receiver notices while the agent speaks; the session is closed from our side."""
    greeting = "Hello, and welcome, and thank you for calling, and how can I help you today?"
    async with scene(behaviour=quiet(greeting=greeting, speed=1.0)) as stage:
        async with stage.call() as phone:
            await phone.wait_heard(0.1)
            began = trio.current_time()
            await leave(phone, stage.lines[-1])
            await stage.ended(outcome, since=began)
        (session,) = stage.agent.sessions
        assert session.closed is not None
        assert (session.closed.by, session.closed.code) == ("client", 1000)


@ways_to_leave
async def test_the_phone_leaves_in_the_middle_of_a_reply(leave: Leave, outcome: str) -> None:
    """The receiver notices although the agent's voice comes as fast as the phone takes it."""
    async with scene(tell_a_story, quiet(speed=0.0)) as stage, stage.call() as phone:
        await phone.wait_heard(0.1)
        began = trio.current_time()
        await leave(phone, stage.lines[-1])
        await stage.ended(outcome, since=began)


@ways_to_leave
async def test_the_phone_leaves_during_a_function_call(leave: Leave, outcome: str) -> None:
    """The receiver notices; the function, running or answered, is no reason to stay."""
    async with scene(ask_for_a_function) as stage, stage.call() as phone:
        session = await stage.agent.wait_for_session()
        await until(lambda: session.calls.all)
        began = trio.current_time()
        await leave(phone, stage.lines[-1])
        await stage.ended(outcome, since=began)


@ways_to_leave
async def test_the_phone_leaves_during_teardown(leave: Leave, outcome: str) -> None:
    """The agent reader has noticed an Error, and the agent never says goodbye. That the phone
    leaves while that is waited for is no news: `agent_failed`, once, and in time."""

    async def fail(agent: AgentSession) -> None:
        await agent.error("INTERNAL_SERVER_ERROR", close=False)

    using = settings(call={"teardown_seconds": 2 * TEARDOWN})
    async with scene(fail, quiet(answers_close=False), using) as stage:
        # A phone which sees the Close frame is gone before it can leave: this one is deaf to it.
        async with stage.call(strict=False) as phone:
            stage.lines[-1].stop_reading()
            with trio.fail_after(SLACK):
                await until(lambda: any(call.report.outcome for call in stage.calls))
            began = trio.current_time()
            assert stage.log.endings() == []
            await leave(phone, stage.lines[-1])
            error = "INTERNAL_SERVER_ERROR"
            await stage.ended("agent_failed", since=began, within=2 * TEARDOWN, reason=error)


async def test_the_last_words_are_heard_by_an_agent_that_never_says_goodbye() -> None:
    """The receiver notices `stop`; what was said before is passed on, and an agent that does not
    answer our Close is cut off within the teardown."""
    async with scene(behaviour=quiet(answers_close=False)) as stage:
        async with stage.call() as phone:
            session = await stage.agent.wait_for_session()
            await until(lambda: session.received_bytes)
            await phone.say(WORD)
            began = trio.current_time()
            await phone.hang_up()
            await stage.ended("caller_hung_up", since=began)
        assert WORD in bytes(session.received_audio)


async def test_a_stopped_phone_need_not_close() -> None:
    """After `stop` it is the server that closes the socket and TCP, whatever the phone does."""
    async with scene() as stage, stage.media_socket() as (socket, line):
        await start(stage, socket)
        await stage.agent.wait_for_session()
        began = trio.current_time()
        await socket.send_message('{"event":"stop","streamSid":"MZ1"}')
        assert await until_closed(socket) == 1000
        await stage.ended("caller_hung_up", since=began)
        await line.over.wait()


async def test_stop_and_close_in_one_breath() -> None:
    """The phone's last words, `stop` and Close come in one segment of TCP, as after a stall: the
    receiver notices `stop`, hypercorn answers Close meanwhile, and neither gets into the other's
    way. All is heard, `caller_hung_up`, and no error is hidden behind that; twenty times."""
    async with scene(using=PATIENT, calls=20) as stage:
        for number in range(1, 21):
            async with stage.media_socket() as (socket, line):
                await start(stage, socket)
                session = await stage.agent.wait_for_session(number)
                await until(lambda session=session: session.received_bytes)
                wire = Connection(ConnectionType.CLIENT)
                said = wire.send(TextMessage(data=MEDIA)) * 10
                stop = wire.send(TextMessage(data='{"event":"stop","streamSid":"MZ1"}'))
                began = trio.current_time()
                await line.send_all(said + stop + wire.send(CloseConnection(code=1000)))
                await line.over.wait()
                await stage.ended("caller_hung_up", since=began, number=number)
                assert bytes(session.received_audio).count(b"\x55") == 10 * 160


# ---- half open ----------------------------------------------------------------------------------


async def test_a_phone_that_says_fin_and_goes_on_listening() -> None:
    """The receiver notices the FIN, `phone_lost`: half a phone is none. The other half is told."""
    async with scene() as stage, stage.media_socket() as (socket, line):
        await start(stage, socket)
        session = await stage.agent.wait_for_session()
        await until(lambda: session.received_bytes)
        began = trio.current_time()
        line.half_close()
        await line.over.wait()
        await stage.ended("phone_lost", since=began)
        assert session.closed is not None
        assert session.closed.by == "client"


async def test_an_agent_that_says_fin_and_goes_on_listening() -> None:
    """The agent reader notices the FIN, `agent_failed`: the caller hears the apology."""
    async with scene(failing_agent_lines=True) as stage:
        async with stage.call() as phone:
            session = await stage.agent.wait_for_session()
            await until(lambda: session.received_bytes)
            began = trio.current_time()
            line = stage.agent_lines[0]
            assert isinstance(line, Line)
            line.half_close()
            await phone.wait_ended()
            await stage.ended("agent_failed", since=began, reason="lost")
        assert phone.verbs[1:] == [Say(USING.words.apology), Hangup()]


async def test_a_phone_that_disappears_while_the_agent_speaks(hasty_writes: None) -> None:
    """No FIN comes. The write to the phone notices, after WRITE_TIMEOUT: `phone_lost`."""
    async with scene(tell_a_story, quiet(speed=20.0), small_buffers=True) as stage:
        async with stage.call(strict=False) as phone:
            await phone.wait_heard(0.05)
            line, began = stage.lines[-1], trio.current_time()
            line.vanish()
            await stage.ended("phone_lost", since=began, within=WRITE_TIMEOUT + TEARDOWN)
            line.reset()


async def test_a_phone_that_disappeared_before_the_agent_closes() -> None:
    """The agent reader notices that the agent closes, `agent_failed`; the phone does not take its
    Close frame's answer to the grave."""

    async def leave(agent: AgentSession) -> None:
        await gone.wait()
        await agent.close(1000)

    gone = trio.Event()
    async with scene(leave) as stage, stage.call(strict=False):
        session = await stage.agent.wait_for_session()
        await until(lambda: session.received_bytes)
        line, began = stage.lines[-1], trio.current_time()
        line.vanish()
        gone.set()
        await stage.ended("agent_failed", since=began)
        line.reset()


async def test_an_agent_that_disappeared_before_the_caller_hangs_up() -> None:
    """The receiver notices `stop`, `caller_hung_up`; the agent that answers nothing is cut off."""
    async with scene(failing_agent_lines=True) as stage, stage.call() as phone:
        session = await stage.agent.wait_for_session()
        await until(lambda: session.received_bytes)
        line = stage.agent_lines[0]
        assert isinstance(line, Line)
        line.vanish()
        await phone.say(WORD)
        began = trio.current_time()
        await phone.hang_up()
        await stage.ended("caller_hung_up", since=began)
        await trio.aclose_forcefully(line)


async def test_a_phone_whose_cable_is_cut_during_silence(soon_noticed: float) -> None:
    """Nothing comes, and nothing is sent. The kernel asks for a sign of life: `phone_lost`."""
    async with scene() as stage, stage.call(strict=False, silence_frames=False):
        session = await stage.agent.wait_for_session()
        await until(lambda: session.received_bytes)
        line, began = stage.lines[-1], trio.current_time()
        line.cut()
        await stage.ended("phone_lost", since=began, within=soon_noticed + TEARDOWN)
        line.reset()


async def test_a_phone_whose_cable_is_cut_while_the_agent_speaks(soon_noticed: float) -> None:
    """The kernel's buffers take all that is said. It is not acknowledged: `phone_lost`."""
    cut = trio.Event()

    async def speak(agent: AgentSession) -> None:
        await cut.wait()
        await agent.say("A few words.", 10 * WORD)

    async with scene(speak, quiet(speed=20.0)) as stage:
        async with stage.call(strict=False):
            session = await stage.agent.wait_for_session()
            await until(lambda: session.received_bytes)
            line, began = stage.lines[-1], trio.current_time()
            line.cut()
            cut.set()
            await stage.ended("phone_lost", since=began, within=soon_noticed + TEARDOWN)
            line.reset()


async def test_an_agent_whose_cable_is_cut(soon_noticed: float) -> None:
    """What the caller says is not acknowledged. The agent reader notices: `agent_failed`."""
    async with scene(failing_agent_lines=True) as stage, stage.call() as phone:
        session = await stage.agent.wait_for_session()
        await until(lambda: session.received_bytes)
        line, began = stage.agent_lines[0], trio.current_time()
        assert isinstance(line, Line)
        line.cut()
        await stage.ended(
            "agent_failed", since=began, within=soon_noticed + TEARDOWN, reason="lost"
        )
        await phone.wait_ended()
        line.reset()


# ---- nobody reads -------------------------------------------------------------------------------


async def test_a_phone_that_stops_reading_while_the_agent_speaks(hasty_writes: None) -> None:
    """The phone still sends, and never reads. The write notices, after WRITE_TIMEOUT:
    `phone_lost`."""
    async with scene(tell_a_story, quiet(speed=20.0), small_buffers=True) as stage:
        async with stage.call(strict=False) as phone:
            await phone.wait_heard(0.05)
            line, began = stage.lines[-1], trio.current_time()
            line.stop_reading()
            await stage.ended("phone_lost", since=began, within=WRITE_TIMEOUT + TEARDOWN)
            line.reset()


@pytest.mark.parametrize("how", ["stop", "reset"])
async def test_a_phone_that_stops_reading_and_leaves(how: str) -> None:
    """The receiver notices at once, although the agent's voice is stuck on its way to the phone;
    the write is given up within the teardown."""
    async with scene(tell_a_story, quiet(speed=0.0), small_buffers=True) as stage:
        async with stage.media_socket() as (socket, line):
            await start(stage, socket)
            session = await stage.agent.wait_for_session()
            line.stop_reading()
            # As long as more of the story goes out, nothing is stuck yet.
            await wait_until_still(lambda: session.sent_audio_bytes)
            began = trio.current_time()
            if how == "stop":
                await socket.send_message('{"event":"stop","streamSid":"MZ1"}')
                await stage.ended("caller_hung_up", since=began)
            else:
                line.reset()
                await stage.ended("phone_lost", since=began)


async def test_an_agent_that_stops_reading_while_the_caller_talks() -> None:
    """Nobody ends the call: the caller's oldest words are dropped, the agent is still heard, and
    `stop` is noticed by the receiver at once."""

    async def speak_deafly(agent: AgentSession) -> None:
        await full.wait()
        await agent.say("Pardon?", WORD)

    full = trio.Event()
    stages = scene(speak_deafly, quiet(speed=0.0), small_buffers=True, failing_agent_lines=True)
    async with stages as stage, stage.media_socket() as (socket, _):
        await start(stage, socket)
        session = await stage.agent.wait_for_session()
        await until(lambda: session.received_bytes)
        agent_line = stage.agent_lines[0]
        assert isinstance(agent_line, Line)
        agent_line.stop_reading()
        for _ in range(20 * 50):  # twenty seconds of speech in no time
            await socket.send_message(MEDIA)
        full.set()
        while '"media"' not in await socket.get_message():
            pass
        began = trio.current_time()
        await socket.send_message('{"event":"stop","streamSid":"MZ1"}')
        line = await stage.ended("caller_hung_up", since=began)
        assert line["dropped_bytes"] > 0
        assert line["from_phone_frames"] == 20 * 50
        assert line["to_phone_bytes"] == len(WORD)
        await trio.aclose_forcefully(agent_line)


async def test_an_agent_that_never_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender notices, after SEND_TIMEOUT: `agent_failed`, although the agent still speaks."""
    monkeypatch.setattr(agent_session, "SEND_TIMEOUT", WRITE_TIMEOUT)
    stages = scene(tell_a_story, small_buffers=True, failing_agent_lines=True)
    async with stages as stage, stage.media_socket() as (socket, _):
        await start(stage, socket)
        agent = await stage.agent.wait_for_session()
        await until(lambda: agent.received_bytes)
        agent_line = stage.agent_lines[0]
        assert isinstance(agent_line, Line)
        agent_line.stop_reading()
        began = trio.current_time()

        async def talk() -> None:
            with suppress(ConnectionClosed):
                while True:
                    await socket.send_message(MEDIA)
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            assert await until_closed(socket) == 1000
        within = WRITE_TIMEOUT + TEARDOWN
        await stage.ended("agent_failed", since=began, within=within, reason="not read")
        await trio.aclose_forcefully(agent_line)


# ---- the agent ends it --------------------------------------------------------------------------


async def says_goodbye(agent: AgentSession) -> None:
    """Call end_call, say goodbye, and close with 1000."""
    await agent.call_functions([{"name": "end_call"}])
    await agent.say("Goodbye.", WORD)
    await agent.close(1000)


async def closes(agent: AgentSession) -> None:
    """Close with 1000, and nothing was said."""
    await agent.close(1000)


async def closes_in_trouble(agent: AgentSession) -> None:
    """Close with 1011: something went wrong over there."""
    await agent.close(1011)


async def errs(agent: AgentSession) -> None:
    """Say Error, then close with 1000."""
    await agent.error("INTERNAL_SERVER_ERROR")


async def errs_and_stays(agent: AgentSession) -> None:
    """Say Error, and leave the rest to the client."""
    await agent.error("INTERNAL_SERVER_ERROR", close=False)


async def resets(agent: AgentSession) -> None:
    """Send RST."""
    await agent.reset()


async def resets_in_mid_sentence(agent: AgentSession) -> None:
    """Send RST while there is more to say."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.say, "A long story.", STORY)
        await until(lambda: agent.sent_audio_bytes > 0)
        await agent.reset()


@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        (says_goodbye, "agent_ended", "the agent called end_call"),
        (closes, "agent_failed", "closed with 1000"),
        (closes_in_trouble, "agent_failed", "closed with 1011"),
        (errs, "agent_failed", "INTERNAL_SERVER_ERROR"),
        (errs_and_stays, "agent_failed", "INTERNAL_SERVER_ERROR"),
        (resets, "agent_failed", "lost"),
        (resets_in_mid_sentence, "agent_failed", "lost"),
    ],
)
async def test_the_agent_ends_the_call(script: Any, outcome: str, reason: str) -> None:
    """The agent reader notices. `agent_ended` if a goodbye was under way, otherwise whatever the
    code `agent_failed`, for which the caller hears an apology; what was said before is heard."""
    async with scene(script) as stage:
        began = trio.current_time()
        async with stage.call() as phone:
            await phone.wait_ended()
            await stage.ended(outcome, since=began, reason=reason)
        failed = outcome == "agent_failed"
        assert phone.verbs[1:] == [Say(USING.words.apology)] * failed + [Hangup()]
        if script is says_goodbye:
            assert phone.received_audio == WORD


async def test_an_agent_that_fails_and_says_no_goodbye_does_not_keep_the_phone_waiting() -> None:
    """The agent reader notices the Error, and the phone is told at once, with a Close frame, while
    the agent still has its time to answer ours."""

    async def fail(agent: AgentSession) -> None:
        began.append(trio.current_time())
        await agent.error("INTERNAL_SERVER_ERROR", close=False)

    began: list[float] = []
    using = settings(call={"teardown_seconds": 4 * TEARDOWN})
    async with scene(fail, quiet(answers_close=False), using) as stage:
        async with stage.call() as phone:
            closed = await phone.wait_event("closed")
            assert closed.text == "1000"
            assert stage.log.endings() == []
            await phone.wait_ended()
        await stage.ended("agent_failed", since=began[0], within=4 * TEARDOWN)


@pytest.mark.parametrize("status", [401, 402, 403, 429, 500])
async def test_the_agent_refuses_the_session(status: int) -> None:
    """The agent reader notices the answer, `agent_unreachable` with the status in the reason: the
    caller hears an apology. Only a status that may pass, 429 or 500, is asked for again."""
    async with scene(behaviour=quiet(reject_status=status), using=IMPATIENT) as stage:
        began = trio.current_time()
        async with stage.call() as phone:
            await phone.wait_ended()
            await stage.ended("agent_unreachable", since=began, reason=f"answered {status}")
        assert phone.verbs[1:] == [Say(USING.words.apology), Hangup()]
        assert set(stage.agent.rejected) == {status}
        assert len(stage.agent.rejected) == 1 or status in (429, 500)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"answers_handshake": False}, "did not answer the handshake"),
        ({"sends_welcome": False}, "did not apply the Settings"),
        ({"applies_settings": False}, "did not apply the Settings"),
        ({"applies_settings": False, "answers_close": False}, "did not apply the Settings"),
    ],
)
async def test_the_agent_does_not_get_ready(knobs: dict[str, Any], reason: str) -> None:
    """The agent reader's `deepgram.connect_timeout` notices, `agent_unreachable`: it covers TCP,
    handshake, Welcome and Settings together, and the reason says how far they came."""
    async with scene(behaviour=quiet(**knobs), using=HASTY) as stage:
        async with stage.call() as phone:
            await until(lambda: stage.agent.connections == 1)
            began = trio.current_time()
            await phone.wait_ended()
            within = HASTY.deepgram.connect_timeout + TEARDOWN
            await stage.ended("agent_unreachable", since=began, within=within, reason=reason)
        assert phone.verbs[1:] == [Say(USING.words.apology), Hangup()]
        assert stage.agent.connections == 1


async def test_the_agent_refuses_the_settings() -> None:
    """The agent reader notices the Error, `agent_failed` with the agent's words."""
    async with scene(behaviour=quiet(settings_error="INVALID_SETTINGS")) as stage:
        began = trio.current_time()
        async with stage.call() as phone:
            await phone.wait_ended()
            await stage.ended("agent_failed", since=began, reason="INVALID_SETTINGS")
        assert phone.verbs[1:] == [Say(USING.words.apology), Hangup()]


async def test_the_agent_resets_during_the_handshake() -> None:
    """The agent reader notices, `agent_unreachable`; not only when the timeout is over."""
    never = quiet(answers_handshake=False, handshake_timeout=TEARDOWN)
    async with scene(behaviour=never, using=IMPATIENT, failing_agent_lines=True) as stage:
        async with stage.call() as phone:
            await until(lambda: stage.agent.connections == 1)
            line, began = stage.agent_lines[0], trio.current_time()
            assert isinstance(line, Line)
            line.reset()
            await phone.wait_ended()
            await stage.ended("agent_unreachable", since=began)


# ---- both, and nobody ---------------------------------------------------------------------------


# All pairs, at every step, are played in tests/sweep.
@pytest.mark.parametrize(
    ("phones_way", "agents_way"),
    [(hang_up, errs), (lose, closes_in_trouble), (reset, resets)],
)
async def test_both_sides_end_at_the_same_instant(phones_way: Leave, agents_way: Any) -> None:
    """Whoever is noticed first is the cause; the other changes nothing. One outcome, one line."""
    now = trio.Event()

    async def script(agent: AgentSession) -> None:
        await now.wait()
        await agents_way(agent)

    async def leave() -> None:
        await now.wait()
        await phones_way(phone, stage.lines[-1])

    async def give_the_sign() -> None:
        now.set()

    async with scene(script) as stage, stage.call(strict=False) as phone:
        session = await stage.agent.wait_for_session()
        await until(lambda: session.received_bytes)
        began = trio.current_time()
        await at_once(leave, give_the_sign)
        (line,) = await stage.log.wait_for_endings(1)
        either = {"agent_failed", "caller_hung_up" if phones_way is hang_up else "phone_lost"}
        assert line["outcome"] in either
        assert line["at"] - began <= TEARDOWN + SLACK


async def test_the_event_loop_is_blocked_for_a_second() -> None:
    """Somebody's function sleeps without letting go of the event loop. Nobody ends any call, and
    when they end, as ever, nothing that was said is lost."""
    phones = 3
    words = [WORD * (3 + number) for number in range(phones)]  # 0.6 to 1 s

    def ring(number: int) -> None:
        """Call from a thread: the line does not stand still while the server does."""

        async def call() -> None:
            phone = SimulatedPhone(
                strict=True, from_number=f"+1555000000{number}", auth_token=AUTH_TOKEN
            )
            async with phone.place_call(stage.address):
                await phone.wait_heard(0.1)
                token.run_sync_soon(speaking.append, number)
                await phone.say(words[number])
                await phone.hang_up()

        trio.run(call)

    async def greet(agent: AgentSession) -> None:
        await agent.say("Yes?", WORD)

    async def block() -> None:
        await until(lambda: len(speaking) == phones)
        time.sleep(1)  # noqa: ASYNC251 - this is what is done to it

    token, speaking = trio.lowlevel.current_trio_token(), []  # type: ignore[var-annotated]
    # A busy machine may need longer to pass on what has piled up; the agent answers at once.
    async with scene(greet, using=PATIENT, calls=phones) as stage:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block)
            for number in range(phones):
                nursery.start_soon(trio.to_thread.run_sync, ring, number)
        began = trio.current_time()
        lines = await stage.log.wait_for_endings(phones)
        assert [line["outcome"] for line in lines] == ["caller_hung_up"] * phones
        assert max(line["at"] for line in lines) - began <= TEARDOWN + SLACK
        # The bridge fills gaps with silence, and the caller is silent before.
        heard = {bytes(one.received_audio).replace(SILENCE, b"") for one in stage.agent.sessions}
        assert heard == {word.replace(SILENCE, b"") for word in words}


async def test_calls_that_end_together_do_not_wait_for_each_other() -> None:
    """Ten calls with agents that never say goodbye take one teardown, not ten."""
    phones = 10
    async with scene(behaviour=quiet(answers_close=False), calls=phones) as stage:
        async with AsyncExitStack() as stack:
            for _ in range(phones):
                await stack.enter_async_context(stage.call(strict=False))
            await stage.agent.wait_for_session(phones)
            began = trio.current_time()
            sockets = stage.lines[1::2]  # each phone's second line; its first was the webhook's
            assert len(sockets) == phones
            for line in sockets:
                line.reset()
            lines = await stage.log.wait_for_endings(phones)
        assert [line["outcome"] for line in lines] == ["phone_lost"] * phones
        assert max(line["at"] for line in lines) - began <= TEARDOWN + SLACK


# ---- webhooks -----------------------------------------------------------------------------------

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: bridge\r\n"


async def test_a_webhooks_connection_is_closed_when_the_client_wants_that() -> None:
    """The server closes TCP after its answer; Twilio need not, and it sends two webhooks a call."""
    async with scene(calls=0) as stage:
        for _ in range(3):
            line = await stage.open_line("127.0.0.1", stage.port)
            await line.send_all(HEALTH + b"Connection: close\r\n\r\n")
            began = trio.current_time()
            answer = await read_to_the_end(line)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"ok\n")
            assert trio.current_time() - began <= 1 + SLACK
        await stage_is_bare(stage)
        for line in stage.lines:
            await line.aclose()


async def test_an_idle_webhook_connection_is_closed() -> None:
    """A client that keeps its connection and asks nothing more is closed after `keep_alive`, by
    the server; until then it may ask again."""
    async with scene(calls=0, keep_alive=0.5) as stage:
        line = await stage.open_line("127.0.0.1", stage.port)
        for _ in range(2):
            await line.send_all(HEALTH + b"\r\n")
            assert (await read_answer(line)).startswith(b"HTTP/1.1 200")
        began = trio.current_time()
        assert await read_to_the_end(line) == b""
        assert trio.current_time() - began <= 0.5 + SLACK
        await stage_is_bare(stage)
        await line.aclose()


async def test_a_refused_websocket_is_closed() -> None:
    """Who asks for a websocket where there is none is answered, and the server closes TCP."""
    async with scene(calls=0) as stage:
        line = await stage.open_line("127.0.0.1", stage.port)
        await line.send_all(
            b"GET /nowhere HTTP/1.1\r\nHost: bridge\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        began = trio.current_time()
        assert (await read_to_the_end(line)).startswith(b"HTTP/1.1 404")
        assert trio.current_time() - began <= 1 + SLACK
        await stage_is_bare(stage)
        await line.aclose()


async def stage_is_bare(stage: Stage) -> None:
    """Wait until the server has no connection any more, while the client still has its ends."""
    with trio.fail_after(60):
        await until(lambda: not connections())


def connections() -> int:
    """How many connections hypercorn holds in this process."""
    found, waiting = 0, [trio.lowlevel.current_root_task()]
    while waiting:
        task = waiting.pop()
        assert task is not None
        found += "GuardedTCPServer" in task.name or "_run_handler" in task.name
        for nursery in task.child_nurseries:
            waiting += nursery.child_tasks
    return found


async def read_to_the_end(line: Line) -> bytes:
    data = b""
    while piece := await line.receive_some():
        data += piece
    return data


async def read_answer(line: Line) -> bytes:
    data = b""
    while not data.endswith(b"ok\n"):
        piece = await line.receive_some()
        assert piece, data
        data += piece
    return data


# ---- help ---------------------------------------------------------------------------------------

MEDIA = '{"event":"media","media":{"payload":"%s"},"streamSid":"MZ1"}' % ("VVVV" * 53 + "VQ==")


async def start(stage: Stage, socket: WebSocketConnection) -> None:
    await socket.send_message('{"event":"connected","protocol":"Call","version":"1.0.0"}')
    await socket.send_message(start_message(stage.app))


async def wait_until_still(what: Callable[[], object]) -> None:
    """Wait until something has not changed for a while, and is not nothing."""
    before = None
    while not what() or what() != before:
        before = what()
        await trio.sleep(0.3)
