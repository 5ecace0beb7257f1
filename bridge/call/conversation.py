"""The conversation of a call: routes the agent's messages to the phone, the story and the timers.

The agent reader runs it. It outlives the agent's sessions and continues after a reconnection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import msgspec
import trio

from bridge.call.barge_in import STALE_SECONDS
from bridge.call.downlink import Downlink
from bridge.call.earlier import NOTHING_EARLIER, Earlier
from bridge.call.goodbye import Goodbye
from bridge.call.keypad import PAUSE_SECONDS
from bridge.call.memory import Memory
from bridge.call.silence import Silence
from bridge.call.story import Role, Story
from bridge.config.words import Words
from bridge.deepgram import messages as agent_says
from bridge.deepgram.session import AgentClosed, AgentFailed, AgentSession
from bridge.deepgram.updates import AgentTable
from bridge.functions.in_flight import FunctionCalls, Tasks
from bridge.log import get_logger

log = get_logger(__name__)

# https://developers.deepgram.com/docs/voice-agent-errors-warnings
_SLOW: Final = frozenset({"SLOW_THINK_REQUEST", "SLOW_SPEAK_REQUEST"})

# How long audio is stale after a key, in seconds: the entry ends with a pause.
ENTRY_SECONDS: Final = PAUSE_SECONDS + STALE_SECONDS

# How long the agent may take to say or refuse words it was given. It says them later if others are
# in the queue.
DECISION_SECONDS: Final = 5.0

# Words given to the agent, its own and the caller's, whose echo is known: MAX_TYPED, and more. In
# lists: an empty deque takes 600 bytes of each call.
ECHOES: Final = 32


class Conversation:
    """The words of one call: the caller's, the agent's and bridge's own.

    `changed` is called after each visible change. With `greeting_protected` the caller cannot
    interrupt the first utterance. `earlier` are the call's legs before this one, whose conversation
    is resumed.
    """

    def __init__(
        self,
        downlink: Downlink,
        story: Story,
        silence: Silence,
        table: AgentTable,
        words: Words,
        *,
        changed: Callable[[], object],
        greeting_protected: bool,
        earlier: Earlier = NOTHING_EARLIER,
    ) -> None:
        self._downlink = downlink
        self._story = story
        self._silence = silence
        self._table = table
        self._words = words
        self._changed = changed
        self._greeting_protected = greeting_protected
        # Words that bridge gave the agent to say; ConversationText repeats them as the agent's.
        self._given: list[str] = []
        # Set when the agent says, or refuses to say, what `say` gave it.
        self._decided = trio.Event()
        self._refused = False
        # Words that bridge gave it as the caller's; they are in the story already.
        self._echoes: list[str] = []
        self.memory = Memory(earlier.history)
        # What the next session says first, instead of an apology for the interruption.
        self._first_words = earlier.words
        self.agent: AgentSession | None = None
        """The open session; None before the first one and between two."""
        self._session_opened = trio.Event()
        self.running: FunctionCalls | None = None
        """The functions that the session has called."""
        self.goodbye: Goodbye | None = None
        """The goodbye in progress, if there is one."""

    # ---- from the agent -------------------------------------------------------------------------

    async def follow(
        self,
        agent: AgentSession,
        functions: FunctionCalls,
        tasks: Tasks,
        *,
        greets: bool = False,
        resumed: bool = False,
    ) -> NoReturn:
        """Act on the agent's messages until its session ends. The functions that it calls run in
        `tasks`. With `greets` the agent speaks first, by itself; a session that was `resumed` is
        made to speak first, so that the caller does not wait in silence.

        Raises AgentFailed when the agent sends an Error, AgentClosed when the session is over. If
        it is cancelled, agent audio that was received and not yet sent to the phone is lost.
        """
        self.agent, self.running = agent, functions
        self._downlink.session_opened()
        self._silence.session_opened(trio.current_time())
        self._changed()
        try:
            await self._begin(greets=greets, resumed=resumed)
            self._session_opened.set()
            while True:
                for message in await agent.receive():
                    if isinstance(message, bytes):
                        self._downlink.put(message, agent.received_at)
                    else:
                        await self._hear(message, agent.received_at, functions, tasks)
                        self._changed()
                if await self._downlink.play():
                    self._changed()
                if not self._silence.reply_due:
                    self.memory.replied()
        except (AgentFailed, AgentClosed):
            # The caller should still hear the audio that came before.
            await self._downlink.play()
            raise
        finally:
            self.agent, self._session_opened = None, trio.Event()
            self._silence.session_lost(trio.current_time())
            # Their answers belong to a session that is over.
            functions.cancel_all()
            self._changed()

    async def _begin(self, *, greets: bool, resumed: bool) -> None:
        """Have a new session speak: what the earlier legs of the call left to say, the reply that
        the last session owed, an apology for the interruption, or its greeting."""
        first, self._first_words = self._first_words, ""
        if first:
            await self.inject(first, "queue")
        if words := self.memory.unanswered:
            await self._quote(words)
        elif resumed and not first:
            await self.inject(self._words.cut_off, "queue")
        elif greets:
            self._silence.agent_thinking(trio.current_time())

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
                    self._caller_said(words, now, message.languages)
                elif role == "assistant":
                    self._agent_said(words, now, reply=message.is_reply)
            case agent_says.FunctionCallRequest(functions=called):
                gate.new_turn()
                self.memory.functions_called(called)
                functions.start(tasks, message)
            case agent_says.FunctionCallResponse():
                self.memory.function_answered(message.id, message.content)
                functions.answered(message.id)
            case agent_says.FunctionCallCancelled(functions=cancelled):
                self.memory.functions_cancelled(cancelled)
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
                self.memory.history({k: v for k, v in item.items() if v is not None})
            case (
                agent_says.PromptUpdated()
                | agent_says.ThinkUpdated()
                | agent_says.SpeakUpdated()
                | agent_says.ListenUpdated()
            ):
                self._table.acknowledged()
            case agent_says.InjectionRefused():
                log.info("agent refused words", reason=message.message)
                self._refused = True
                self._decided.set()
            case agent_says.Warning(code=code, description=words):
                log.warning("agent warning", code=code, words=words)
                if code in _SLOW:
                    self._silence.agent_slow(now)
            case agent_says.Error():
                raise AgentFailed(message)
            case _:
                pass

    def _caller_said(self, words: str, now: float, languages: object) -> None:
        self._silence.caller_said(now)
        if words in self._echoes:
            self._echoes.remove(words)
            self._story.echoed(now)
        else:
            self._story.caller_said(words, now, languages)
            self.memory.caller_said(words)

    def _agent_said(self, words: str, now: float, *, reply: bool) -> None:
        given = any(words in given for given in self._given)
        self._story.agent_line(words, now, self._downlink.unsent, reply=reply and not given)
        if not reply:
            self._silence.injected(now)
            return
        if given:
            self._decided.set()
        else:
            self._silence.agent_said(now)
        if self.goodbye is not None:
            self.goodbye.agent_said(words)

    async def _clear(self, signalled_at: float, stale_seconds: float = STALE_SECONDS) -> None:
        await self._downlink.clear(signalled_at, stale_seconds)
        if self.goodbye is not None:
            self.goodbye.caller_cut_in()
        log.debug("barge-in")

    # ---- from us --------------------------------------------------------------------------------

    @property
    def agent_may_be_heard(self) -> bool:
        """Whether the phone may be playing audio of the agent."""
        return self._downlink.playback.may_be_playing

    async def wait_session(self) -> None:
        """Wait until a session is open."""
        await self._session_opened.wait()

    async def inject(self, words: str, behavior: str) -> None:
        """Give the agent words to say, with `behavior` as in InjectAgentMessage.

        Raises AgentClosed when there is no session.
        """
        if words not in self._given:
            self._given = [*self._given, words][-ECHOES:]
        if self.running is not None:
            self.running.fill_silence()
        self._downlink.gate.new_turn()
        self._silence.injected(trio.current_time())
        await self._session().send(agent_says.InjectAgentMessage(words, behavior))

    async def say(self, words: str) -> bool:
        """Give the agent words to say, and return whether it takes them: it refuses while the
        caller speaks.

        Raises AgentClosed when there is no session.
        """
        self._decided, self._refused = trio.Event(), False
        await self.inject(words, "queue")
        with trio.move_on_after(DECISION_SECONDS):
            await self._decided.wait()
        return not self._refused

    async def send(self, message: agent_says.ToAgent) -> None:
        """Send the agent a message. Raises AgentClosed when there is no session."""
        await self._session().send(message)

    async def give_callers_words(self, words: str) -> None:
        """Give the agent words that the caller wrote or keyed in, as if they had been spoken. They
        interrupt the agent, as speech does.

        Raises AgentClosed when there is no session.
        """
        self._session()
        if self.may_be_cut_off:
            await self._clear(trio.current_time())
        await self._quote(words)
        # Not before: words that could not be sent are given again by the task that sends them.
        self.memory.caller_said(words)

    async def _quote(self, words: str) -> None:
        if words not in self._echoes:
            self._echoes = [*self._echoes, words][-ECHOES:]
        await self._session().send(agent_says.InjectUserMessage(words))
        self._silence.caller_quoted(trio.current_time())

    async def answer(self, result: agent_says.FunctionResult) -> None:
        """Give the agent the result of a function. Raises AgentClosed when there is no session."""
        self.memory.function_answered(result.id or "", result.content)
        await self._session().send(result)

    async def end_turn(self) -> None:
        """Tell an agent that uses Flux that the caller's turn is over.

        Raises AgentClosed when there is no session.
        """
        await self._session().send(agent_says.ForceEndTurn())

    def _session(self) -> AgentSession:
        if self.agent is None:
            raise AgentClosed("there is no session")
        return self.agent

    # ---- from the phone -------------------------------------------------------------------------

    def mark_returned(self, name: str) -> None:
        """A mark came back from the phone: the audio before it was heard, or cleared."""
        heard = self._downlink.mark_returned(name, trio.current_time())
        if name not in heard and self.goodbye is not None:
            self.goodbye.mark_returned(name, played=False)
        self._heard(heard)
        self._changed()

    def settle(self, now: float) -> None:
        """Take as heard what the phone must have played by `now`, although no mark says so."""
        if marks := self._downlink.overdue(now):
            self._heard(marks)
            self._changed()

    def _heard(self, marks: list[str]) -> None:
        for name in marks:
            self._greeting_protected = False
            self.memory.begun |= not self._silence.reply_due  # a filler is no greeting
            if self.goodbye is not None:
                self.goodbye.mark_returned(name, played=True)

    @property
    def may_be_cut_off(self) -> bool:
        """Whether the agent may be heard now, and interrupted."""
        return self._downlink.playback.may_be_playing and not self._greeting_protected

    async def key_cut_in(self) -> None:
        """Silence the agent, because the caller pressed a key: what it goes on to say is dropped
        until it is told the entry."""
        now = trio.current_time()
        if self.may_be_cut_off:
            await self._clear(now, ENTRY_SECONDS)
        elif self._downlink.gate.is_shut(now):
            self._downlink.gate.caller_cut_in(now, ENTRY_SECONDS)

    def keys_pressed(self, digits: str, pressed_at: float) -> None:
        """The caller entered these digits on the keypad, the last of them at `pressed_at`."""
        self._written(digits, "keypad", pressed_at)

    def words_written(self, words: str) -> None:
        """The caller wrote these words instead of saying them."""
        self._written(words, "caller", trio.current_time())

    def _written(self, text: str, role: Role, at: float) -> None:
        now = trio.current_time()
        self._silence.caller_pressed(now)
        self._story.caller_typed(text, now, role, at)
        self._changed()

    def function_over(
        self, name: str, seconds: float, result: str, arguments: str, answer: str
    ) -> None:
        """A function is over: answered, failed or cancelled."""
        now = trio.current_time()
        self._story.function_used(name, seconds, result, now, arguments, answer)
        self._changed()
