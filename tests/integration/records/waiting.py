"""Waiting for what threads do, which no event tells."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return when `condition()` is true. Raises trio.TooSlowError after so many seconds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)
