"""Typed input: keys of the phone's keypad, and text from the softphone.

Both reach the agent as the caller's own words (InjectUserMessage). Until a session is open they
wait here, in order, MAX_TYPED of them at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from bridge.call.conversation import Conversation
from bridge.call.keypad import Keypad
from bridge.config.words import Words
from bridge.deepgram.session import AgentClosed
from bridge.functions.errors import NotTaken

# Input that waits for a session: enough for a menu, and bounded.
MAX_TYPED: Final = 16

# Seconds from finding the session closed to the next try. The agent reader, which replaces the
# session, needs a moment to notice.
RETRY_SECONDS: Final = 0.25


class TypedInput:
    """The typed input of one call. Only `run`, a task of the call, waits."""

    def __init__(
        self, conversation: Conversation, words: Words, takes_end_of_turn: Callable[[], bool]
    ) -> None:
        self._conversation = conversation
        self._words = words
        # Whether the agent accepts ForceEndTurn; only Flux does.
        self._takes_end_of_turn = takes_end_of_turn
        self._keypad = Keypad()
        self._typed_in, self._typed = trio.open_memory_channel[str](MAX_TYPED)
        self._waiting = 0

    def key_pressed(self, digit: str) -> None:
        """Add a pressed key: 0 to 9, *, # or A to D."""
        self._entered(self._keypad.press(digit, trio.current_time()))

    def pause(self, now: float) -> None:
        """Complete the keypad entry if its pause has passed at `now`."""
        self._entered(self._keypad.take(now))

    def say(self, words: str) -> None:
        """Send the caller's text to the agent, at once or as soon as a session is open.

        Raises NotTaken, and does nothing, when MAX_TYPED messages are waiting already.
        """
        if self._waiting >= MAX_TYPED:
            raise NotTaken("too many messages are waiting for the agent")
        self._conversation.words_written(words)
        self._put(words)

    async def run(self) -> None:
        """Send typed input to the agent until cancelled."""
        async for words in self._typed:
            await self._send(words)
            self._waiting -= 1

    async def _send(self, words: str) -> None:
        while True:
            await self._conversation.wait_session()
            try:
                await self._conversation.give_callers_words(words)
                if self._takes_end_of_turn():
                    await self._conversation.end_turn()
                return
            except AgentClosed:
                await trio.sleep(RETRY_SECONDS)

    def _entered(self, digits: str | None) -> None:
        # An entry beyond the bound is dropped: the caller notices that nothing happens.
        if digits and self._waiting < MAX_TYPED:
            self._conversation.keys_pressed(digits, self._keypad.entered_at)
            self._put(self._words.pressed(digits))

    def _put(self, words: str) -> None:
        self._waiting += 1
        self._typed_in.send_nowait(words)
