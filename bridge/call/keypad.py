"""The phone's keypad: keys, pressed one by one, become what the caller entered. Pure.

    collecting ends with   what the caller entered is
    `#`                    the keys before it; `#` itself if there are none
    a pause                the keys before it: a menu's "press 1" has no `#`
    MAX_KEYS keys          those

https://www.twilio.com/docs/voice/media-streams/websocket-messages#dtmf-message
"""

from __future__ import annotations

from typing import Final

# Longer than any card, account or conference number; whoever presses more holds a key down.
MAX_KEYS: Final = 64

_KEYS: Final = frozenset("0123456789*#ABCD")


class Keypad:
    """Collects the keys one caller presses.

    `pause` is how long, in seconds, no key must be pressed for the entry to be complete; two let
    a caller read a number off a card. Times are seconds on a clock that does not go backwards.
    """

    def __init__(self, pause: float = 2.0) -> None:
        if pause <= 0:
            raise ValueError(f"a pause is longer than 0 seconds, not {pause:g}")
        self.refused = 0
        self._pause = pause
        self._digits = ""
        self._due_at: float | None = None

    @property
    def due_at(self) -> float | None:
        """When the pause will have passed and `take` has something; None while nothing waits."""
        return self._due_at

    def press(self, digit: str, now: float) -> str | None:
        """A key was pressed. Returns what was entered, if this key completes it.

        What no keypad has is counted in `refused` and changes nothing: it is the network's fault,
        not the caller's. A key that comes after the pause, when nobody has called `take` in time,
        completes what was entered before it and begins the next entry.
        """
        if digit not in _KEYS:
            self.refused += 1
            return None
        if digit == "#":
            # Alone it is a key like any other: "press the pound key to go on".
            return self._complete() or digit
        late = self.take(now)
        self._digits += digit
        self._due_at = now + self._pause
        return self._complete() if len(self._digits) >= MAX_KEYS else late

    def take(self, now: float) -> str | None:
        """Return what was entered if the pause has passed since, and forget it; else None."""
        if self._due_at is None or now < self._due_at:
            return None
        return self._complete()

    def _complete(self) -> str:
        digits, self._digits, self._due_at = self._digits, "", None
        return digits


def keypad_words(digits: str) -> str:
    """Return the sentence by which the agent learns what was entered, as an InjectUserMessage.

    It stands in the conversation as the caller's own words, so it is said as a caller would say
    it: a note in the third person or in brackets invites a model to read it aloud or to ask who
    is meant. The keypad is named, because keys are not speech: the agent should neither doubt
    what it heard nor ask the caller to speak up. The digits stand together, as a function wants
    them, and not before a full stop, which could pass for a part of them.

    https://developers.deepgram.com/docs/voice-agent-inject-user-message
    """
    return f"I pressed {digits} on my phone's keypad."
