"""What time brings in a call: silence, stalls, the pause behind typed digits, the longest call.
And what is typed, digits or words, which waits here until there is a session to take it.

A task of the call's own, beside its three: it does what nobody says or sends anything for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from bridge.call.conversation import Conversation
from bridge.call.keypad import Keypad, keypad_words
from bridge.call.silence import Action, Silence
from bridge.config.settings import CallSettings
from bridge.deepgram.messages import ForceEndTurn
from bridge.deepgram.session import AgentClosed, AgentSession
from bridge.log import get_logger
from bridge.outcome import Outcome

log = get_logger(__name__)

# What the agent is asked to say, each in one sentence so that it is one utterance.
STILL_THERE: Final = "Are you still there?"
IDLE_FAREWELL: Final = "I can't hear you any more, so I will hang up now, goodbye."
ONE_MOMENT: Final = "One moment, please."
LAST_MINUTE: Final = "Just so you know, this call will end in one minute."
TIME_IS_UP: Final = "We have come to the end of our time, thank you for calling, goodbye."
WARNING_SECONDS: Final = 60.0

# How exactly the clock is kept for things that take seconds.
TICK_SECONDS: Final = 0.25

# Typed and not sent yet, because there is no session: enough for a menu, and bounded.
MAX_TYPED: Final = 16


class _Typed(NamedTuple):
    words: str  # as the agent is told them
    cut_in: bool


class Timekeeper:
    """Keeps the time of one call.

    `agent` gives the session there is, or None. `wind_down` ends the call with words of ours.
    """

    def __init__(
        self,
        conversation: Conversation,
        silence: Silence,
        settings: CallSettings,
        *,
        began_at: float,
        agent: Callable[[], AgentSession | None],
        wind_down: Callable[[Outcome, str, str], None],
    ) -> None:
        self._conversation = conversation
        self._silence = silence
        self._settings = settings
        self._agent = agent
        self._wind_down = wind_down
        self._ends_at = began_at + 60 * settings.max_minutes
        self._warn_at = self._ends_at - WARNING_SECONDS
        self._keypad = Keypad()
        self._typed: list[_Typed] = []
        self._wake = trio.Event()
        self.force_end_turn = False
        """Whether the agent can be told that the caller's turn is over: Flux can."""

    def key_pressed(self, digit: str) -> None:
        """The caller pressed a key. Never waits: what is typed is sent with the next tick."""
        self._add(self._keypad.press(digit, trio.current_time()))

    def say(self, words: str) -> bool:
        """The caller wrote this instead of saying it: the agent is told at once, or when there is
        one. Never waits; False, and nothing done, when MAX_TYPED messages are waiting already.
        """
        if len(self._typed) >= MAX_TYPED:
            return False
        self._conversation.words_written(words)
        self._typed.append(_Typed(words, cut_in=True))
        self._wake.set()
        return True

    async def run(self) -> None:
        """Do what is due, for as long as the call lasts."""
        while True:
            # The ticks of all calls are in the same pass of the event loop.
            with trio.move_on_at((trio.current_time() // TICK_SECONDS + 1) * TICK_SECONDS):
                await self._wake.wait()
            self._wake = trio.Event()
            now = trio.current_time()
            self._add(self._keypad.take(now))
            agent = self._agent()
            if agent is None:
                continue
            try:
                await self._tick(agent, now)
            except AgentClosed:
                continue  # the agent reader hears of it too

    async def _tick(self, agent: AgentSession, now: float) -> None:
        while self._typed:
            await self._send_typed(agent, self._typed[0])
            del self._typed[0]
        if now >= self._ends_at:
            self._wind_down(Outcome.MAX_DURATION, "call.max_minutes are over", TIME_IS_UP)
        elif now >= self._warn_at:
            self._warn_at = float("inf")
            await self._conversation.inject(agent, LAST_MINUTE, "queue")
        else:
            await self._break_silence(agent, now)

    async def _break_silence(self, agent: AgentSession, now: float) -> None:
        match self._silence.next(now):
            case Action.ASK_STILL_THERE:
                await self._conversation.inject(agent, STILL_THERE, "queue")
            case Action.SAY_GOODBYE:
                self._wind_down(Outcome.IDLE, "no word from either side", IDLE_FAREWELL)
            case Action.FILLER:
                log.warning("agent stalls", seconds=self._settings.stall_seconds)
                # Not "interrupt": that it is refused is what tells a stuck session from a cough.
                await self._conversation.inject(agent, ONE_MOMENT, "queue")
            case Action.RECONNECT:
                await agent.abandon("it heard the caller and says nothing")
            case None:
                pass

    async def _send_typed(self, agent: AgentSession, typed: _Typed) -> None:
        await self._conversation.give_callers_words(agent, typed.words, cut_in=typed.cut_in)
        if self.force_end_turn:
            await agent.send(ForceEndTurn())

    def _add(self, typed: str | None) -> None:
        if typed and len(self._typed) < MAX_TYPED:
            self._conversation.keys_pressed(typed)
            self._typed.append(_Typed(keypad_words(typed), cut_in=False))
