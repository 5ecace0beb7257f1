"""Whole conversations with the local agent, in real speech: a phone through the real server, and
Deepgram's own SDK without it. Nothing here waits for a clock, since recognition takes as long as
the machine lets it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import httpx
import trio

from bridge.config.agent import default_agent
from bridge.config.file import FixedConfig
from bridge.config.settings import (
    CallSettings,
    DeepgramSettings,
    FunctionSettings,
    RecordSettings,
    ServerSettings,
    Settings,
)
from bridge.http.app import create_app
from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import load_dialogue
from bridge.local_agent.pool import Pool, cores
from bridge.local_agent.synthesis import synthesise_all
from bridge.records.record import CallRecord
from bridge.records.store import Store
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.agent.server import SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.speech import SILENCE, read_wav, write_wav
from tests.endtoend.scene import until
from tests.world import AUTH_TOKEN, OPERATOR, SECRETS

PATIENCE = 150  # seconds, on a busy machine
VOICE = "espeak-ng"
PAUSE = b"\xff" * 8000
REPEAT = "could you repeat that"
DIALOGUE = load_dialogue()


def read_record(url: str, call_sid: str) -> CallRecord | None:
    store = Store(url)
    store.prepare()
    return store.get(call_sid)


async def test_a_table_is_booked_by_phone(tmp_path: Path) -> None:
    """Greeting, a spoken question, a table that a function books when the agent has asked twice at
    what time, typed words, goodbye; and the record has all of it."""
    records = f"sqlite:///{tmp_path / 'calls.db'}"
    speech = await synthesise_all(
        ["when are you open", "book a table for three people on friday", REPEAT], voice=VOICE
    )
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            pool = Pool(DIALOGUE.setup(voice=VOICE), 1)
            await nursery.start(pool.run)
            agent = local_agent(DIALOGUE, pool)
            port = await nursery.start(agent.serve)
            settings = Settings(
                server=ServerSettings(bind="127.0.0.1:0"),
                deepgram=DeepgramSettings(
                    url=f"ws://127.0.0.1:{port}/v1/agent/converse", connect_budget=60
                ),
                # A recogniser on a busy machine is no agent that stalls.
                call=CallSettings(idle_seconds=300, stall_seconds=300),
                functions=FunctionSettings(module="bridge.local_agent.restaurant"),
                records=RecordSettings(url=records),
                agent={**default_agent(), "greeting": "Good evening!"},
            )
            app = create_app(FixedConfig(settings), SECRETS)
            stop = trio.Event()
            config = hypercorn_config(settings)
            async with trio.open_nursery() as house:
                (address,) = await house.start(partial(serve, app, config, shutdown=stop))
                phone = SimulatedPhone(strict=True, auth_token=AUTH_TOKEN)
                async with phone.place_call(address):
                    await _converse(phone, agent, speech, address)
                    await phone.wait_ended(PATIENCE)
                stop.set()
            nursery.cancel_scope.cancel(reason="the conversation is over")
    assert phone.ending == "completed"
    record = await trio.to_thread.run_sync(read_record, records, phone.call_sid)
    assert record is not None
    assert record.outcome == "agent_ended"
    callers = [line.words for line in record.transcript if line.role == "caller"]
    agents = [line.words for line in record.transcript if line.role == "agent"]
    assert callers[0] == "When are you open"
    assert callers[-1] == "goodbye"
    assert agents[0] == "Good evening!"
    assert agents[1].startswith("We are open from five")
    assert any("is yours: for three, on friday at" in words for words in agents)
    assert agents[-2:] == ["Goodbye!", "We look forward to seeing you."]
    assert [(one.name, one.result) for one in record.functions] == [
        ("book_table", "ok"),
        ("end_call", "ok"),
    ]
    assert any("stt_latency" in turn.latencies for turn in record.turns)


async def _converse(
    phone: SimulatedPhone, agent: SimulatedAgent, speech: list[bytes], address: str
) -> None:
    session = await agent.wait_for_session()

    async def heard(count: int) -> None:
        """So many utterances of the agent were spoken, and the caller heard the last of them."""
        await until(lambda: len(session.mouth.spoken) >= count)
        await phone.wait_quiet(0.3)

    async def types(text: str) -> None:
        """As the softphone's text box does."""
        async with httpx.AsyncClient(headers=OPERATOR, trust_env=False) as client:
            url = f"{address}/calls/{phone.call_sid}/say"
            assert (await client.post(url, json={"text": text})).status_code == 202

    opening, table, again = speech
    await heard(1)
    await phone.say(opening)
    await heard(2)
    await phone.say(table)
    await heard(3)
    assert session.mouth.spoken[2].text == "At what time?"
    await phone.say(again)
    await heard(4)
    assert session.mouth.spoken[3].text == "At what time?"
    await types("at eight")
    await heard(5)
    await types("goodbye")


SDK_CLIENT = """
import json, pathlib, sys, threading
from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from deepgram.core.events import EventType
from deepgram.agent.v1.types import *

base = f"127.0.0.1:{sys.argv[1]}"
speech = pathlib.Path(sys.argv[2]).read_bytes()
environment = DeepgramClientEnvironment(
    base=f"http://{base}", production=f"ws://{base}", agent=f"ws://{base}",
    agent_rest=f"http://{base}",
)
mulaw = {"encoding": "mulaw", "sample_rate": 8000}
functions = [
    {"name": "book_table", "description": "Book a table.", "parameters": {"type": "object"}},
    {"name": "end_call", "description": "Hang up.", "parameters": {"type": "object"}},
]
said, asked, audio, kinds = [], [], bytearray(), []
with DeepgramClient(api_key="none", environment=environment).agent.v1.connect() as agent:
    agent.send_settings(AgentV1Settings.model_validate({
        "type": "Settings",
        "audio": {"input": mulaw, "output": {**mulaw, "container": "none"}},
        "agent": {
            "greeting": "Good evening!",
            "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
            "think": {"provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                      "prompt": "Be kind.", "functions": functions},
            "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
        },
    }))
    for message in agent:
        if isinstance(message, bytes):
            audio.extend(message)
            continue
        kind = getattr(message, "type", None) or message["type"]
        kinds.append(kind)
        if kind == "ConversationText":
            said.append([message.role, message.content])
        elif kind == "FunctionCallRequest":
            call = message.functions[0]
            asked.append([call.name, json.loads(call.arguments)])
            agent.send_function_call_response(AgentV1SendFunctionCallResponse(
                id=call.id, name=call.name, content=json.dumps({"table": 5})))
        elif kind == "AgentAudioDone":
            done = kinds.count("AgentAudioDone")
            if done == 1:
                for at in range(0, len(speech), 480):
                    agent.send_media(speech[at:at + 480])
            elif done == 2:
                agent.send_inject_user_message(
                    AgentV1InjectUserMessage(content="A table for 2 at 7:30, please."))
            elif done == 3:
                agent.send_inject_user_message(AgentV1InjectUserMessage(content="Goodbye!"))
            else:
                break
print(json.dumps({"said": said, "asked": asked, "audio": len(audio), "kinds": kinds}))
"""


async def test_deepgrams_own_sdk_holds_a_conversation(tmp_path: Path) -> None:
    (speech,) = await synthesise_all(["when are you open"], voice=VOICE)
    file = tmp_path / "speech.ulaw"
    file.write_bytes(PAUSE + speech + PAUSE)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            pool = Pool(DIALOGUE.setup(voice=VOICE), 1)
            await nursery.start(pool.run)
            agent = local_agent(DIALOGUE, pool)
            port = await nursery.start(agent.serve)
            done = await trio.run_process(
                [sys.executable, "-W", "ignore", "-c", SDK_CLIENT, str(port), str(file)],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr.decode()
            (session,) = agent.sessions
            await agent.wait_until_idle()
            nursery.cancel_scope.cancel(reason="the conversation is over")
    result = json.loads(done.stdout)
    assert session.faults == []
    assert [words for role, words in result["said"] if role == "user"] == [
        "When are you open",
        "A table for 2 at 7:30, please.",
        "Goodbye!",
    ]
    agents = [words for role, words in result["said"] if role == "assistant"]
    assert agents[0] == "Good evening!"
    assert agents[1].startswith("We are open from five")
    assert agents[2] == "Table 5 is yours: for two, tonight at seven thirty."
    assert agents[-2] == "Goodbye!"
    assert result["asked"] == [
        ["book_table", {"guests": 2, "time": "19:30", "day": "today"}],
        ["end_call", {}],
    ]
    assert result["audio"] > 8 * 8000
    assert {"Welcome", "SettingsApplied", "UserStartedSpeaking", "History", "LatencyReport"} <= set(
        result["kinds"]
    )


MINE = """
greeting = "Hello!"

[slots.guests]
example = "four"
words = { two = 2, four = 4 }

[[turns]]
name = "hours"
phrases = ["when are you open"]
reply = "From five."

[[turns]]
name = "book"
phrases = ["a table for {guests}"]
reply = "We have no tables."
"""


async def test_the_demo_calls_and_is_up_until_ctrl_c(tmp_path: Path) -> None:
    """With a dialogue of one's own: it says what to open and opens it, a phone says what is in a
    recording and is answered, the softphone gets its phrases, a caller more than there are workers
    hears at once that the lines are busy, and nothing of it is left."""
    (speech,) = await synthesise_all(["when are you open"], voice=VOICE)
    write_wav(tmp_path / "speech.wav", speech)
    (tmp_path / "mine.toml").write_text(MINE)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    command = [sys.executable, "-W", "ignore", "-c", "from bridge.cli import main; main()", "demo"]
    process = await trio.lowlevel.open_process(
        [
            *(*command, "--records", "kept", "--dialogue", "mine.toml", "--open", "--stay"),
            *("--phone", "speech.wav", "--save", "heard.wav"),
        ],
        stdout=-1,
        stderr=-1,
        cwd=tmp_path,
        env={**os.environ, "BROWSER": f"{browser} %s"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with trio.fail_after(PATIENCE):
        try:
            said = b""
            while b"Press Ctrl-C to stop." not in said:
                piece = await process.stderr.receive_some(65536)
                assert piece, said.decode()
                said += piece
            banner = said.decode()
            softphone, _, token = banner.partition("softphone  ")[2].split()[0].partition("#token=")
            address = softphone.removesuffix("/softphone")
            assert address.startswith("http://127.0.0.1:")
            assert "understands 2 phrases" in banner
            assert "a table for ⟨four⟩" in banner
            assert (tmp_path / "opened").read_text() == f"{softphone}#token={token}"
            async with httpx.AsyncClient(
                headers={"Authorization": f"Bearer {token}"}, trust_env=False
            ) as client:
                page = await client.get(f"{address}/softphone")
                assert page.status_code == 200
                call = await client.post(f"{address}/softphone/call", json={})
                assert call.json()["phrases"] == ["when are you open", "a table for ⟨four⟩"]
                for _ in range(cores() - 1):
                    call = await client.post(f"{address}/softphone/call", json={})
                    assert call.status_code == 200
                busy = await client.post(f"{address}/softphone/call", json={})
                assert (busy.status_code, "busy" in busy.json()["error"]) == (503, True)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            rest = b"".join([piece async for piece in process.stderr])
            assert b"Traceback" not in rest
            printed = b"".join([piece async for piece in process.stdout]).decode()
        finally:
            process.kill()
            await process.stdout.aclose()
            await process.stderr.aclose()
    greeting, question, answer = printed.splitlines()[:3]
    assert greeting.endswith("  agent   Hello!")
    assert question.endswith("  caller  When are you open")
    assert re.search(r"s  agent   From five\.  \(\d+\.\d\d s after the caller\)$", answer)
    heard = read_wav(tmp_path / "heard.wav").replace(SILENCE, b"")
    assert len(heard) > 8000, "a greeting and an answer"
    assert (tmp_path / "kept" / "calls.db").is_file()
