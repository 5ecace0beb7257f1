"""A sound card that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from bridge.testing.speech import RATE, pcm_to_ulaw, ulaw_to_pcm

BLOCK = 160


class Card:
    """A sound card on the test's clock: its microphone hears `words`, after `quiet` seconds."""

    def __init__(self, nursery: trio.Nursery, words: bytes = b"", quiet: float = 1.0) -> None:
        self._nursery = nursery
        self._words = b"\xff" * round(quiet * RATE) + words
        self.played = bytearray()
        self.is_open = False
        self.stopped: Callable[[str], None] | None = None

    @contextmanager
    def open(
        self,
        capture: Callable[[bytes], None],
        render: Callable[[int], bytes],
        stopped: Callable[[str], None],
    ) -> Iterator[None]:
        scope = trio.CancelScope()
        self.stopped, self.is_open = stopped, True

        async def run() -> None:
            with scope:
                position, due = 0, trio.current_time()
                while True:
                    block = self._words[position : position + BLOCK].ljust(BLOCK, b"\xff")
                    position += BLOCK
                    capture(ulaw_to_pcm(block))
                    self.played += pcm_to_ulaw(render(BLOCK))
                    due += BLOCK / RATE
                    await trio.sleep_until(due)

        self._nursery.start_soon(run)
        try:
            yield
        finally:
            self.is_open = False
            scope.cancel("closed")
