"""What a websocket has received and nobody has taken yet: from the task that reads to who acts.

A memory channel costs two turns of the scheduler for every message, and wakes the receiver for
each. Of this everything that came together is taken together, and it knows that the agent's audio
may wait for its taker and words may not: UserStartedSpeaking must reach the phone, as `clear`, at
once.
"""

from __future__ import annotations

from collections import deque

import trio
from trio.lowlevel import ParkingLot

from bridge.transport.grid import Nap


class Inbox:
    """Messages from one task that puts to one that takes.

    Holds `limit` messages; then who puts has to wait, the socket is not read any more, and TCP
    slows the peer down.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[str | bytes] = deque()
        self._urgent = False
        self._nap: Nap | None = None
        self._ended = False
        self._discarding = False
        self._oldest_at = 0.0
        self.oldest_at = 0.0
        """When the first of the messages taken last was put, in seconds of Trio's clock."""
        self._taker = ParkingLot()
        self._room = ParkingLot()

    async def put(self, message: str | bytes) -> None:
        """Add a message. Waits while there is no room; no checkpoint otherwise. What nobody will
        take any more is thrown away."""
        while len(self._messages) >= self._limit and not self._discarding:
            await self._room.park()
        if self._discarding:
            return
        if not self._messages:
            self._oldest_at = trio.current_time()
        self._messages.append(message)
        if isinstance(message, str) or len(self._messages) >= self._limit:
            self._urgent = True
            if self._nap is not None:
                self._nap.end()
        self._taker.unpark()

    def end(self) -> None:
        """There is no more: what is here can still be taken, then the taker is told."""
        self._ended = True
        if self._nap is not None:
            self._nap.end()
        self._taker.unpark()

    def discard(self) -> None:
        """Nobody takes any more."""
        self._discarding = True
        self._messages.clear()
        self._room.unpark_all()
        self.end()

    async def take(self, nap: Nap | None = None) -> list[str | bytes]:
        """Wait for messages and return all that are here, in order.

        With `nap`, bytes alone are left until it is over, and then the list may be empty; text
        ends it. Cancelling this loses nothing. Raises trio.EndOfChannel when there will be none.
        """
        if nap is None:
            while not self._messages and not self._ended:
                await self._taker.park()
        elif not self._urgent and not self._ended:
            self._nap = nap
            await nap.until_tick()
            self._nap = None
        if self._ended and not self._messages:
            raise trio.EndOfChannel
        self.oldest_at = self._oldest_at
        taken = list(self._messages)
        self._messages.clear()
        self._urgent = False
        self._room.unpark_all()
        return taken
