"""Ending a call politely: the agent says goodbye, the caller hears it, then the call ends.

There are two cases. Either bridge ends the call and gives the agent the words, as when the server
stops; or the agent has asked for the end and chooses its own words, as after `end_call`. "Said" is
not "heard": the agent's audio arrives seconds before it is played. In both cases the mark after the
goodbye shows that the caller heard it, and a deadline applies regardless of what the agent does.
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

# The time for a goodbye, in seconds: until the agent begins it; until the caller has heard it, if
# the agent chose the words; and the same for one sentence given by bridge.
GOODBYE_BEGINS_SECONDS: Final = 5.0
GOODBYE_SECONDS: Final = 15.0
FAREWELL_SECONDS: Final = 8.0

# How long the caller waits in silence for Twilio's REST API before the transfer is left to
# `/call-ended`.
TRANSFER_SECONDS: Final = 3.0

# Has Twilio connect the call of a report to its `transfer_to`.
Transfer = Callable[[CallReport], Awaitable[None]]


class Goodbye:
    """Tracks one goodbye until the caller has heard it.

    `words` selects the utterance by its text; if empty, the next utterance is the goodbye. `begun`
    is set when the agent begins to say it; `over` when the caller has heard all of it or has
    interrupted it, and `interrupted` tells which; `given_up` when the call goes on after that.
    """

    def __init__(self, words: str = "") -> None:
        self._words = words
        self._mark: str | None = None
        self.begun = trio.Event()
        self.over = trio.Event()
        self.given_up = trio.Event()
        self.interrupted = False

    def agent_said(self, words: str) -> None:
        """The agent sent text: of the goodbye, or of another utterance."""
        if not self._words or words in self._words:
            self.begun.set()

    def utterance_sent(self, mark: str) -> None:
        """A whole utterance was sent, followed by this mark."""
        if self.begun.is_set():
            self._mark = self._mark or mark

    def mark_returned(self, name: str, *, played: bool) -> None:
        """A mark came back: played, or because of `clear`."""
        if name == self._mark:
            self.interrupted = not played
            self.over.set()

    def caller_cut_in(self) -> None:
        """`clear` was sent: the rest of the current utterance will not be heard."""
        if self.begun.is_set() and not self.over.is_set():
            self.interrupted = True
            self.over.set()


class PoliteEnd:
    """Ends one call after a goodbye. If several are requested, the first one that begins counts.

    `transfer` has Twilio connect the caller over REST; None leaves it to `/call-ended`.
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
        """The outcome to report if Twilio closes the stream, as it does for a transfer."""

    def wind_down(
        self,
        outcome: Outcome,
        reason: str,
        words: str,
        transfer_to: str = "",
        transfer_name: str = "",
    ) -> None:
        """Have the agent say `words` and end the call when the caller has heard them, at the latest
        after FAREWELL_SECONDS. Without an agent the call ends now. Returns at once; a second call
        changes nothing. The transfer is as in `end_after_goodbye`."""
        if self._conversation.agent is None:
            self._report.transfer_to, self._report.transfer_name = transfer_to, transfer_name
            self._ending.begin(outcome, reason)
            return
        goodbye = Goodbye(words)

        async def say_and_follow() -> None:
            try:
                await self._conversation.inject(words, "interrupt")
                await self._follow(goodbye, FAREWELL_SECONDS)
            except AgentClosed:
                pass  # nothing more can be said
            await self._end(outcome, reason, transfer_to, transfer_name)

        self._begin(goodbye, say_and_follow)

    def end_after_goodbye(
        self, outcome: Outcome, reason: str, transfer_to: str = "", transfer_name: str = ""
    ) -> None:
        """End the call when the caller has heard the agent's next utterance, at the latest after
        GOODBYE_SECONDS. If the caller interrupts it, the call continues. Returns at once.
        `transfer_to` is the phone that the caller is connected to afterwards, see
        `bridge.twilio.targets`, and `transfer_name` its name; the outcome is then HANDED_OVER.
        """
        goodbye = Goodbye()

        async def follow() -> None:
            await self._follow(goodbye, GOODBYE_SECONDS)
            if goodbye.interrupted:
                self._conversation.goodbye = None
                goodbye.given_up.set()
                return
            await self._end(outcome, reason, transfer_to, transfer_name)

        self._begin(goodbye, follow)

    async def _end(
        self, outcome: Outcome, reason: str, transfer_to: str, transfer_name: str
    ) -> None:
        self._report.transfer_to, self._report.transfer_name = transfer_to, transfer_name
        await self._hand_over(outcome, reason)
        self._ending.begin(outcome, reason)

    async def finish(self) -> None:
        """The agent's session is over. If a goodbye is in progress, end the call as soon as the
        caller has heard what was sent of it; return only if the caller interrupts it. If none is,
        return at once."""
        if (goodbye := self._conversation.goodbye) is not None:
            await self._wait_played()
            goodbye.begun.set()
            goodbye.over.set()
            await goodbye.given_up.wait()

    def _begin(self, goodbye: Goodbye, follow: Callable[[], Awaitable[None]]) -> None:
        if self._conversation.goodbye is None:
            self._conversation.goodbye = goodbye
            self._ending.start_soon(follow, name="goodbye")

    async def _follow(self, goodbye: Goodbye, seconds: float) -> None:
        """Wait until the goodbye was heard or interrupted, for at most `seconds`."""
        with trio.move_on_after(seconds):
            with trio.move_on_after(GOODBYE_BEGINS_SECONDS):
                await goodbye.begun.wait()
            if goodbye.begun.is_set():
                await goodbye.over.wait()
            else:
                # The agent says no goodbye; earlier audio may still be playing.
                await self._wait_played()

    async def _hand_over(self, outcome: Outcome, reason: str) -> None:
        """Have Twilio connect the caller elsewhere. Twilio then closes the stream itself. If it
        does not, closing the socket makes it request `/call-ended`, which transfers, too."""
        if self._transfer is not None and self._report.transfer_to:
            self.handed_over = outcome, reason
            with trio.move_on_after(TRANSFER_SECONDS):
                await self._transfer(self._report)
