"""The simulated agent's rules, one by one, as a client sees them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionRejected, wrap_client_stream

import bridge.testing
from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.agent.voice import hum, speech_for
from tests.unit.testing.agent_client import (
    KEY,
    MULAW,
    PATH,
    PATIENCE,
    SILENCE,
    Client,
    connected,
    only,
    settings,
)

LONG = "A long answer with many words in it. And then another sentence. And a third one."
ECHOED = Behaviour(latency_every=0)


def test_the_simulator_shares_nothing_with_what_it_tests() -> None:
    """A misreading of the protocol must not be made twice by one line of code."""
    for path in Path(bridge.testing.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            ours = ("bridge.deepgram", "bridge.twilio")
            assert not [name for name in names if name.startswith(ours)], path


# The opening


async def test_a_session_opens_in_the_documented_order(autojump_clock) -> None:
    agent = SimulatedAgent(behaviour=ECHOED)
    async with connected(agent, settings("Hi.")) as client:
        await client.wait_for("AgentAudioDone")
    assert client.kinds() == [
        "Welcome",
        "SettingsApplied",
        "ConversationText",
        "History",
        "audio",
        "AgentAudioDone",
    ]
    session = only(agent)
    assert client.all("Welcome")[0]["request_id"] == session.request_id
    assert session.settings == settings("Hi.")
    assert session.authorization == "Token a-key"
    assert session.faults == []


async def test_delays_of_welcome_and_settings_applied(autojump_clock) -> None:
    knobs = Behaviour(welcome_delay=3, settings_applied_delay=2)
    async with connected(SimulatedAgent(behaviour=knobs), settings()) as client:
        assert client.when("Welcome") == pytest.approx(3)
        assert client.when("SettingsApplied") == pytest.approx(5)


@pytest.mark.parametrize(
    ("knobs", "came"),
    [
        (Behaviour(sends_welcome=False), "SettingsApplied"),
        (Behaviour(applies_settings=False), "Welcome"),
    ],
)
async def test_an_opening_can_stall(autojump_clock, knobs: Behaviour, came: str) -> None:
    async with connected(SimulatedAgent(behaviour=knobs)) as client:
        await client.send(settings())
        await client.wait_gone()  # the client stays idle, which ends it at last
    assert client.kinds() == [came, "Error"]


async def test_context_and_unset_greeting(autojump_clock) -> None:
    messages = [{"type": "History", "role": "user", "content": "before"}]
    agent = SimulatedAgent()
    async with connected(agent, settings(context={"messages": messages})) as client:
        await client.wait_for("SettingsApplied")
    assert only(agent).context_messages == messages
    assert client.chunks() == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([{"type": "KeepAlive"}], "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS"),
        ([SILENCE * 160], "BINARY_MESSAGE_BEFORE_SETTINGS"),
        ([settings(), settings()], "SETTINGS_ALREADY_APPLIED"),
        (["{"], "UNPARSABLE_CLIENT_MESSAGE"),
        (["[]"], "UNPARSABLE_CLIENT_MESSAGE"),
        (["{}"], "UNPARSABLE_CLIENT_MESSAGE"),
        ([settings(), {"type": "Nonsense"}], "UNPARSABLE_CLIENT_MESSAGE"),
        ([settings(), {"type": "InjectUserMessage"}], "UNPARSABLE_CLIENT_MESSAGE"),
        ([settings(), {"type": "InjectAgentMessage", "content": "x"}], "UNPARSABLE_CLIENT_MESSAGE"),
        ([settings(), {"type": "FunctionCallResponse", "id": "1"}], "UNPARSABLE_CLIENT_MESSAGE"),
    ],
)
async def test_breaking_the_order_ends_the_session(
    autojump_clock, sent: list[Any], code: str
) -> None:
    agent = SimulatedAgent()
    async with connected(agent) as client:
        for message in sent:
            await client.send(message)
        await client.wait_gone()
    (error,) = client.all("Error")
    assert error["code"] == code
    assert error["description"]
    assert code in only(agent).faults[-1]


def listen(**provider: Any) -> dict[str, Any]:
    return settings(listen={"provider": {"type": "deepgram", **provider}})


def think(provider: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return settings(think={"provider": provider, **rest})


def speak(**provider: Any) -> dict[str, Any]:
    return settings(speak={"provider": {"type": "deepgram", **provider}})


FLUX = listen(version="v2", model="flux-general-en")
OPEN_AI = {"type": "open_ai", "model": "gpt-4o-mini"}
UNPARSABLE = "UNPARSABLE_CLIENT_MESSAGE"
INVALID = "INVALID_SETTINGS"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({**settings(), "comment": "private"}, UNPARSABLE),
        ({"type": "Settings", "agent": {}}, UNPARSABLE),
        ({**settings(), "audio": {"input": {"encoding": "mulaw"}}}, UNPARSABLE),
        ({**settings(), "audio": {"input": {**MULAW, "sample_rate": 8000.0}}}, UNPARSABLE),
        (settings(prompt="misplaced"), UNPARSABLE),
        (listen(model="nova-3", eot_threshold=0.7), UNPARSABLE),
        (listen(model="flux-general-en"), INVALID),
        (listen(version="v2", model="flux-general-en", language="en"), UNPARSABLE),
        (listen(version="v2", model="nova-3"), INVALID),
        (settings(language="en", **FLUX["agent"]), INVALID),
        (think({**OPEN_AI, "tempreature": 1}), UNPARSABLE),
        (think(OPEN_AI, tools=[]), UNPARSABLE),
        (think(OPEN_AI, functions=[{"type": "function", "function": {}}]), UNPARSABLE),
        (think(OPEN_AI, functions=[{"name": "f", "initial_agent_filler": True}]), INVALID),
        (think({"type": "groq", "model": "openai/gpt-oss-20b"}), INVALID),
        (speak(model="aura-2-thalia-en", language="en"), UNPARSABLE),
        (speak(model="flux-kit-en"), INVALID),
        (settings(think_live=3), UNPARSABLE),
    ],
)  # fmt: skip
async def test_settings_are_checked_strictly(
    autojump_clock, first: dict[str, Any], code: str
) -> None:
    async with connected(SimulatedAgent()) as client:
        await client.send(first)
        await client.wait_gone()
    assert [error["code"] for error in client.all("Error")] == [code]
    assert client.all("SettingsApplied") == []


@pytest.mark.parametrize(
    "first",
    [
        listen(model="nova-3", language="en", smart_format=True),
        listen(version="v2", model="flux-general-en", eot_threshold=1, keyterms=["x"]),
        think({"type": "not_yet_known", "model": "m", "anything": 1}),
        settings(think=[{"provider": OPEN_AI, "prompt": "p"}, {"provider": OPEN_AI}]),
        speak(version="v2", model="flux-kit-en"),
        {**settings(), "agent": "9f1b6a55-0000-4000-8000-000000000000"},
        {**settings(), "tags": ["a"], "mip_opt_out": True, "flags": {"history": False}},
    ],
)
async def test_good_settings_are_applied(autojump_clock, first: dict[str, Any]) -> None:
    agent = SimulatedAgent()
    async with connected(agent, first):
        assert only(agent).faults == []


# Audio


async def test_every_byte_of_the_caller_is_kept_in_order(autojump_clock) -> None:
    audio = bytes(range(256)) * 100
    agent = SimulatedAgent(behaviour=Behaviour(hears=False))
    async with connected(agent, settings()) as client:
        position = 0
        for size in (1, 160, 7, 4000, 21_432):
            await client.send(audio[position : position + size])
            position += size
        assert position == len(audio)
    session = only(agent)
    assert bytes(session.received_audio) == audio
    assert [size for _, size in session.audio_log] == [1, 160, 7, 4000, 21_432]


async def test_recorded_audio_is_bounded_and_still_counted(autojump_clock) -> None:
    agent = SimulatedAgent(behaviour=Behaviour(max_recorded_bytes=100))
    async with connected(agent, settings()) as client:
        await client.send(b"\x00" * 80)
        await client.send(b"\x01" * 80)
    assert bytes(only(agent).received_audio) == b"\x00" * 80 + b"\x01" * 20
    assert only(agent).received_bytes == 160


async def test_audio_comes_in_odd_sizes_faster_than_real_time(autojump_clock) -> None:
    knobs = Behaviour(chunk_bytes=(100, 333), speed=4, latency_every=0)
    async with connected(SimulatedAgent(behaviour=knobs), settings(LONG)) as client:
        await client.wait_for("AgentAudioDone")
    audio = b"".join(client.chunks())
    assert audio == speech_for(LONG)
    assert [len(chunk) for chunk in client.chunks()[:4]] == [100, 333, 100, 333]
    took = client.when("AgentAudioDone") - client.when("SettingsApplied")
    assert took == pytest.approx(len(audio) / 8000 / 4, abs=0.05)
    assert client.texts("assistant") == [
        "A long answer with many words in it.",
        "And then another sentence.",
        "And a third one.",
    ]


async def test_audio_can_come_all_at_once_and_before_its_text(autojump_clock) -> None:
    knobs = Behaviour(speed=0, audio_before_text=True, history=False, latency_every=0)
    async with connected(SimulatedAgent(behaviour=knobs), settings("Hi.")) as client:
        await client.wait_for("AgentAudioDone")
        assert trio.current_time() == 0
    expected = ["audio", "ConversationText", "audio", "AgentAudioDone"]
    assert client.kinds()[2:] == expected


# Barge-in


async def barge_in(knobs: Behaviour) -> tuple[Client, SimulatedAgent, int]:
    agent = SimulatedAgent(behaviour=knobs)
    async with connected(agent, settings(LONG)) as client:
        await trio.sleep(0.5)
        await client.speak(hum(1.0) + SILENCE * 8000)
    kinds = [m if isinstance(m, bytes) else m["type"] for _, m in client.received]
    return client, agent, len(b"".join(client.chunks())) and kinds.index("UserStartedSpeaking")


async def test_barge_in_stops_the_reply_with_stale_audio_after_it(autojump_clock) -> None:
    client, agent, at = await barge_in(Behaviour(stale_chunks=3, stale_delay=0.3))
    after = client.received[at + 1 :]
    stale = [(time, m) for time, m in after if isinstance(m, bytes)]
    assert len(stale) == 3
    assert stale[0][0] - client.received[at][0] == pytest.approx(0.3)
    assert speech_for(LONG).startswith(b"".join(client.chunks())), "no gap before stale audio"
    assert client.all("AgentAudioDone") == []
    (utterance,) = only(agent).mouth.spoken
    assert utterance.interrupted
    # 500 ms of greeting, then 100 ms of speech until the onset is sure.
    assert client.received[at][0] == pytest.approx(0.6, abs=0.03)


async def test_late_text_and_audio_done_of_an_interrupted_reply(autojump_clock) -> None:
    client, _, at = await barge_in(Behaviour(stale_text=True, audio_done_when_interrupted=True))
    after = [m["type"] for _, m in client.received[at + 1 :] if isinstance(m, dict)]
    assert [kind for kind in after if kind != "LatencyReport"] == [
        "ConversationText",
        "History",
        "AgentAudioDone",
    ]


async def test_a_reply_after_barge_in_is_spoken_in_full(autojump_clock) -> None:
    async def script(session: AgentSession) -> None:
        heard = await session.wait_for_end_of_speech()
        await session.user_said("Stop.")
        await session.say("Sorry.", heard.audio)

    agent = SimulatedAgent(script, Behaviour(latency_every=0, history=False))
    async with connected(agent, settings(LONG)) as client:
        await trio.sleep(0.5)
        await client.speak(hum(1.0) + SILENCE * 8000)
        await client.wait_for("AgentAudioDone")
    assert client.kinds()[-6:] == [
        "UserStartedSpeaking", "audio", "ConversationText", "ConversationText", "audio",
        "AgentAudioDone",
    ]  # fmt: skip
    assert b"".join(client.chunks()).endswith(only(agent).turns[0].heard.audio)


# What the client may send in mid-session


async def test_keep_alive_has_no_answer_and_is_counted(autojump_clock) -> None:
    agent = SimulatedAgent()
    async with connected(agent, settings()) as client:
        await client.send({"type": "KeepAlive"})
        await client.send({"type": "KeepAlive"})
    assert client.kinds() == ["Welcome", "SettingsApplied"]
    assert only(agent).keepalives == 2


async def test_injection_is_refused_in_mid_turn_queued_or_interrupts(autojump_clock) -> None:
    agent = SimulatedAgent(behaviour=ECHOED)

    def inject(message: str, **behavior: str) -> dict[str, Any]:
        return {"type": "InjectAgentMessage", "message": message, **behavior}

    async with connected(agent, settings(LONG)) as client:
        await client.send(inject("Refused."))
        await client.wait_for("InjectionRefused")
        await client.send(inject("Queued.", behavior="queue"))
        await client.wait_for("AgentAudioDone", 2)
        await client.send(inject("Plain."))
        await client.send(inject("Refused, too."))
        await client.wait_for("AgentAudioDone", 3)
        await client.speak(hum(0.5))  # the user's turn is open now
        await client.send(inject("Refused.", behavior="queue"))
        await client.wait_for("InjectionRefused", 3)
        await client.send(inject(LONG, behavior="interrupt"))
        await trio.sleep(0.2)
        await client.send(inject("Now.", behavior="interrupt"))
        await client.wait_for("AgentAudioDone", 4)
    texts = client.texts("assistant")
    assert texts == [*texts[:3], "Queued.", "Plain.", texts[0], "Now."]
    assert all(refusal["message"] for refusal in client.all("InjectionRefused"))
    assert [u.interrupted for u in only(agent).mouth.spoken] == [False, False, False, True, False]


async def test_injected_user_message_is_echoed(autojump_clock) -> None:
    agent = SimulatedAgent()
    async with connected(agent, settings()) as client:
        await client.send({"type": "InjectUserMessage", "content": "1"})
        await client.wait_for("EndOfTurn")
    assert client.texts("user") == ["1"]
    assert client.all("EndOfTurn") == [{"type": "EndOfTurn", "trigger": "manual"}]


async def test_updates_are_acknowledged_and_take_effect(autojump_clock) -> None:
    agent = SimulatedAgent()
    first = think(OPEN_AI, prompt="Be kind.")
    first["agent"]["listen"] = {
        "provider": {"type": "deepgram", "model": "nova-3", "language": "en"}
    }
    async with connected(agent, first) as client:
        await client.send({"type": "UpdatePrompt", "prompt": "Be brief."})
        await client.wait_for("PromptUpdated")
        assert only(agent).prompt == "Be kind.\nBe brief."
        await client.send({"type": "UpdateThink", "think": {"provider": OPEN_AI, "prompt": "New."}})
        await client.wait_for("ThinkUpdated")
        assert only(agent).prompt == "New."
        listens = {"provider": {"type": "deepgram", "keyterms": ["bridge"]}}
        await client.send({"type": "UpdateListen", "listen": listens})
        await client.wait_for("ListenUpdated")
        assert only(agent).listen["provider"]["language"] == "en"
        assert only(agent).listen["provider"]["keyterms"] == ["bridge"]
        speaks = {"provider": {"type": "deepgram", "model": "aura-2-zeus-en"}}
        await client.send({"type": "UpdateSpeak", "speak": speaks})
        await client.wait_for("SpeakUpdated")
        await client.send({"type": "ForceEndTurn"})
        assert (await client.wait_for("Warning"))["code"] == "FORCE_END_TURN_UNSUPPORTED"


async def test_force_end_turn_with_flux(autojump_clock) -> None:
    agent = SimulatedAgent()
    async with connected(agent, listen(version="v2", model="flux-general-en")) as client:
        await client.speak(hum(1.0))
        assert only(agent).turns == []
        await client.send({"type": "ForceEndTurn"})
        with trio.fail_after(PATIENCE):
            heard = await only(agent).wait_for_end_of_speech()
    assert heard.seconds == pytest.approx(1.0, abs=0.1)


async def test_functions_are_matched_by_id_in_any_order(autojump_clock) -> None:
    results: list[str | None] = []

    async def script(session: AgentSession) -> None:
        calls = await session.call_functions([{"name": "a"}, {"name": "b", "arguments": "{}"}])
        results.extend(call.response for call in calls)

    agent = SimulatedAgent(script)
    async with connected(agent, settings()) as client:
        a, b = (await client.wait_for("FunctionCallRequest"))["functions"]
        for call, content in ((b, "2"), (a, "1")):
            answer = {"id": call["id"], "name": call["name"], "content": content}
            await client.send({"type": "FunctionCallResponse", **answer})
        await client.wait_for("FunctionCallResponse", 2)
        await client.wait_for("History", 2)
    assert results == ["1", "2"]
    assert [echo["content"] for echo in client.all("FunctionCallResponse")] == ["2", "1"]
    assert client.all("History")[0]["function_calls"] == [{**b, "response": "2"}]
    assert only(agent).faults == []


async def test_a_cancelled_function_is_settled_and_its_late_answer_dropped(autojump_clock) -> None:
    async def script(session: AgentSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_functions, [{"name": "book", "id": "fc_1"}])
            await session.wait_for_message("KeepAlive")
            await session.cancel_functions()

    agent = SimulatedAgent(script)
    async with connected(agent, settings()) as client:
        await client.wait_for("FunctionCallRequest")
        await client.send({"type": "KeepAlive"})
        cancelled = await client.wait_for("FunctionCallCancelled")
        assert cancelled["functions"] == [{"id": "fc_1", "name": "book"}]
        late = {"type": "FunctionCallResponse", "id": "fc_1", "name": "book", "content": "done"}
        await client.send(late)
        await client.send({**late, "id": "fc_2"})
        await client.send({"type": "UpdatePrompt", "prompt": "x"})
        await client.wait_for("PromptUpdated")
    assert client.all("FunctionCallResponse") == []
    assert only(agent).calls.late_responses == [late]
    assert only(agent).faults == ["FunctionCallResponse: fc_2 was never asked for"]


async def test_a_function_that_is_never_answered_can_be_given_up(autojump_clock) -> None:
    async def script(session: AgentSession) -> None:
        with pytest.raises(trio.TooSlowError):
            await session.call_functions([{"name": "slow"}], timeout=3)
        await session.close(4000)

    async with connected(SimulatedAgent(script), settings()) as client:
        assert await client.wait_gone() == 4000
        assert trio.current_time() == pytest.approx(3)


# Time


async def idle_end(client: Client) -> float:
    await client.wait_gone()
    assert [error["code"] for error in client.all("Error")] == ["CLIENT_MESSAGE_TIMEOUT"]
    return client.when("Error")


async def test_audio_and_text_both_put_off_the_idle_timeout(autojump_clock) -> None:
    async with connected(SimulatedAgent(), settings()) as client:
        await trio.sleep(8)
        await client.send({"type": "KeepAlive"})
        await trio.sleep(8)
        await client.send(SILENCE * 160)
        assert await idle_end(client) == pytest.approx(26)


async def test_keep_alive_may_not_count(autojump_clock) -> None:
    knobs = Behaviour(keep_alive_counts=False, idle_timeout=12)
    async with connected(SimulatedAgent(behaviour=knobs), settings()) as client:
        await trio.sleep(8)
        await client.send({"type": "KeepAlive"})
        assert await idle_end(client) == pytest.approx(12)


async def test_a_session_has_a_longest_duration(autojump_clock) -> None:
    knobs = Behaviour(idle_timeout=0)
    async with connected(SimulatedAgent(behaviour=knobs), settings()) as client:
        await client.wait_gone()
    assert client.when("Warning") == pytest.approx(6900)
    assert client.when("Error") == pytest.approx(7200)
    assert client.all("Warning")[0]["code"] == "MAXIMUM_SESSION_LENGTH_APPROACHING"


async def test_an_error_may_leave_the_socket_open_and_use_the_old_field(autojump_clock) -> None:
    knobs = Behaviour(
        closes_after_error=False, legacy_errors=True, settings_error="FAILED_TO_THINK"
    )
    agent = SimulatedAgent(behaviour=knobs)
    async with connected(agent) as client:
        await client.send(settings())
        await client.wait_for("Error")
        await client.send({"type": "UpdatePrompt", "prompt": "x"})
        await trio.sleep(100)
        assert not client.gone.is_set()
    assert client.all("Error")[0].keys() == {"type", "message", "code"}
    assert client.all("PromptUpdated") == []


async def test_latency_reports_follow_the_callers_audio(autojump_clock) -> None:
    async with connected(SimulatedAgent(), settings()) as client:
        await client.speak(SILENCE * 16_000)
    assert len(client.all("LatencyReport")) == 8


async def test_unknown_messages_can_be_sprinkled_in(autojump_clock) -> None:
    knobs = Behaviour(unknown_messages=True)
    async with connected(SimulatedAgent(behaviour=knobs), settings("Hi.")) as client:
        await client.wait_for("AgentAudioDone")
    assert len(client.all("SomethingNew")) == 2


# The end


async def test_the_close_code_of_the_client_is_noted(autojump_clock) -> None:
    agent = SimulatedAgent()
    async with connected(agent, settings()) as client:
        await client.ws.aclose(1001, "bye")
    closed = only(agent).closed
    assert closed is not None
    assert (closed.code, closed.reason, closed.by) == (1001, "bye", "client")
    assert agent.active == 0


async def test_a_reset_is_a_loss_on_both_sides(autojump_clock) -> None:
    agent = SimulatedAgent(AgentSession.reset)
    async with connected(agent, settings()) as client:
        assert await client.wait_gone() == 1006
    assert only(agent).closed.by == "lost"


async def test_a_client_that_vanishes_ends_the_session_with_all_it_sent_read(
    autojump_clock,
) -> None:
    agent = SimulatedAgent()
    async with connected(agent, settings("Hi.")) as client:
        await client.send(SILENCE * 500)
        await trio.aclose_forcefully(client.stream)
    closed = only(agent).closed
    assert (closed.code, closed.by) == (1006, "lost")
    assert only(agent).received_bytes == 500


async def test_an_exception_of_the_script_is_not_hidden(autojump_clock) -> None:
    async def script(session: AgentSession) -> None:
        raise KeyError("mine")

    ours, theirs = memory_stream_pair()
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(SimulatedAgent(script).serve_stream, theirs)
            ws = await wrap_client_stream(nursery, ours, "agent", PATH, extra_headers=KEY)
            await ws.send_message(json.dumps(settings()))
            await trio.sleep(PATIENCE)


async def test_a_close_that_is_never_answered(autojump_clock) -> None:
    """trio-websocket's client waits for the answer, so the deadline must be the client's own."""
    agent = SimulatedAgent(behaviour=Behaviour(answers_close=False))
    async with connected(agent, settings()) as client:
        with trio.move_on_after(7) as scope:
            await client.ws.aclose()
        assert scope.cancelled_caught
    assert only(agent).closed.by == "client"


async def test_tcp_that_stays_open_after_the_closing_handshake(autojump_clock) -> None:
    knobs = Behaviour(closes_tcp=False, linger=40)
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SimulatedAgent(behaviour=knobs).serve_stream, theirs)
        ws = await wrap_client_stream(nursery, ours, "agent", PATH, extra_headers=KEY)
        client = Client(ws, ours)
        nursery.start_soon(client.read)
        await ws.send_message("{")  # the agent closes, so our reader waits for the end of TCP
        await client.wait_gone()
        assert trio.current_time() == 0
    assert trio.current_time() == pytest.approx(40), "held as long as linger says, and no longer"


async def test_pings_may_go_unanswered(autojump_clock) -> None:
    for answers in (True, False):
        agent = SimulatedAgent(behaviour=Behaviour(answers_pings=answers))
        async with connected(agent, settings()) as client:
            with trio.move_on_after(5) as scope:
                await client.ws.ping()
            assert scope.cancelled_caught is not answers


async def test_an_agent_that_stops_reading_is_rid_of_its_client_in_the_end(autojump_clock) -> None:
    agent = SimulatedAgent(behaviour=Behaviour(stops_reading_after=1, idle_timeout=0, linger=30))
    async with connected(agent, settings()) as client:
        await client.send(SILENCE * 160)
        await trio.sleep(2)
        await client.send(SILENCE * 160)
        await client.wait_gone()
        assert trio.current_time() == pytest.approx(32)
    assert only(agent).received_bytes == 160


async def test_a_client_that_takes_nothing_is_dropped(autojump_clock) -> None:
    """Over a transport without any buffer each send waits until the client reads."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    agent = SimulatedAgent(behaviour=Behaviour(send_timeout=4, close_timeout=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve_stream, theirs)
        ws = await wrap_client_stream(nursery, ours, "agent", PATH, extra_headers=KEY)
        await ws.send_message(json.dumps(settings(LONG)))
        await trio.testing.wait_all_tasks_blocked()  # trio-websocket holds one message, and stops
        with trio.fail_after(60):
            await agent.wait_until_idle()
        await trio.aclose_forcefully(ours)
        nursery.cancel_scope.cancel()
    assert only(agent).closed.by == "lost"


# The handshake


async def rejection(agent: SimulatedAgent, **how: Any) -> ConnectionRejected:
    with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True) as caught:
        async with connected(agent, **how):
            pytest.fail("accepted")
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConnectionRejected)
    return error


@pytest.mark.parametrize("status", [401, 402, 403, 429, 500])
async def test_a_handshake_can_be_rejected(autojump_clock, status: int) -> None:
    agent = SimulatedAgent(behaviour=Behaviour(reject_status=status, reject_times=1))
    error = await rejection(agent)
    assert error.status_code == status
    assert b'"err_code"' in (error.body or b"")
    assert agent.rejected == [status]
    async with connected(agent, settings()):
        pass


async def test_a_body_of_ones_own(autojump_clock) -> None:
    agent = SimulatedAgent(behaviour=Behaviour(reject_status=503, reject_body="later"))
    assert (await rejection(agent)).body == b"later"


async def test_wrong_path_missing_key_and_too_many_sessions(autojump_clock) -> None:
    agent = SimulatedAgent(behaviour=Behaviour(max_sessions=1))
    assert (await rejection(agent, path="/v1/listen")).status_code == 404
    assert (await rejection(agent, headers=[])).status_code == 401
    basic = [(b"Authorization", b"Basic a-key")]
    assert (await rejection(agent, headers=basic)).status_code == 401
    async with connected(agent, settings()):
        assert (await rejection(agent)).status_code == 429
    async with connected(agent, settings(), path="/agent"):
        assert agent.opened == 2


async def test_a_handshake_that_is_never_answered_ends_with_the_client(autojump_clock) -> None:
    ours, theirs = memory_stream_pair()
    agent = SimulatedAgent(behaviour=Behaviour(answers_handshake=False))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve_stream, theirs)
        with trio.move_on_after(9) as scope:
            await wrap_client_stream(nursery, ours, "agent", PATH, extra_headers=KEY)
        assert scope.cancelled_caught
        await ours.aclose()
    assert trio.current_time() == pytest.approx(9)
    assert agent.sessions == []


async def test_behaviour_may_differ_from_one_connection_to_the_next(autojump_clock) -> None:
    agent = SimulatedAgent(behaviour=lambda n: Behaviour(reject_status=500 if n == 1 else 0))
    assert (await rejection(agent)).status_code == 500
    async with connected(agent, settings()):
        assert only(agent).number == 1


async def test_a_key_in_the_subprotocol_is_accepted(autojump_clock) -> None:
    ours, theirs = memory_stream_pair()
    agent = SimulatedAgent()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve_stream, theirs)
        ws = await wrap_client_stream(nursery, ours, "agent", PATH, subprotocols=["token", "a-key"])
        assert ws.subprotocol == "token"
        await ws.aclose()


async def test_a_client_that_says_nothing_or_nonsense_ends_its_own_connection(
    autojump_clock,
) -> None:
    agent = SimulatedAgent()
    upgrade = (
        b"GET /agent HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"Sec-WebSocket-Protocol: \xff\r\n\r\n"
    )
    plain = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for junk in (b"", plain, b"\x00\xff\r\n\r\n", upgrade):
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.serve_stream, theirs)
            if junk:
                await ours.send_all(junk)
    assert agent.connections == 4
    assert agent.opened == 0
    assert len(agent.failures) == 1
