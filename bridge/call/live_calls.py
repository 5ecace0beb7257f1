"""The calls this process carries: how many, which, and when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from bridge.call.call import Call


class Registry:
    """Live calls. A call is in it for exactly as long as its `carrying` context."""

    def __init__(self) -> None:
        self._live: set[Call] = set()
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Call]:
        return iter(tuple(self._live))

    @contextmanager
    def carrying(self, call: Call) -> Iterator[None]:
        """Count this call among the live ones; it is given back on every way out."""
        self._live.add(call)
        try:
            yield
        finally:
            self._live.discard(call)
            self._changed.set()
            self._changed = trio.Event()

    async def wait_until_empty(self) -> None:
        """Wait until no call is live."""
        while self._live:
            await self._changed.wait()
