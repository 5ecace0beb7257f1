"""What the caller types instead of saying it: keys of the phone, and words of the softphone.

Both reach the agent as the caller's own words (InjectUserMessage). They wait here, in order and at
most MAX_TYPED of them, until there is a session to take them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import trio

from bridge.call.conversation import Conversation
from bridge.call.keypad import Keypad, keypad_words
from bridge.deepgram.session import AgentClosed

# Typed and not sent yet, because there is no session: enough for a menu, and bounded.
MAX_TYPED: Final = 16

# From a session that turns out to be closed to the next look for one. The agent reader, which
# replaces it, needs a moment to notice.
RETRY_SECONDS: Final = 0.25


class NotTaken(Exception):
    """What was typed is not going to be said. Says why, in one line."""


class _Typed(NamedTuple):
    words: str  # as the agent is told them
    cut_in: bool


class TypedInput:
    """The typed input of one call. Never waits, but for `run`, which is a task of the call."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._keypad = Keypad()
        self._typed_in, self._typed = trio.open_memory_channel[_Typed](MAX_TYPED)
        self._waiting = 0
        self.ends_turns = False
        """Whether the agent can be told that the caller's turn is over: Flux can."""

    def key_pressed(self, digit: str) -> None:
        """The caller pressed a key: 0 to 9, *, # or A to D."""
        self._entered(self._keypad.press(digit, trio.current_time()))

    def pause(self, now: float) -> None:
        """Time has passed, which may complete what was entered on the keypad."""
        self._entered(self._keypad.take(now))

    def say(self, words: str) -> None:
        """The caller wrote this: the agent is told at once, or when there is one.

        Raises NotTaken, and does nothing, when MAX_TYPED messages are waiting already.
        """
        if self._waiting >= MAX_TYPED:
            raise NotTaken("too much has been written that the agent has not been told yet")
        self._conversation.words_written(words)
        self._put(_Typed(words, cut_in=True))

    async def run(self) -> None:
        """Send what is typed, for as long as the call lasts."""
        async for typed in self._typed:
            await self._send(typed)
            self._waiting -= 1

    async def _send(self, typed: _Typed) -> None:
        while True:
            await self._conversation.wait_session()
            try:
                await self._conversation.give_callers_words(typed.words, cut_in=typed.cut_in)
                if self.ends_turns:
                    await self._conversation.end_turn()
                return
            except AgentClosed:
                await trio.sleep(RETRY_SECONDS)

    def _entered(self, digits: str | None) -> None:
        # What is entered beyond the bound is dropped: the caller hears that nothing happens.
        if digits and self._waiting < MAX_TYPED:
            self._conversation.keys_pressed(digits)
            self._put(_Typed(keypad_words(digits), cut_in=False))

    def _put(self, typed: _Typed) -> None:
        self._waiting += 1
        self._typed_in.send_nowait(typed)
