"""`GET /metrics` at a bounded cost, although any client may ask, as often as it likes.

Encoding the metrics takes milliseconds, in which no audio is forwarded, or a thread if there are
other processes' files to read. So an answer is given for a second, to all who ask for its format.
"""

from __future__ import annotations

from typing import Final

import trio

from bridge.telemetry.metrics import Metrics

# Prometheus scrapes every 15 s, at most every second.
SECONDS: Final = 1.0

# Answers that are made in this time: each client names formats in words of its own. All other
# clients get Prometheus' text format.
MOST_ANSWERS: Final = 8


class Scrapes:
    """Answers scrapes of `metrics`, each answer for SECONDS."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._making = trio.Lock()
        self._answers: dict[str | None, tuple[bytes, str]] = {}
        self._until = float("-inf")

    async def answer(self, accept: str | None) -> tuple[bytes, str]:
        """Return the metrics of the last second, and their content type; see `Metrics.expose`."""
        async with self._making:
            if trio.current_time() >= self._until:
                self._answers.clear()
                self._until = trio.current_time() + SECONDS
            if accept not in self._answers and len(self._answers) >= MOST_ANSWERS:
                accept = None
            if accept not in self._answers:
                self._answers[accept] = await self._expose(accept)
            return self._answers[accept]

    async def _expose(self, accept: str | None) -> tuple[bytes, str]:
        if self._metrics.reads_files:
            return await trio.to_thread.run_sync(self._metrics.expose, accept)
        return self._metrics.expose(accept)
