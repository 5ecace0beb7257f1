"""The local agent over its protocol, with a real worker: what is recognised, and what goes wrong.

Speech is made when the tests run, and given to the agent faster than it is spoken: no test here
depends on how fast the machine is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionRejected

from bridge.local_agent import pool as pools
from bridge.local_agent import worker_client
from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import load_dialogue
from bridge.local_agent.events import Recognised, Setup, Started
from bridge.local_agent.pool import Pool
from bridge.local_agent.synthesis import synthesise_all
from bridge.local_agent.understanding import Understanding
from bridge.local_agent.worker_client import SpeechWorker, WorkerBroken, open_worker
from bridge.testing.agent.server import SimulatedAgent
from tests.unit.testing.agent_client import Client, connected, settings

PATIENCE = 120  # a busy machine; what hangs is noticed all the same
VOICE = "espeak-ng"  # which is there wherever the tests run
PAUSE = b"\xff" * 6000
DIALOGUE = load_dialogue()

KNOWN = {
    "when are you open": "hours",
    "my name is robert": "name",
    "book a table for three people on friday": "book",
    "goodbye": "goodbye",
}
UNKNOWN = [
    "they painted the kitchen bright yellow",
    "my brother lives in a small town near the river",
]


@pytest.fixture(scope="module")
def speech() -> dict[str, bytes]:
    """What is said in these tests, in µ-law."""
    texts = [*KNOWN, *UNKNOWN]
    said = trio.run(lambda: synthesise_all(texts, voice=VOICE))
    return dict(zip(texts, said, strict=True))


async def recognise(worker: SpeechWorker, audio: bytes) -> list[Started | Recognised]:
    """What the worker makes of `audio`; its answer to a text comes when it has taken all of it."""
    heard: list[Started | Recognised] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, heard.append)
        for at in range(0, len(audio), 480):
            await worker.hear(audio[at : at + 480])
        # Frames are taken in order: when this is spoken, everything before was heard.
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    await worker.speak("so")
                    break
                except WorkerBroken:  # it was not so quick
                    assert worker.alive
        nursery.cancel_scope.cancel(reason="all is heard")
    return heard


async def test_phrases_are_recognised_and_others_are_not(speech: dict[str, bytes]) -> None:
    understanding = Understanding(DIALOGUE)
    found, wrong = {}, []
    async with open_worker(DIALOGUE.setup(voice=VOICE)) as worker:
        for text, audio in speech.items():
            events = await recognise(worker, PAUSE + audio + PAUSE)
            assert [type(event) for event in events] == [Started, Recognised], text
            (recognised,) = [event for event in events if isinstance(event, Recognised)]
            assert 0 < recognised.ended - recognised.started < len(audio) / 8000 + 1
            meaning = understanding.meaning(recognised.phrase or recognised.dictation)
            found[text] = meaning and meaning.turn.name
            if text in UNKNOWN and recognised.phrase:
                wrong.append((text, recognised))
    assert not wrong
    assert [found[text] for text in UNKNOWN] == [None] * len(UNKNOWN)
    missed = {text: found[text] for text, turn in KNOWN.items() if found[text] != turn}
    assert len(missed) <= 1, missed  # no recogniser is perfect, and no two voices the same


async def test_noise_that_does_not_end_is_cut(speech: dict[str, bytes]) -> None:
    setup = Setup(
        grammar=DIALOGUE.setup().grammar, words=[], voice=VOICE, hangover=0.5, longest_turn=2.0
    )
    endless = b"".join(speech[text] for text in ("goodbye", "when are you open") * 3)
    async with open_worker(setup) as worker:
        events = await recognise(worker, endless)
        turns = [event for event in events if isinstance(event, Recognised)]
        assert len(turns) >= 2
        assert all(turn.ended - turn.started <= 2.1 for turn in turns)


async def test_a_turn_is_ended_by_force(speech: dict[str, bytes]) -> None:
    async with open_worker(DIALOGUE.setup(voice=VOICE)) as worker:
        heard: list[Started | Recognised] = []
        ended = trio.Event()

        def take(event: Started | Recognised) -> None:
            heard.append(event)
            if isinstance(event, Recognised):
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run, take)
            await worker.end_turn()  # no speech: no reply
            await worker.hear(PAUSE + speech["when are you open"])  # and no pause after it
            await worker.end_turn()
            with trio.fail_after(PATIENCE):
                await ended.wait()
            nursery.cancel_scope.cancel(reason="seen")
    assert len(heard) == 2


async def test_a_word_that_cannot_be_pronounced() -> None:
    setup = Setup(grammar="#JSGF V1.0;", words=["hello", "nyoki"], voice=VOICE)
    with pytest.raises(WorkerBroken, match=r"no pronunciation for nyoki; .*\[pronunciations\]"):
        async with open_worker(setup):
            pass


@asynccontextmanager
async def agent(size: int = 1) -> AsyncIterator[tuple[SimulatedAgent, Pool]]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            pool = Pool(DIALOGUE.setup(voice=VOICE), size)
            await nursery.start(pool.run)
            yield local_agent(DIALOGUE, pool), pool
            nursery.cancel_scope.cancel(reason="the test is over")


FUNCTIONS = [{"name": name} for name in ("book_table", "end_call", "transfer_call")]


def opening(greeting: str = "", functions: list[dict[str, str]] = FUNCTIONS) -> dict[str, object]:
    return settings(
        greeting, think={"provider": {"type": "open_ai", "model": "m"}, "functions": functions}
    )


def answers(client: Client) -> list[str]:
    return client.texts("assistant")


async def say(client: Client, audio: bytes) -> None:
    for at in range(0, len(audio), 480):
        await client.send(audio[at : at + 480])


async def test_a_conversation(speech: dict[str, bytes]) -> None:
    """Greeting, a spoken turn, a typed one, a function, and what is repeated."""
    async with agent() as (server, _), connected(server, opening("Good evening!")) as client:
        await client.wait_for("AgentAudioDone")
        assert answers(client) == ["Good evening!"]
        await say(client, PAUSE + speech["when are you open"] + PAUSE)
        await client.wait_for("AgentAudioDone", 2)
        assert client.texts("user") == ["When are you open"]
        assert answers(client)[1].startswith("We are open from five")
        kinds = {key for report in client.all("LatencyReport") for key in report} - {"type"}
        assert kinds == {"stt_latency", "ttt_text_latency", "tts_latency", "total_latency"}
        await client.send({"type": "InjectUserMessage", "content": "A table for 2 at 8, please."})
        await client.wait_for("FunctionCallRequest")
        (call,) = client.all("FunctionCallRequest")[0]["functions"]
        assert call["name"] == "book_table"
        result = {"type": "FunctionCallResponse", "id": call["id"], "name": "book_table"}
        await client.send({**result, "content": '{"table": 5}'})
        await client.wait_for("AgentAudioDone", 3)
        assert answers(client)[2].startswith("Table 5 is yours: for two, tonight at eight.")
        history = client.all("History")
        assert {"role": "assistant", "content": answers(client)[2]}.items() <= history[-2].items()


async def test_the_caller_cuts_in(speech: dict[str, bytes]) -> None:
    """The reply stops, and the function that was asked for is not wanted any more."""
    async with agent() as (server, _), connected(server, opening()) as client:
        await client.send({"type": "InjectUserMessage", "content": "what can I say"})
        await client.wait_for("ConversationText", 2)
        await say(client, PAUSE + speech["when are you open"])
        await client.wait_for("UserStartedSpeaking")
        await say(client, PAUSE)
        await client.wait_for("AgentAudioDone")
        (session,) = server.sessions
        cut, whole = session.mouth.spoken
        assert cut.interrupted
        assert cut.sent < len(cut.audio)
        assert not whole.interrupted
        await client.send({"type": "InjectUserMessage", "content": "goodbye"})
        await client.wait_for("FunctionCallRequest")
        # It is never answered, and the caller speaks on.
        await say(client, speech["when are you open"] + PAUSE)
        await client.wait_for("FunctionCallCancelled")
        await client.wait_for("AgentAudioDone", 2)
        assert answers(client)[-1].startswith("We are open")


async def test_a_client_without_functions_is_told_and_the_agent_hangs_up_by_itself() -> None:
    async with agent() as (server, _), connected(server, opening(functions=[])) as client:
        await client.send({"type": "InjectUserMessage", "content": "can I speak to a person"})
        await client.wait_for("AgentAudioDone")
        assert answers(client) == ["I am sorry, I cannot do that on this line."]
        await client.send({"type": "InjectUserMessage", "content": "goodbye"})
        await client.wait_gone()
        assert server.sessions[0].closed is not None
        assert server.sessions[0].closed.code == 1000


async def test_injected_words_are_spoken_with_the_same_voice() -> None:
    async with agent() as (server, _), connected(server, opening()) as client:
        await client.send({"type": "InjectAgentMessage", "message": "Are you still there?"})
        await client.wait_for("AgentAudioDone")
        assert 4000 < len(b"".join(client.chunks())) < 24_000
        await client.send({"type": "UpdatePrompt", "prompt": "Be brief."})
        await client.wait_for("PromptUpdated")


async def test_one_more_than_there_are_workers_is_refused() -> None:
    async with agent(size=1) as (server, pool):
        async with connected(server, opening()):
            assert (pool.taken, server.rejected) == (1, [])
            full = pytest.RaisesExc(
                ConnectionRejected, check=lambda e: b"The local agent is full" in (e.body or b"")
            )
            with pytest.RaisesGroup(full, flatten_subgroups=True):
                async with connected(server, opening()):
                    pass
            assert server.rejected == [429]
        await server.wait_until_idle()
        assert pool.taken == 0
        async with connected(server, opening()) as client:
            await client.wait_for("SettingsApplied")


async def test_a_worker_that_dies_ends_its_session_and_no_other() -> None:
    async with agent(size=2) as (server, _):
        async with connected(server, opening()) as one, connected(server, opening()) as other:
            await one.wait_for("SettingsApplied")
            await other.wait_for("SettingsApplied")
            senses = server.sessions[0].senses
            os.kill(senses._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
            await one.wait_gone()
            assert [error["code"] for error in one.all("Error")] == ["INTERNAL_SERVER_ERROR"]
            await other.send({"type": "InjectUserMessage", "content": "when are you open"})
            await other.wait_for("AgentAudioDone")
            assert not other.all("Error")


async def test_a_worker_that_hangs_ends_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "PING_EVERY", 0.05)
    monkeypatch.setattr(worker_client, "PONG_SECONDS", 1.0)
    async with agent() as (server, _), connected(server, opening()) as client:
        await client.wait_for("SettingsApplied")
        pid = server.sessions[0].senses._worker.pid  # type: ignore[union-attr]
        os.kill(pid, signal.SIGSTOP)
        await client.wait_gone()
        assert [error["code"] for error in client.all("Error")] == ["INTERNAL_SERVER_ERROR"]
        await server.wait_until_idle()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_waiting_worker_that_died_is_replaced() -> None:
    async with agent() as (server, pool):
        assert pool._waiting is not None
        os.kill(pool._waiting.pid, signal.SIGKILL)
        await pool._waiting._process.wait()
        async with connected(server, opening("Good evening!")) as client:
            await client.wait_for("AgentAudioDone")


class Loaded:
    """A worker that is none."""

    alive = True
    voice = "none"


async def test_one_is_kept_warm_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next caller does not wait for it to load, and none of them outlives the pool."""
    started: list[Loaded] = []
    ended: list[Loaded] = []

    async def start(setup: Setup) -> Loaded:
        started.append(Loaded())
        return started[-1]

    async def end(worker: Loaded) -> None:
        ended.append(worker)

    monkeypatch.setattr(pools, "start_worker", start)
    monkeypatch.setattr(pools, "end_worker", end)
    pool = Pool(Setup(), 2)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert len(started) == 1
        async with pool.worker() as one:
            await trio.testing.wait_all_tasks_blocked()
            assert (one, len(started)) == (started[0], 2)
            async with pool.worker() as another:
                await trio.testing.wait_all_tasks_blocked()
                assert (another, len(started)) == (started[1], 2), "every core has its call"
            await trio.testing.wait_all_tasks_blocked()
            assert len(started) == 3
        nursery.cancel_scope.cancel(reason="seen")
    assert sorted(map(id, ended)) == sorted(map(id, started))


async def test_without_a_first_worker_the_pool_does_not_start() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(WorkerBroken, match="no engine 'sam'")):
        async with trio.open_nursery() as nursery:
            await nursery.start(Pool(Setup(voice="sam"), 1).run)


def test_there_is_at_least_one_core() -> None:
    assert pools.cores() >= 1
