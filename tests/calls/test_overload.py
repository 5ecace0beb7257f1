"""Three times as many callers as slots: the limit is exact, no live call is dropped, no caller
waits, and afterwards all slots are free. On the virtual clock."""

from __future__ import annotations

from typing import Any

import trio

from bridge.config.words import Words
from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import Hangup, Say
from tests.world import World, in_memory, settings

CAP = 8
GREETING = b"\x11" * 4000
ANSWER = b"\x22" * 4000
QUESTION = b"\x33" * 1600

Clock = Any


async def greet_and_answer(agent: AgentSession) -> None:
    await agent.say("Hello.", GREETING)
    await agent.wait_until(lambda: QUESTION in bytes(agent.received_audio))
    await agent.say("Here it is.", ANSWER)


class Caller:
    """One who calls, asks when greeted, listens, and hangs up when told to."""

    def __init__(self, world: World, number: int) -> None:
        self.phone: SimulatedPhone = world.phone(from_number=f"+1555010{number:04}")
        self._world = world
        self.taken: bool | None = None
        self.seconds: list[float] = []

    async def call(self, hang_up: trio.Event) -> None:
        began = trio.current_time()
        async with self.phone.place_call(self._world.base_url) as phone:
            if phone.ending is not None or phone.verbs[0] == Say(Words().busy):
                await phone.wait_ended()
                self.taken = False
                self.seconds = [trio.current_time() - began]
                return
            await phone.wait_heard(0.02)
            greeted = trio.current_time()
            await phone.wait_heard(len(GREETING) / 8000)
            await phone.say(QUESTION)
            asked = trio.current_time()
            await phone.wait_heard((len(GREETING) + len(ANSWER)) / 8000 - 0.4)
            self.taken = True
            self.seconds = [round(greeted - began, 3), round(trio.current_time() - asked, 3)]
            await hang_up.wait()
            await phone.hang_up()


async def all_at_once(world: World, number: int) -> list[Caller]:
    """So many call in the same moment; those that are taken stay until all have been answered."""
    callers = [Caller(world, one) for one in range(number)]
    hang_up = trio.Event()
    async with trio.open_nursery() as nursery:
        for caller in callers:
            nursery.start_soon(caller.call, hang_up)
        while any(caller.taken is None for caller in callers):  # noqa: ASYNC110
            await trio.sleep(0.01)
        hang_up.set()
    await world.quiet()
    return callers


async def test_three_times_the_cap(autojump_clock: Clock) -> None:
    using = settings(server={"max_calls": CAP})
    async with in_memory(greet_and_answer, using=using) as world:
        bridge = world.app.extensions["bridge"]
        (alone,) = await all_at_once(world, 1)
        assert alone.taken
        for _ in range(2):  # and once more: it is back to normal at once
            callers = await all_at_once(world, 3 * CAP)
            taken = [caller for caller in callers if caller.taken]
            busy = [caller for caller in callers if not caller.taken]
            assert len(taken) == CAP
            # Their delays are those of a call alone, to the millisecond.
            assert {tuple(caller.seconds) for caller in taken} == {tuple(alone.seconds)}
            for caller in busy:
                assert caller.phone.verbs == [Say(Words().busy), Hangup()]
                assert caller.seconds[0] < 1.0
            assert len(bridge.entrance.slots) == 0
        assert world.agent.connections == 1 + 2 * CAP
        assert {line["outcome"] for line in world.logs if line["event"] == "call ended"} == {
            "caller_hung_up"
        }


async def test_one_caller_may_not_take_every_line(autojump_clock: Clock) -> None:
    using = settings(server={"max_calls": CAP}, limits={"calls_per_number": 2})
    async with in_memory(greet_and_answer, using=using) as world:
        many = [Caller(world, 7) for _ in range(CAP)]
        other, hang_up = Caller(world, 8), trio.Event()
        async with trio.open_nursery() as nursery:
            for caller in [*many, other]:
                nursery.start_soon(caller.call, hang_up)
            await trio.sleep(10)
            assert sum(caller.taken is True for caller in many) == 2
            assert other.taken
            hang_up.set()


async def test_calls_that_begin_too_fast_are_told_so(autojump_clock: Clock) -> None:
    using = settings(limits={"calls_per_minute": 3})
    async with in_memory(greet_and_answer, using=using) as world:
        assert [caller.taken for caller in await all_at_once(world, 5)].count(True) == 3
        await trio.sleep(60)
        assert [caller.taken for caller in await all_at_once(world, 5)].count(True) == 3
