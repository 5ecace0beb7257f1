"""Rate limiter for log lines that remote peers can trigger."""

from __future__ import annotations

from collections.abc import Callable

import trio


class LogThrottle:
    """Allows one line in `seconds`. `clock` is monotonic, in seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = trio.current_time) -> None:
        self._seconds = seconds
        self._clock = clock
        self._due_at = float("-inf")
        self._suppressed = 0

    def due(self) -> int | None:
        """Return how many lines were suppressed since the last one; None if this one is, too."""
        now = self._clock()
        if now < self._due_at:
            self._suppressed += 1
            return None
        suppressed, self._suppressed = self._suppressed, 0
        self._due_at = now + self._seconds
        return suppressed
