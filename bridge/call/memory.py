"""What is remembered of the conversation, to continue it in a new session. Sans-I/O.

A session may break while its agent owes a reply. Whether a session answers the last message of its
context by itself is not documented; so the context of the next one ends before the turn that has no
reply, and the caller's words in that turn are given again, as InjectUserMessage. It is answered
once either way.

    in the context      History messages of all turns whose reply the caller has begun to hear
                        function calls, those that were interrupted included: they have happened
    given again         the caller's words since then
    left out            what the agent wrote since then, which nobody has heard

https://developers.deepgram.com/docs/voice-agent-history
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from bridge.deepgram.messages import CancelledFunction, FunctionCall

# Items kept. A model needs no more of a phone call, and the memory of a call of hours must stay
# bounded; the oldest items are dropped first.
HISTORY_ITEMS: Final = 300

# The result, told to the model, of a function call that was cut short with its session.
INTERRUPTED: Final = (
    '{"error": "interrupted: the connection was lost while this ran. It may have taken effect or '
    'not; check before you call it again."}'
)

Item = dict[str, Any]


class Memory:
    """The conversation of one call so far, across its sessions. `history`: of its earlier legs."""

    def __init__(self, history: Iterable[Mapping[str, Any]] = ()) -> None:
        self._items: list[Item] = [dict(item) for item in history]
        # What an earlier leg left unanswered stays in the context: a leg has its own first words.
        self._earlier = len(self._items)
        self.begun = bool(self._items)
        """Whether either side has heard the other: the greeting was played, or the caller spoke."""
        # The turn without a reply: the caller's words, and what History says of it.
        self._words: list[str] = []
        self._turn: list[Item] = []
        # Function calls that History has not mentioned yet.
        self._calls: dict[str, Item] = {}

    # ---- what happens ---------------------------------------------------------------------------

    def caller_said(self, words: str) -> None:
        """The caller said or wrote something that needs a reply."""
        self.begun = True
        self._words.append(words)
        del self._words[:-HISTORY_ITEMS]

    def replied(self) -> None:
        """The caller has begun to hear the reply."""
        if self._words:
            self._items += self._turn
            self._turn, self._words = [], []
            del self._items[:-HISTORY_ITEMS]

    def history(self, item: Item) -> None:
        """An item came, in the shape that `agent.context.messages` takes back."""
        for call in item.get("function_calls") or ():
            self._calls.pop(str(call.get("id")), None)
        items = self._turn if self._words else self._items
        items.append(item)
        del items[:-HISTORY_ITEMS]

    def functions_called(self, calls: Iterable[FunctionCall]) -> None:
        """The agent has called functions."""
        for call in calls:
            told = msgspec.to_builtins(call) | {"response": INTERRUPTED}
            self._calls[call.id] = {k: v for k, v in told.items() if v is not None}
            if len(self._calls) > HISTORY_ITEMS:
                del self._calls[next(iter(self._calls))]

    def function_answered(self, call_id: str, content: str) -> None:
        """A function call has its answer."""
        if (call := self._calls.get(call_id)) is not None:
            call["response"] = content

    def functions_cancelled(self, calls: Iterable[CancelledFunction]) -> None:
        """The agent has cancelled function calls; they are of no more interest."""
        for call in calls:
            self._calls.pop(call.id, None)

    # ---- a new session --------------------------------------------------------------------------

    def resume(self) -> list[Item] | None:
        """Return the context for a new session; None to begin anew, greeting included.

        The old session is over: its unfinished function calls are recorded as interrupted.
        """
        if not self.begun:
            self._items, self._turn, self._calls = [], [], {}
            return None
        self._items += [item for item in self._turn if item.get("function_calls")]
        self._items += [
            {"type": "History", "function_calls": [call]} for call in self._calls.values()
        ]
        self._turn, self._calls = [], {}
        while len(self._items) > self._earlier and self._items[-1].get("role") == "user":
            self._words.insert(0, str(self._items.pop().get("content") or ""))
        del self._items[:-HISTORY_ITEMS]
        return self._items

    @property
    def unanswered(self) -> str:
        """The caller's words that no reply was heard to; "" if there are none."""
        return " ".join(self._words)
