"""Routes the agent's messages: what each of them means for the phone, the story, and the watches.

The agent reader runs this; it outlives the agent's sessions and goes on where it was after a
reconnection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec
import trio

from bridge.call.downlink import Downlink
from bridge.call.goodbye import Goodbye
from bridge.call.silence import Silence
from bridge.call.story import Story
from bridge.deepgram import messages as agent_says
from bridge.deepgram.session import AgentClosed, AgentFailed, AgentSession
from bridge.functions.in_flight import FunctionCalls, Tasks
from bridge.log import get_logger

log = get_logger(__name__)

# Items of the conversation kept to resume it with. A model's memory of a phone call needs no more,
# and a call of hours must not grow without end; the oldest go first.
HISTORY_ITEMS: Final = 300

# Words given to the agent as the caller's, whose echo has not come: as many as may wait, and some.
ECHOES: Final = 32


class Conversation:
    """What is said in one call, by both sides and by the bridge.

    `changed` is called when there is something new to see. `greeting_protected`: the caller cannot
    interrupt the first utterance.
    """

    def __init__(
        self,
        downlink: Downlink,
        story: Story,
        silence: Silence,
        *,
        changed: Callable[[], object],
        greeting_protected: bool,
    ) -> None:
        self._downlink = downlink
        self._story = story
        self._silence = silence
        self._changed = changed
        self._greeting_protected = greeting_protected
        # What the agent was given to say: when it says it, those are not its own words.
        self._given: list[str] = []
        # What it was given as the caller's words, which are in the story already.
        self._echoes: deque[str] = deque(maxlen=ECHOES)
        self.history: list[dict[str, Any]] = []
        """Items of the agent's History messages, to resume the conversation in a new session."""
        self.agent: AgentSession | None = None
        """The session that is open, None between two and before the first."""
        self._session_opened = trio.Event()
        self.running: FunctionCalls | None = None
        """The functions that the session has asked for."""
        self.goodbye: Goodbye | None = None
        """The goodbye that is being said, if one is."""

    # ---- from the agent -------------------------------------------------------------------------

    async def follow(self, agent: AgentSession, functions: FunctionCalls, tasks: Tasks) -> NoReturn:
        """Play, clear and mark as the agent says, until its session ends. The functions that it
        calls run in `tasks`.

        Raises AgentFailed when the agent sends an Error, AgentClosed when the session is over.
        Cancelled, it loses what the agent has said and the phone was not sent.
        """
        self.agent, self.running = agent, functions
        self._session_opened.set()
        self._downlink.session_opened()
        self._silence.session_opened(trio.current_time())
        self._changed()
        try:
            while True:
                for message in await agent.receive():
                    if isinstance(message, bytes):
                        self._downlink.put(message, agent.received_at)
                    else:
                        await self._hear(message, agent.received_at, functions, tasks)
                        self._changed()
                if await self._downlink.play():
                    self._changed()
        except (AgentFailed, AgentClosed):
            # What it said before is still worth hearing.
            await self._downlink.play()
            raise
        finally:
            self.agent, self._session_opened = None, trio.Event()
            self._silence.session_lost(trio.current_time())
            # Their answers would be for a session that is over.
            functions.cancel_all()
            self._changed()

    async def _hear(
        self, message: agent_says.Message, now: float, functions: FunctionCalls, tasks: Tasks
    ) -> None:
        gate = self._downlink.gate
        match message:
            case agent_says.UserStartedSpeaking():
                self._silence.caller_spoke(now)
                self._story.caller_spoke()
                if not self._greeting_protected:
                    await self._clear(now)
            case agent_says.AgentAudioDone():
                mark = await self._downlink.finish_utterance()
                if self.goodbye is not None and mark is not None:
                    self.goodbye.utterance_sent(mark)
            case agent_says.ConversationText(role=role, content=words):
                log.debug("said", role=role, words=words)
                if role == "user":
                    gate.new_turn()
                    self._caller_said(words, now)
                else:
                    self._agent_said(words, now)
            case agent_says.FunctionCallRequest():
                gate.new_turn()
                functions.start(tasks, message)
            case agent_says.FunctionCallCancelled():
                functions.cancel(message)
            case agent_says.EndOfTurn():
                gate.new_turn()
                self._silence.caller_said(now)
            case agent_says.AgentThinking():
                gate.new_turn()
                self._silence.agent_thinking(now)
            case agent_says.AgentStartedSpeaking():
                gate.new_turn()
                self._story.latencies(message)
            case agent_says.LatencyReport():
                self._story.latencies(message)
            case agent_says.History():
                item = msgspec.to_builtins(message)
                self.history.append({k: v for k, v in item.items() if v is not None})
                del self.history[:-HISTORY_ITEMS]
            case agent_says.Warning(code=code, description=words):
                log.warning("agent warning", code=code, words=words)
            case agent_says.Error():
                raise AgentFailed(message)
            case _:
                pass

    def _caller_said(self, words: str, now: float) -> None:
        self._silence.caller_said(now)
        self._story.turn_confirmed(now)
        if words in self._echoes:
            self._echoes.remove(words)
        else:
            self._story.caller_line(words, now)

    def _agent_said(self, words: str, now: float) -> None:
        self._story.agent_line(words, now, self._downlink.unsent)
        if not any(words in given for given in self._given):
            self._silence.agent_said(now)
        if self.goodbye is not None:
            self.goodbye.agent_said(words)

    async def _clear(self, signalled_at: float) -> None:
        await self._downlink.clear(signalled_at)
        if self.goodbye is not None:
            self.goodbye.caller_cut_in()
        log.debug("barge-in")

    # ---- from us --------------------------------------------------------------------------------

    async def wait_session(self) -> None:
        """Wait until a session is open."""
        await self._session_opened.wait()

    async def inject(self, words: str, behavior: str) -> None:
        """Give the agent words to say; `behavior` as in InjectAgentMessage.

        Raises AgentClosed when there is no session.
        """
        if words not in self._given:
            self._given.append(words)
        self._downlink.gate.new_turn()
        self._silence.injected(trio.current_time())
        await self._session().send(agent_says.InjectAgentMessage(words, behavior))

    async def give_callers_words(self, words: str, *, cut_in: bool) -> None:
        """Give the agent words that the caller wrote or keyed in, as if they had been spoken; with
        `cut_in` they interrupt it, as speech does.

        Raises AgentClosed when there is no session.
        """
        agent = self._session()
        if cut_in and self._downlink.playback.may_be_playing and not self._greeting_protected:
            await self._clear(trio.current_time())
        if words not in self._echoes:
            self._echoes.append(words)
        await agent.send(agent_says.InjectUserMessage(words))

    async def end_turn(self) -> None:
        """Tell an agent that listens with Flux that the caller's turn is over.

        Raises AgentClosed when there is no session.
        """
        await self._session().send(agent_says.ForceEndTurn())

    def _session(self) -> AgentSession:
        if self.agent is None:
            raise AgentClosed("there is no session", clean=False)
        return self.agent

    # ---- from the phone -------------------------------------------------------------------------

    def mark_returned(self, name: str) -> None:
        """A mark came back from the phone: what was sent before it has been heard, or cleared."""
        played = self._downlink.mark_returned(name, trio.current_time())
        if played:
            self._greeting_protected = False
        if self.goodbye is not None:
            self.goodbye.mark_returned(name, played=played)
        self._changed()

    def keys_pressed(self, digits: str) -> None:
        """The caller entered these digits on the keypad."""
        self._written(digits, keypad=True)

    def words_written(self, words: str) -> None:
        """The caller wrote these words instead of saying them."""
        self._written(words, keypad=False)

    def _written(self, text: str, *, keypad: bool) -> None:
        now = trio.current_time()
        self._silence.caller_pressed(now)
        self._story.caller_line(text, now, role="keypad" if keypad else "caller")
        self._changed()

    def function_over(self, name: str, seconds: float, result: str) -> None:
        """A function has been answered, or will not be."""
        self._story.function_used(name, seconds, result, trio.current_time())
        self._changed()
