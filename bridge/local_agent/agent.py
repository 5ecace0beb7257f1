"""The local agent: the simulated agent's protocol, a speech worker, and a dialogue."""

from __future__ import annotations

from collections.abc import Callable

import trio

from bridge.local_agent.dialogue import Dialogue
from bridge.local_agent.events import Event, Recognised, Started
from bridge.local_agent.grammar import written
from bridge.local_agent.pool import Pool
from bridge.local_agent.talk import CallFunction, SayText, Step, Talk, declared
from bridge.local_agent.understanding import Understanding
from bridge.local_agent.worker_client import SpeechWorker, WorkerBroken
from bridge.testing.agent.record import CallerTurn, keep
from bridge.testing.agent.server import AgentSession, Behaviour, Script, SimulatedAgent

FAILED = "INTERNAL_SERVER_ERROR"

# Seconds for a client to answer a function call; its own deadline should be much shorter.
FUNCTION_SECONDS = 30.0

# Two per turn of the caller. When it is full, the client does not read: the session ends.
WAITING_EVENTS = 64


def local_agent(
    dialogue: Dialogue,
    pool: Pool,
    *,
    on_event: Callable[[AgentSession, str], None] | None = None,
    keep_sessions: int = 4,
) -> SimulatedAgent:
    """Return a Voice Agent server that holds `dialogue`; `pool.run` must be running.

    Sessions beyond the number of the pool's workers are rejected with 429.
    """
    behaviour = Behaviour(
        require_key=False,
        max_sessions=pool.size,
        full_message=f"The local agent is full: it holds one call per core, {pool.size} here.",
        stale_chunks=0,
        latency_every=0,  # measured ones are sent instead
        agent_started_speaking="never",  # likewise
        max_recorded_bytes=0,
    )
    return SimulatedAgent(
        script_of(dialogue),
        behaviour,
        on_event=on_event,
        keep_sessions=keep_sessions,
        senses=lambda: LocalSenses(pool),
    )


def script_of(dialogue: Dialogue) -> Script:
    """Return the dialogue as a script for the simulated agent."""
    understanding = Understanding(dialogue)

    async def converse(session: AgentSession) -> None:
        talk = Talk(dialogue, understanding)
        if greeting := _greeting(session):
            talk.spoke(greeting)
        while True:
            turn = await session.wait_for_turn()
            await _answer(session, talk, turn.text or "")

    return converse


async def _answer(session: AgentSession, talk: Talk, text: str) -> None:
    began = trio.current_time()
    talk.functions = declared(session.think)
    step: Step | None = talk.hear(text)
    while isinstance(step, CallFunction):
        step = await _called(session, talk, step)
    if step is not None:
        await _say(session, step, began)


async def _called(session: AgentSession, talk: Talk, call: CallFunction) -> Step | None:
    """Call a function; return the next step, or None if the caller went on and cancelled it."""
    try:
        (answer,) = await session.call_functions(
            [{"name": call.name, "arguments": call.arguments}], timeout=FUNCTION_SECONDS
        )
    except trio.TooSlowError:
        await session.cancel_functions()
        return talk.answered('{"error": "no answer"}')
    if answer.cancelled:
        talk.abandon()
        return None
    return talk.answered(answer.response or "")


async def _say(session: AgentSession, say: SayText, began: float) -> None:
    assert session.senses is not None
    thought = trio.current_time()
    audio = await session.senses.speak(say.text)
    spoken = trio.current_time()
    if session.user_speaking:
        return  # the caller went on speaking: this would answer half a sentence
    latencies = {
        "ttt_text_latency": thought - began,
        "tts_latency": spoken - thought,
        "total_latency": spoken - began,
    }
    for name, seconds in latencies.items():  # real sessions report one figure per message
        await session.latency_report(**{name: round(seconds, 4)})
    if session.mouth.experimental:
        await session.send(
            {
                "type": "AgentStartedSpeaking",
                "total_latency": round(spoken - began, 4),
                "tts_latency": round(spoken - thought, 4),
                "ttt_latency": round(thought - began, 4),
            }
        )
    await session.say(say.text, audio)


def _greeting(session: AgentSession) -> str:
    agent = (session.settings or {}).get("agent")
    greeting = agent.get("greeting") if isinstance(agent, dict) else None
    return greeting if isinstance(greeting, str) else ""


class LocalSenses:
    """Hears and speaks for a session with a worker of the pool; implements `Senses`.

    When the worker crashes or hangs, the session ends with the protocol's Error.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._worker: SpeechWorker | None = None
        self._why = ""
        self._broken = trio.Event()

    async def run(
        self,
        session: AgentSession,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep a worker until the session ends; started when the worker is ready."""
        try:
            async with self._pool.worker() as self._worker:
                tell, told = trio.open_memory_channel[Event](WAITING_EVENTS)

                def take(event: Event) -> None:
                    try:
                        tell.send_nowait(event)
                    except trio.WouldBlock:
                        self._break("the client does not read")

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._worker.run, take)
                    nursery.start_soon(self._tell, session, told)
                    task_status.started()
                    await self._broken.wait()
                    raise WorkerBroken(self._why)
        except* WorkerBroken as group:
            why = _first(group)
        session.event(f"speech worker: {why}")
        await session.error(FAILED, "The agent's speech worker failed.")

    async def hear(self, audio: bytes) -> None:
        """Give the worker the caller's audio: µ-law at 8 kHz."""
        assert self._worker is not None
        try:
            await self._worker.hear(audio)
        except WorkerBroken as error:
            self._break(str(error))

    async def speak(self, text: str) -> bytes:
        """Return the speech of `text` as µ-law at 8 kHz."""
        assert self._worker is not None
        try:
            return await self._worker.speak(text)
        except WorkerBroken as error:
            self._break(str(error))
        await trio.sleep_forever()  # until the Error has ended the session
        raise AssertionError("unreachable")

    async def end_turn(self) -> None:
        """End the caller's turn by force."""
        assert self._worker is not None
        try:
            await self._worker.end_turn()
        except WorkerBroken as error:
            self._break(str(error))

    async def _tell(self, session: AgentSession, told: trio.MemoryReceiveChannel[Event]) -> None:
        async for event in told:
            if isinstance(event, Started):
                keep(session.onsets, event.at)
                await session.user_started_speaking()
                # The caller may have changed their mind.
                await session.cancel_functions()
            elif isinstance(event, Recognised):
                await session.latency_report(stt_latency=event.took)
                text = event.phrase or event.dictation
                if text:
                    await session.user_said(written(text))
                session.add_turn(CallerTurn(text=text))

    def _break(self, why: str) -> None:
        self._why = self._why or why
        self._broken.set()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
