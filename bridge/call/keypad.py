"""The phone's keypad: single key presses are collected into entries. Sans-I/O.

    an entry ends with     and consists of
    `#`                    the keys before it; `#` itself if there are none
    a pause                the keys before it: a menu's "press 1" has no `#`
    MAX_KEYS keys          those keys

https://www.twilio.com/docs/voice/media-streams/websocket-messages#dtmf-message
"""

from __future__ import annotations

import math
from typing import Final

# Longer than any card, account or conference number; more keys mean that a key is held down.
MAX_KEYS: Final = 64

# The time without a key that completes an entry: it lets a caller read a number off a card.
PAUSE_SECONDS: Final = 2.0

_KEYS: Final = frozenset("0123456789*#ABCD")


class Keypad:
    """Collects the keys one caller presses.

    `pause` is the time without a key, in seconds, that completes an entry. Times are seconds on a
    monotonic clock. Raises ValueError unless `pause` is above 0.
    """

    def __init__(self, pause: float = PAUSE_SECONDS) -> None:
        if pause <= 0:
            raise ValueError(f"pause must be above 0 seconds, not {pause:g}")
        self.entered_at = -math.inf
        """When the last key of the latest complete entry was pressed."""
        self._pause = pause
        self._digits = ""
        self._pressed_at = -math.inf
        self._due_at: float | None = None

    @property
    def due_at(self) -> float | None:
        """The time at which `take` will return the entry; None while no key waits."""
        return self._due_at

    def press(self, digit: str, now: float) -> str | None:
        """Add a pressed key. Returns the entry, if this key completes one.

        A digit that no keypad has changes nothing: it is the network's fault, not the caller's. A
        key that comes after the pause, before `take` was called, completes the entry before it and
        begins the next one.
        """
        if digit not in _KEYS:
            return None
        if digit == "#":
            self._pressed_at = now
            # Alone it is an ordinary key: "press the pound key to continue".
            return self._complete() or digit
        late = self.take(now)
        self._pressed_at = now
        self._digits += digit
        self._due_at = now + self._pause
        return self._complete() if len(self._digits) >= MAX_KEYS else late

    def take(self, now: float) -> str | None:
        """Return the entry, once, if the pause has passed; otherwise None."""
        if self._due_at is None or now < self._due_at:
            return None
        return self._complete()

    def _complete(self) -> str:
        digits, self._digits, self._due_at = self._digits, "", None
        self.entered_at = self._pressed_at
        return digits
