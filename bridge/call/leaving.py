"""How a call takes its leave: the agent says goodbye, the caller hears it, and only then it ends.

Two ways in. Either the call is to end and the agent is given the words, as when the server stops;
or the agent has asked for the end and says what it likes, as after `end_call`. In both, "heard" is
told by the mark behind the goodbye, and a deadline holds whatever becomes of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from bridge.call.conversation import Conversation
from bridge.call.parting import Parting
from bridge.call.report import CallReport
from bridge.deepgram.session import AgentClosed, AgentSession
from bridge.outcome import Outcome

# How long a goodbye may take: until the agent begins it; until the caller has heard it, when the
# agent chose the words; and when they are ours, one sentence.
PARTING_BEGINS_SECONDS: Final = 5.0
PARTING_SECONDS: Final = 15.0
FAREWELL_SECONDS: Final = 8.0

# What the caller waits in silence for Twilio to take over, before the other way is taken.
TRANSFER_SECONDS: Final = 3.0

Transfer = Callable[[str, str], Awaitable[None]]


class Leaving:
    """The leave-taking of one call; the first one that begins is the only one.

    `end` ends the call now. `start` runs a task of the call's. `transfer` has Twilio connect a call
    SID to a number; None where there are no credentials for that.
    """

    def __init__(
        self,
        conversation: Conversation,
        report: CallReport,
        *,
        end: Callable[[Outcome, str], None],
        start: Callable[[Callable[[], Awaitable[None]]], None],
        transfer: Transfer | None,
    ) -> None:
        self._conversation = conversation
        self._report = report
        self._end = end
        self._start = start
        self._transfer = transfer
        self.handed_over: tuple[Outcome, str] | None = None
        """What the end is called if Twilio takes the call away from us, as it does to transfer."""

    def with_words(self, agent: AgentSession, words: str, outcome: Outcome, reason: str) -> None:
        """Have the agent say `words`, one sentence, and end the call when the caller has heard
        them, at the latest after FAREWELL_SECONDS. Returns at once."""
        parting = Parting(words)

        async def say_and_follow() -> None:
            try:
                await self._conversation.inject(agent, words, "interrupt")
            except AgentClosed:
                return self._end(outcome, reason)  # there is nobody to say it
            await self._follow(parting, FAREWELL_SECONDS)
            self._end(outcome, reason)
            return None

        self._begin(parting, say_and_follow)

    def after_goodbye(self, outcome: Outcome, reason: str, transfer_to: str = "") -> None:
        """End the call when the caller has heard what the agent says next, at the latest after
        PARTING_SECONDS, unless they cut in: then they have more to say, and the call goes on.
        Returns at once. `transfer_to` is the number the caller is connected to afterwards.
        """
        parting = Parting()

        async def follow() -> None:
            await self._follow(parting, PARTING_SECONDS)
            if parting.interrupted:
                self._conversation.parting = None
                return
            self._report.transfer_to = transfer_to
            await self._hand_over(outcome, reason)
            self._end(outcome, reason)

        self._begin(parting, follow)

    def _begin(self, parting: Parting, follow: Callable[[], Awaitable[None]]) -> None:
        if self._conversation.parting is None:
            self._conversation.parting = parting
            self._start(follow)

    async def _follow(self, parting: Parting, seconds: float) -> None:
        """Wait until the goodbye is over, one way or another."""
        with trio.move_on_after(seconds):
            with trio.move_on_after(PARTING_BEGINS_SECONDS):
                await parting.begun.wait()
            if parting.begun.is_set():
                await parting.over.wait()
            else:
                # Nothing more is said; what was said before may still be playing.
                await self._conversation.wait_played()

    async def _hand_over(self, outcome: Outcome, reason: str) -> None:
        """Have Twilio connect the caller elsewhere. It then takes the stream away itself; should it
        not, closing the socket makes it ask `/call-ended`, which says the same."""
        info, number = self._report.info, self._report.transfer_to
        if self._transfer is not None and number and info is not None:
            self.handed_over = outcome, reason
            with trio.move_on_after(TRANSFER_SECONDS):
                await self._transfer(info.call_sid, number)
