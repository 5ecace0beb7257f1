"""A line of the log that strangers could cause at will, and that is therefore written seldom."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Seldom:
    """Says when the line is due: once in `seconds`. `clock` gives seconds, always forward."""

    def __init__(self, seconds: float, clock: Callable[[], float] = trio.current_time) -> None:
        self._seconds = seconds
        self._clock = clock
        self._due_at = float("-inf")
        self._unsaid = 0

    def due(self) -> int | None:
        """How many times it was not due since it last was; None if it is not now."""
        now = self._clock()
        if now < self._due_at:
            self._unsaid += 1
            return None
        unsaid, self._unsaid = self._unsaid, 0
        self._due_at = now + self._seconds
        return unsaid
