"""Ending a call politely: the agent says goodbye, the caller hears it, then the call ends.

There are two ways in. Either the call is to end and the agent is given the words, as when the
server stops; or the agent has asked for the end and says what it likes, as after `end_call`. "Said"
is not "heard": the agent's audio comes seconds before it is played. In both ways the mark behind
the goodbye tells that it was heard, and a deadline holds whatever the agent does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from bridge.call.report import CallReport
from bridge.deepgram.session import AgentClosed
from bridge.ending import Ending
from bridge.outcome import Outcome

if TYPE_CHECKING:
    from bridge.call.conversation import Conversation

# How long a goodbye may take: until the agent begins it; until the caller has heard it, when the
# agent chose the words; and when they are ours, one sentence.
GOODBYE_BEGINS_SECONDS: Final = 5.0
GOODBYE_SECONDS: Final = 15.0
FAREWELL_SECONDS: Final = 8.0

# What the agent is asked to say when the server stops.
FAREWELL: Final = "I'm sorry, this call has to end now, please call again, goodbye."

# What the caller waits in silence for Twilio to take over, before the other way is taken.
TRANSFER_SECONDS: Final = 3.0

Transfer = Callable[[str, str], Awaitable[None]]


class Goodbye:
    """Tracks one goodbye until the caller has heard it.

    `words` picks the utterance by its text; without, the next one is it. `begun` is set when the
    agent begins to say it; `over` when the caller has heard it to its end or cut in, and
    `interrupted` tells which.
    """

    def __init__(self, words: str = "") -> None:
        self._words = words
        self._mark: str | None = None
        self.begun = trio.Event()
        self.over = trio.Event()
        self.interrupted = False

    def agent_said(self, words: str) -> None:
        """The agent's text: of the goodbye, or of something else."""
        if not self._words or words in self._words:
            self.begun.set()

    def utterance_sent(self, mark: str) -> None:
        """An utterance was sent whole, with this mark behind it."""
        if self.begun.is_set():
            self._mark = self._mark or mark

    def mark_returned(self, name: str, *, played: bool) -> None:
        """A mark came back: played, or because of `clear`."""
        if name == self._mark:
            self.interrupted = not played
            self.over.set()

    def caller_cut_in(self) -> None:
        """`clear` was sent: what was being said is not going to be heard."""
        if self.begun.is_set() and not self.over.is_set():
            self.interrupted = True
            self.over.set()


class PoliteEnd:
    """Ends one call behind a goodbye; of several that are asked for, the first that begins counts.

    `transfer` has Twilio connect a call SID to a number; None where there are no credentials.
    """

    def __init__(
        self,
        conversation: Conversation,
        wait_played: Callable[[], Awaitable[None]],
        ending: Ending[Outcome],
        report: CallReport,
        transfer: Transfer | None,
    ) -> None:
        self._conversation = conversation
        self._wait_played = wait_played
        self._ending = ending
        self._report = report
        self._transfer = transfer
        self.handed_over: tuple[Outcome, str] | None = None
        """What the end is called if Twilio takes the call away from us, as it does to transfer."""

    def wind_down(self, outcome: Outcome, reason: str, words: str = FAREWELL) -> None:
        """Have the agent say `words`, one sentence, and end the call when the caller has heard
        them, at the latest after FAREWELL_SECONDS. Without an agent the call ends now. Returns at
        once; a second time changes nothing."""
        if self._conversation.agent is None:
            self._ending.begin(outcome, reason)
            return
        goodbye = Goodbye(words)

        async def say_and_follow() -> None:
            try:
                await self._conversation.inject(words, "interrupt")
                await self._follow(goodbye, FAREWELL_SECONDS)
            except AgentClosed:
                pass  # nothing more can be said
            self._ending.begin(outcome, reason)

        self._begin(goodbye, say_and_follow)

    def end_after_goodbye(self, outcome: Outcome, reason: str, transfer_to: str = "") -> None:
        """End the call when the caller has heard what the agent says next, at the latest after
        GOODBYE_SECONDS, unless they cut in: then they have more to say, and the call goes on.
        Returns at once. `transfer_to` is the number the caller is connected to afterwards.
        """
        goodbye = Goodbye()

        async def follow() -> None:
            await self._follow(goodbye, GOODBYE_SECONDS)
            if goodbye.interrupted:
                self._conversation.goodbye = None
                return
            self._report.transfer_to = transfer_to
            await self._hand_over(outcome, reason)
            self._ending.begin(outcome, reason)

        self._begin(goodbye, follow)

    def _begin(self, goodbye: Goodbye, follow: Callable[[], Awaitable[None]]) -> None:
        if self._conversation.goodbye is None:
            self._conversation.goodbye = goodbye
            self._ending.start_soon(follow, name="goodbye")

    async def _follow(self, goodbye: Goodbye, seconds: float) -> None:
        """Wait until the goodbye is over, one way or another."""
        with trio.move_on_after(seconds):
            with trio.move_on_after(GOODBYE_BEGINS_SECONDS):
                await goodbye.begun.wait()
            if goodbye.begun.is_set():
                await goodbye.over.wait()
            else:
                # Nothing more is said; what was said before may still be playing.
                await self._wait_played()

    async def _hand_over(self, outcome: Outcome, reason: str) -> None:
        """Have Twilio connect the caller elsewhere. It then takes the stream away itself; should it
        not, closing the socket makes it ask `/call-ended`, which says the same."""
        if self._transfer is not None and self._report.transfer_to:
            self.handed_over = outcome, reason
            with trio.move_on_after(TRANSFER_SECONDS):
                await self._transfer(self._report.info.call_sid, self._report.transfer_to)
