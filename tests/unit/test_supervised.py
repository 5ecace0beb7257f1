"""Background tasks: what they raise is logged and ends nothing."""

from __future__ import annotations

import pytest
import structlog
import trio

from bridge import supervised as module
from bridge.supervised import supervised


async def test_it_ends_when_the_work_does(autojump_clock):
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1

    await supervised("work", work)
    assert runs == 1
    assert trio.current_time() == 0


async def test_what_fails_is_logged_and_started_again_later_and_later(autojump_clock):
    began = []

    async def work() -> None:
        began.append(trio.current_time())
        if len(began) < 5:
            raise MemoryError("planted")

    with structlog.testing.capture_logs() as lines:
        await supervised("records", work)
    assert began == [0, 0.25, 0.75, 1.75, 3.75]
    assert [(line["event"], line["task"], line["in_seconds"]) for line in lines] == [
        ("background task failed; restarting it", "records", pause) for pause in (0.25, 0.5, 1, 2)
    ]
    assert all(line["exc_info"] for line in lines)


async def test_after_a_long_good_run_it_is_started_again_soon(autojump_clock):
    began = []

    async def work() -> None:
        began.append(trio.current_time())
        if len(began) == 4:
            return
        await trio.sleep(module.LONGEST_PAUSE if len(began) == 3 else 0)
        raise ValueError("planted")

    await supervised("work", work)
    assert began == [0, 0.25, 0.75, 0.75 + module.LONGEST_PAUSE + 0.25]


async def test_cancelled_it_ends_and_is_not_started_again(autojump_clock):
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        await supervised("work", work)
    assert scope.cancelled_caught
    assert runs == 1


async def test_what_is_no_exception_goes_through():
    async def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await supervised("work", work)
