"""Three times as many callers as there are lines, on real sockets, with figures.

How long anything takes is this machine's affair (`-s` shows it); how many are let in is not.
"""

from __future__ import annotations

import statistics
from typing import Any

import trio

from bridge.config.words import Words
from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.twiml import Hangup, Say
from tests.world import AUTH_TOKEN, World, on_loopback, settings

CAP = 8
GREETING = b"\x11" * 2400
PATIENCE = 120.0

# Each of the refused is answered within a second where nobody else wants the processor; a machine
# that is busy may take longer, and one that hangs never ends.
REFUSED_WITHIN = 10.0


async def greet(agent: AgentSession) -> None:
    await agent.say("Hello.", GREETING)


class Offer:
    """So many calls at once: how long each took to be greeted, or refused."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.greeted: list[float] = []
        self.refused: list[float] = []
        self._answered = trio.Event()

    async def make(self, number: int) -> None:
        async with trio.open_nursery() as nursery:
            for one in range(number):
                nursery.start_soon(self._call, one)
            while len(self.greeted) + len(self.refused) < number:  # noqa: ASYNC110
                await trio.sleep(0.01)
            self._answered.set()
        await self._world.quiet()

    async def _call(self, number: int) -> None:
        options: dict[str, Any] = {"auth_token": AUTH_TOKEN, "from_number": f"+1555010{number:04}"}
        began = trio.current_time()
        async with self._world.phone(**options).place_call(self._world.base_url) as phone:
            if phone.ending is not None or phone.verbs[:1] == [Say(Words().busy)]:
                await phone.wait_ended()
                self.refused.append(trio.current_time() - began)
                assert phone.verbs == [Say(Words().busy), Hangup()]
                return
            await phone.wait_heard(0.02)
            self.greeted.append(trio.current_time() - began)
            await phone.wait_heard(len(GREETING) / 8000)
            await self._answered.wait()
            await phone.hang_up()


async def test_three_times_the_cap() -> None:
    using = settings(server={"max_calls": CAP})
    with trio.fail_after(PATIENCE):
        async with on_loopback(greet, using=using) as world:
            offers = []
            for number in (1, CAP, 3 * CAP, 1):
                offer = Offer(world)
                await offer.make(number)
                offers.append(offer)
                assert len(world.app.extensions["bridge"].entrance.slots) == 0
                greeted = 1000 * statistics.median(offer.greeted)
                line = f"{number} offered: {len(offer.greeted)} greeted after {greeted:.0f} ms"
                if offer.refused:
                    middle, most = statistics.median(offer.refused), max(offer.refused)
                    line += f"; {len(offer.refused)} busy after {1000 * middle:.0f} ms"
                    line += f", the last after {1000 * most:.0f} ms"
                print(line)
            assert [len(offer.greeted) for offer in offers] == [1, CAP, CAP, 1]
            assert [len(offer.refused) for offer in offers] == [0, 0, 2 * CAP, 0]
            assert max(offers[2].refused) < REFUSED_WITHIN
            assert world.agent.connections == 2 + 2 * CAP
