"""A bad line: a proxy that lets a TCP connection through as a mobile network would.

TCP loses nothing and keeps the order, so what packet loss makes of a stream are stalls, and bursts
behind them. Every byte arrives, in pieces of any size, later than it should.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import Random

import trio


@dataclass
class Weather:
    """How bad it is: seconds of delay, of jitter on top (exponential), and a stall of up to
    `stall` seconds in every `every`, as retransmissions after a loss make it."""

    delay: float = 0.04
    jitter: float = 0.03
    stall: float = 1.0
    every: float = 2.0


class BadLine:
    """`late` has how many seconds each piece was held back, both ways."""

    def __init__(self, weather: Weather, seed: int) -> None:
        self.late: list[float] = []
        self.address = ""
        self._weather = weather
        self._random = Random(seed)

    def _due(self, now: float, before: float) -> float:
        weather, random = self._weather, self._random
        wait = weather.delay + random.expovariate(1 / weather.jitter)
        into = now % weather.every
        if into < weather.stall * 0.5 and random.random() < 0.7:
            wait += weather.stall - into
        return max(before, now + wait)

    async def carry(self, here: trio.SocketStream, there: trio.SocketStream) -> None:
        """One direction, until it ends."""
        send, receive = trio.open_memory_channel[tuple[float, float, bytes]](10_000)

        async def deliver() -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for due, came, data in receive:
                    await trio.sleep_until(due)
                    self.late.append(trio.current_time() - came)
                    await there.send_all(data)
                await there.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            due = 0.0
            with send, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in here:
                    now = trio.current_time()
                    # A message seldom comes in the packet it was sent in.
                    cut = self._random.randrange(len(data) + 1)
                    for piece in filter(None, (data[:cut], data[cut:])):
                        due = self._due(now, due)
                        await send.send((due, now, bytes(piece)))


@asynccontextmanager
async def bad_line(port: int, weather: Weather, seed: int = 1) -> AsyncIterator[BadLine]:
    """Stand between callers and the server at `port`; `address` is where to call."""
    line = BadLine(weather, seed)

    async def serve(here: trio.SocketStream) -> None:
        there = await trio.open_tcp_stream("127.0.0.1", port)
        async with there, here, trio.open_nursery() as nursery:
            nursery.start_soon(line.carry, here, there)
            nursery.start_soon(line.carry, there, here)

    async with trio.open_nursery() as nursery:
        serving = partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        listeners = await nursery.start(serving)
        line.address = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield line
        nursery.cancel_scope.cancel(reason="the line is taken down")
