"""The kit for endings: the first sign ends all, one clock, bounded goodbyes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from bridge.ending import Ending, Sign

Clock = trio.testing.MockClock


@pytest.fixture
def told() -> list[Sign]:
    return []


def ending_of(told: list[Sign], seconds: float = 2.0) -> Ending[str]:
    return Ending(seconds, crashed="bug", cancelled="shutdown", told=told.append)


async def test_the_first_sign_ends_all_and_later_ones_change_nothing(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    ending = ending_of(told)
    async with ending.tasks() as tasks:
        for _ in range(3):
            tasks.start_soon(trio.sleep_forever)
        await trio.sleep(1)
        assert ending.begin("hung up", "stop")
        assert not ending.begin("lost")
    (sign,) = told
    assert sign == ending.first == Sign("hung up", "stop", None, trio.current_time())


async def test_it_ends_without_a_sign_when_all_tasks_have_ended(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    async with ending_of(told).tasks() as tasks:
        tasks.start_soon(trio.sleep, 1)
        tasks.start_soon(trio.sleep, 3)
    assert trio.current_time() == 3
    assert told == []


async def test_a_crash_is_the_first_sign_for_all(autojump_clock: Clock, told: list[Sign]) -> None:
    """Those whom the crash cancels find it recorded, and do not look for reasons of their own."""
    ending = ending_of(told)
    found: list[object] = []

    async def crash() -> None:
        await trio.sleep(1)
        raise ValueError("boom")

    async def bystander() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ending.begin("a symptom")
            found.append(ending.first)

    with pytest.RaisesGroup(ValueError):
        async with ending.tasks() as tasks:
            tasks.start_soon(bystander)
            tasks.start_soon(crash)
    (sign,) = told
    assert sign.what == "bug"
    assert isinstance(sign.cause, ValueError)
    assert found == [sign]


async def test_cancellation_from_outside_is_noticed_at_once_by_everybody(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    """Also in a task of another nursery, which is not cancelled itself."""
    ending = ending_of(told)
    deadlines: list[float] = []

    async def task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ending.goodbye() as by:
                await trio.sleep(1)
                deadlines.append(by)

    async def elsewhere() -> None:
        await trio.sleep(10.5)
        deadlines.append(ending.by())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(elsewhere)
        with trio.move_on_after(10):
            async with ending.tasks() as tasks:
                tasks.start_soon(task)
    assert [sign.what for sign in told] == ["shutdown"]
    assert deadlines == [12.0, 12.0]


async def test_last_words_have_their_time_and_no_more(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    ending = ending_of(told)
    async with ending.tasks() as tasks:
        tasks.start_soon(trio.sleep_forever)
        ending.begin("hung up", after=0.5)
    assert trio.current_time() == 0.5

    ending = ending_of(told)
    async with ending.tasks() as tasks:
        tasks.start_soon(trio.sleep_forever)
        ending.begin("hung up", after=0.5)
        await trio.sleep(0.1)
        ending.now()
    assert trio.current_time() == pytest.approx(0.6)


async def test_goodbyes_share_one_deadline_that_counts_from_the_first_sign(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    ending = ending_of(told)

    async def two_goodbyes() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ending.goodbye():
                await trio.sleep(1.5)
            with ending.goodbye():
                await trio.sleep_forever()

    async with ending.tasks() as tasks:
        tasks.start_soon(two_goodbyes)
        await trio.sleep(1)
        ending.begin("hung up")
    assert trio.current_time() == 3


async def test_what_is_replaced_while_the_work_goes_on_has_a_clock_of_its_own(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    ending = ending_of(told)
    await trio.sleep(5)
    assert ending.by() == 7
    assert ending.first is None


async def test_an_end_before_the_beginning_lets_nothing_begin(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    ending = ending_of(told)
    ending.begin("hung up")
    async with ending.tasks() as tasks:
        tasks.start_soon(trio.sleep_forever)
        await trio.sleep_forever()
    assert trio.current_time() == 0


async def test_an_observer_that_fails_keeps_nothing_alive(autojump_clock: Clock) -> None:
    """The tasks are cancelled first; then it is told, and its error reaches who began the end."""

    def told(sign: Sign) -> None:
        raise RuntimeError("boom")

    ending: Ending[str] = Ending(2.0, crashed="bug", cancelled="shutdown", told=told)
    async with ending.tasks() as tasks:
        tasks.start_soon(trio.sleep_forever)
        with pytest.raises(RuntimeError):
            ending.begin("hung up")
    assert ending.first is not None


async def test_an_exception_in_a_watched_block_is_known_before_its_cleanup(
    autojump_clock: Clock, told: list[Sign]
) -> None:
    ending = ending_of(told)

    def work() -> None:
        try:
            with ending.watch():
                raise ValueError("boom")
        finally:
            assert [sign.what for sign in told] == ["bug"]

    with pytest.raises(ValueError, match="boom"):
        work()
