"""Scripts: the built-in one, and those from TOML files."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from bridge.testing.agent.script import ECHO_BEHAVIOUR, ScriptError, echo, load_script
from bridge.testing.agent.server import SimulatedAgent
from bridge.testing.agent.voice import CLIPS, DEFAULT_GREETING, hum, speech_for
from bridge.testing.speech import load_clip
from tests.unit.testing.agent_client import SILENCE, Client, connected, settings

PAUSE = SILENCE * 8000


def write(folder: Path, text: str) -> Path:
    path = folder / "script.toml"
    path.write_text(text, encoding="utf-8")
    return path


def agent_for(folder: Path, text: str) -> SimulatedAgent:
    script, behaviour = load_script(write(folder, text))
    return SimulatedAgent(script, behaviour)


async def utter(client: Client, seconds: float = 1.0) -> None:
    await client.speak(hum(seconds) + PAUSE)


async def test_the_default_script_greets_and_repeats_the_callers_own_voice(autojump_clock) -> None:
    agent = SimulatedAgent(echo, ECHO_BEHAVIOUR)
    async with connected(agent, settings("of Settings"), headers=[]) as client:
        await client.wait_for("AgentAudioDone")
        assert " ".join(client.texts("assistant")) == DEFAULT_GREETING
        assert b"".join(client.chunks()) == load_clip("hello")
        await utter(client, 1.8)
        await client.wait_for("AgentAudioDone", 2)
    assert client.texts("user") == ["(speech, 1.8 s)"]
    reply = b"".join(client.chunks())[len(load_clip("hello")) :]
    assert reply.startswith(load_clip("you-said"))
    assert hum(1.8) in reply


async def test_the_default_script_goes_on(autojump_clock) -> None:
    async with connected(SimulatedAgent(echo, ECHO_BEHAVIOUR), settings()) as client:
        await client.wait_for("AgentAudioDone")
        for number in (2, 3, 4):
            await utter(client)
            await client.wait_for("AgentAudioDone", number)
        await client.send({"type": "InjectUserMessage", "content": "hello"})
        await client.wait_for("AgentAudioDone", 5)
    assert client.texts("assistant")[-1] == "You wrote: hello"


def test_every_clip_is_shipped() -> None:
    for text, name in CLIPS.items():
        assert speech_for(text) == load_clip(name)
        assert len(load_clip(name)) > 2000
    assert sum(len(load_clip(name)) for name in CLIPS.values()) < 150_000


def test_any_other_text_is_audible_for_about_as_long_as_it_takes_to_say() -> None:
    assert len(speech_for("x" * 50)) == pytest.approx(50 * 0.06 * 8000, abs=160)
    assert len(set(speech_for("x" * 50))) > 50


async def test_a_script_file_from_the_first_turn_to_the_close(autojump_clock, tmp_path) -> None:
    agent = agent_for(
        tmp_path,
        """
        greeting = "Welcome."
        [behaviour]
        speed = 4.0
        history = false
        [[turns]]
        heard = "What time is it?"
        call = [{ name = "get_time", arguments = { zone = "UTC" } }]
        say = "It is noon."
        [[turns]]
        after_seconds = 20
        say = "Goodbye."
        audio = "goodbye"
        close = 1000
        """,
    )
    async with connected(agent, settings("of Settings")) as client:
        await client.wait_for("AgentAudioDone")
        await utter(client)
        request = await client.wait_for("FunctionCallRequest")
        (function,) = request["functions"]
        assert (function["name"], function["arguments"]) == ("get_time", '{"zone": "UTC"}')
        answer = {"id": function["id"], "name": "get_time", "content": "12:00"}
        await client.send({"type": "FunctionCallResponse", **answer})
        await client.wait_for("AgentAudioDone", 2)
        replied = trio.current_time()
        while trio.current_time() < replied + 18:
            await client.send({"type": "KeepAlive"})
            await trio.sleep(5)
        assert await client.wait_gone() == 1000
    assert client.texts("user") == ["What time is it?"]
    assert client.texts("assistant") == ["Welcome.", "It is noon.", "Goodbye."]
    assert client.received[-1][0] - replied == pytest.approx(20, abs=1)
    assert b"".join(client.chunks()).endswith(load_clip("goodbye"))
    assert client.all("History") == []


async def test_a_turn_for_an_injected_text_answers_whenever_it_comes(
    autojump_clock, tmp_path
) -> None:
    agent = agent_for(tmp_path, '[[turns]]\ntext = "1"\nsay = "You pressed one."\n')
    async with connected(agent, settings()) as client:
        for answers, texts in ((1, ("2", "1")), (2, ("2", "1"))):
            for text in texts:
                await client.send({"type": "InjectUserMessage", "content": text})
            await client.wait_for("AgentAudioDone", answers)
    assert client.texts("user") == ["2", "1"] * 2
    assert client.texts("assistant") == ["You pressed one."] * 2


async def test_repeat_and_echo(autojump_clock, tmp_path) -> None:
    agent = agent_for(tmp_path, 'repeat = true\n[[turns]]\nsay = "Again."\naudio = "echo"\n')
    async with connected(agent, settings()) as client:
        for number in (1, 2, 3):
            await utter(client)
            await client.wait_for("AgentAudioDone", number)
    assert b"".join(client.chunks()).count(hum(1.0)) == 3


async def test_an_error_turn(autojump_clock, tmp_path) -> None:
    agent = agent_for(
        tmp_path, '[[turns]]\nafter_seconds = 1\nerror = { code = "FAILED_TO_THINK" }\n'
    )
    async with connected(agent, settings()) as client:
        await client.wait_gone()
    assert client.all("Error")[0]["code"] == "FAILED_TO_THINK"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("greting = 'x'", "greting: unknown key; did you mean greeting?"),
        ("[behaviour]\nspede = 2", "behaviour.spede: unknown key; did you mean speed?"),
        ("[[turns]]\nsays = 'x'", "turns[0].says: unknown key; did you mean say?"),
        ("[[turns]]\nerror = {cod = 'x'}", "turns[0].error.cod: unknown key; did you mean code?"),
        ("[[turns]]\ncall = [{nam = 'x'}]", "turns[0].call[0].nam: unknown key; did you"),
        ("[[turns]]\nzzzzzz = 1", "there are after_seconds, text, heard"),
        ("[[turns]]\nclose = 'now'", "turns[0].close: Expected `int`, got `str`"),
        ("[[turns]]\nclose = 7", "turns[0].close: Expected `int` >= 1000"),
        ("[behaviour]\nspeed = -1", "behaviour.speed: Expected `float` >= 0.0"),
        ("[behaviour]\nchunk_bytes = []", "behaviour.chunk_bytes: Expected"),
        ("[[turns]]\ntext = '1'\nafter_seconds = 1", "turns[0]: has both text and after_seconds"),
        ("[[turns]]\naudio = 'none.wav'", "turns[0].audio: "),
        ("[[turns]]\naudio = '../x'", "turns[0].audio: "),
        ("[[turns]]\naudio = 'nothing'", 'turns[0].audio: no clip "nothing"; name a .wav file'),
        ("repeat = true", "repeat: there is no turn to repeat"),
        ("turns = 3", "turns: Expected `array`, got `int`"),
        ("a =", "not TOML"),
    ],
)
def test_a_bad_file_is_reported_by_field_and_remedy(tmp_path, text: str, message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        load_script(write(tmp_path, text))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'script.toml'}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported(tmp_path) -> None:
    with pytest.raises(ScriptError, match="cannot be read: No such file"):
        load_script(tmp_path / "none.toml")
