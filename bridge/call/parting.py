"""A goodbye on its way to the caller's ear, after which the call is to end.

"Said" is not "heard": the agent's audio comes seconds before it is played. So a parting watches for
the utterance that is the goodbye, for the mark behind it, and for that mark's return.
"""

from __future__ import annotations

import trio


class Parting:
    """Follows one goodbye. `words` picks the utterance by its text; without, the next one is it.

    `begun` is set when the agent begins to say it; `over` when the caller has heard it to its end
    or cut in. `interrupted` tells which.
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
