"""Pauses between tries, exponentially longer."""

from __future__ import annotations

from collections.abc import Iterator


def pauses(first: float, longest: float, factor: float = 2.0) -> Iterator[float]:
    """Yield `first`, then `factor` times as much each time, but never more than `longest`.

    In seconds, without end: `pauses(0.2, 2)` is 0.2, 0.4, 0.8, 1.6, 2, 2, ...
    """
    pause = min(first, longest)
    while True:
        yield pause
        pause = min(pause * factor, longest)
