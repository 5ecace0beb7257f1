"""Sleeping until ticks that are the same for everybody, on the virtual clock."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bridge.transport.grid import Nap, next_tick

Clock = trio.testing.MockClock
FRAME = 0.06


class Sleepers:
    """Tasks that nap; `woken` says who woke when."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.woken: list[tuple[str, float]] = []
        self.naps: dict[str, Nap] = {}

    def begin(self, name: str, scope: trio.CancelScope | None = None) -> None:
        self.naps[name] = Nap(FRAME)

        async def sleep() -> None:
            with scope or trio.CancelScope():
                await self.naps[name].until_tick()
                self.woken.append((name, round(trio.current_time(), 6)))

        self._nursery.start_soon(sleep)


@given(st.floats(0, 1e9), st.floats(0.02, 0.25))
def test_the_next_tick_is_ahead_and_near(now: float, seconds: float) -> None:
    tick = next_tick(now, seconds)
    assert now < tick <= now + 1.0001 * seconds + 1e-6


async def test_all_wake_at_the_same_ticks(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        sleepers = Sleepers(nursery)
        for name in "abc":
            await trio.sleep(0.01)
            sleepers.begin(name)
        await trio.sleep(0.05)  # 0.08: behind the first tick
        sleepers.begin("d")
    # Those of one tick in any order: that is Trio's to choose.
    assert sorted(sleepers.woken) == [("a", 0.06), ("b", 0.06), ("c", 0.06), ("d", 0.12)]


async def test_one_alarm_wakes_all(autojump_clock: Clock) -> None:
    """What this is for: not one deadline for each."""
    async with trio.open_nursery() as nursery:
        sleepers = Sleepers(nursery)
        for number in range(50):
            sleepers.begin(str(number))
        await trio.testing.wait_all_tasks_blocked()
        # Our own deadline is not set yet: this is the one alarm.
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == pytest.approx(FRAME)
    assert [at for _, at in sleepers.woken] == [FRAME] * 50


@pytest.mark.parametrize("early", ["a", "b", "c"])
@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_who_leaves_early_leaves_the_others_asleep(
    autojump_clock: Clock, early: str, how: str
) -> None:
    """Also the one that keeps the time, the first."""
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        sleepers = Sleepers(nursery)
        for name in "abc":
            sleepers.begin(name, scope if name == early else None)
            await trio.sleep(0.01)
        if how == "end":
            sleepers.naps[early].end()
        else:
            scope.cancel(reason="test")
    others = [(name, 0.06) for name in "abc" if name != early]
    assert sorted(sleepers.woken) == sorted(others + [(early, 0.03)] * (how == "end"))


async def test_an_heir_that_is_woken_in_the_same_moment_passes_on(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        sleepers = Sleepers(nursery)
        for name in "abc":
            sleepers.begin(name)
            await trio.sleep(0.01)
        for name in "ab":
            sleepers.naps[name].end()
    assert sorted(sleepers.woken) == [("a", 0.03), ("b", 0.03), ("c", 0.06)]


async def test_ending_a_nap_that_nobody_takes_is_nothing(autojump_clock: Clock) -> None:
    nap = Nap(FRAME)
    nap.end()
    await nap.until_tick()
    nap.end()
    await nap.until_tick()
    assert trio.current_time() == pytest.approx(2 * FRAME)


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from(["end", "cancel", ""])),
        min_size=1,
        max_size=8,
    )
)
def test_nobody_is_left_asleep(plans: list[tuple[int, int, str]]) -> None:
    """However naps begin, end early and are cancelled, each is over at its tick at the latest."""

    async def main() -> None:
        late: list[float] = []

        async def sleeper(begins: int, leaves: int, how: str) -> None:
            await trio.sleep(begins / 200)
            nap, scope = Nap(FRAME), trio.CancelScope()
            tick = next_tick(trio.current_time(), FRAME)

            async def leave() -> None:
                await trio.sleep(leaves / 200)
                nap.end() if how == "end" else scope.cancel(reason="test")

            async with trio.open_nursery() as nursery:
                if how:
                    nursery.start_soon(leave)
                with scope:
                    await nap.until_tick()
                late.append(trio.current_time() - tick)
                nursery.cancel_scope.cancel(reason="awake")

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for plan in plans:
                    nursery.start_soon(sleeper, *plan)
        assert len(late) == len(plans)
        assert max(late) <= 1e-9

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
