"""Timers of a call: silence, stalls, slow functions, pauses on the keypad, the longest call.

A task of the call's own beside its three: it acts when nothing is received.
"""

from __future__ import annotations

from typing import Final

import trio

from bridge.call.conversation import Conversation
from bridge.call.goodbye import PoliteEnd
from bridge.call.silence import Action, Silence
from bridge.call.typed import TypedInput
from bridge.call.voice import Voice
from bridge.config.settings import CallSettings
from bridge.config.words import Words
from bridge.deepgram.session import AgentClosed
from bridge.log import get_logger
from bridge.outcome import Outcome

log = get_logger(__name__)

# How long before the end of the longest call the agent announces it.
WARNING_SECONDS: Final = 60.0

# How exactly the clock is kept for things that take seconds.
TICK_SECONDS: Final = 0.25


class Timekeeper:
    """Keeps the time of one call, which began at `began_at` on Trio's clock.

    A session that stalls is replaced `suspicions` times, counted apart from sessions that were
    lost. After that it is kept: it may yet speak, and a caller who is hung up on hears nothing.
    """

    def __init__(
        self,
        conversation: Conversation,
        silence: Silence,
        typed: TypedInput,
        end: PoliteEnd,
        settings: CallSettings,
        words: Words,
        voice: Voice,
        *,
        suspicions: int,
        began_at: float,
        filler_seconds: float,
    ) -> None:
        self._conversation = conversation
        self._silence = silence
        self._typed = typed
        self._end = end
        self._words = words
        self._voice = voice
        self._stall_seconds = settings.stall_seconds
        self._filler_seconds = filler_seconds
        self._quiet_since = began_at
        self._suspicions = suspicions
        self._ends_at = began_at + 60 * settings.max_minutes
        self._warn_at = self._ends_at - WARNING_SECONDS

    async def run(self) -> None:
        """Do what is due, for as long as the call lasts."""
        while True:
            await trio.sleep(TICK_SECONDS)
            now = trio.current_time()
            self._typed.pause(now)
            self._conversation.settle(now)
            if (agent := self._conversation.agent) is not None:
                try:
                    await agent.watch(TICK_SECONDS)
                    await self._tick(now)
                except AgentClosed:
                    continue  # the agent reader notices, too

    async def _tick(self, now: float) -> None:
        if now >= self._ends_at:
            self._end.wind_down(
                Outcome.MAX_DURATION, "call.max_minutes are over", self._words.time_is_up
            )
        elif now >= self._warn_at:
            self._warn_at = float("inf")
            await self._conversation.inject(self._words.last_minute, "queue")
        else:
            await self._break_silence(now)
            await self._fill_in(now)

    async def _break_silence(self, now: float) -> None:
        match self._silence.next(now):
            case Action.ASK_STILL_THERE:
                await self._conversation.inject(self._words.still_there, "queue")
            case Action.SAY_GOODBYE:
                self._end.wind_down(
                    Outcome.IDLE, "no word from either side", self._words.idle_goodbye
                )
            case Action.FILLER:
                log.warning("agent stalls", seconds=self._stall_seconds)
                # Not "interrupt": that it is refused is what tells a stuck session from a cough.
                await self._conversation.inject(self._words.one_moment, "queue")
            case Action.RECONNECT if self._suspicions <= 0:
                log.warning("agent stalls, and was replaced too often; keeping it")
            case Action.RECONNECT:
                if self._conversation.agent is not None:
                    self._suspicions -= 1
                    await self._conversation.agent.abandon("it heard the caller and says nothing")
            case None:
                pass

    async def _fill_in(self, now: float) -> None:
        """Let the caller hear something while a function runs, once for each function call."""
        conversation, functions = self._conversation, self._conversation.running
        if conversation.agent_may_be_heard:
            self._quiet_since = now
        elif functions is not None and self._filler_seconds and conversation.goodbye is None:
            spoke_at = max(self._quiet_since, self._voice.last_voiced_at)
            if now - max(functions.silent_since, spoke_at) >= self._filler_seconds:
                await conversation.inject(self._words.one_moment, "queue")
