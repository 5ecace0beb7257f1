"""The soak runs, and detects what it looks for."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from bridge.testing.load.flow import Window
from bridge.testing.load.generator import Schedule, exact_loop
from tests.benchmarks.soak import Row, drift, judge, line

linux_only = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory of a process is read from Linux's /proc"
)


@linux_only
async def test_a_short_soak() -> None:
    options = ["--minutes", "0.05", "--period", "1.5", "--calls", "2", "--json"]
    # Far above what it takes, so that a busy machine does not fail the test.
    with trio.fail_after(150):
        done = await trio.run_process(
            [sys.executable, "-m", "tests.benchmarks.soak", *options],
            cwd=Path(__file__).parents[2],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert len(found["rows"]) == 2
    assert all(row["tasks"] > 0 and row["memory_kb"] > 0 for row in found["rows"])
    assert found["frames"]["sent"] > 100
    assert [found["frames"][kind] for kind in ("lost", "duplicated", "reordered")] == [0, 0, 0]
    assert sum(found["ways"].values()) >= 2
    assert found["wrong"] == []


def end(**changed: Any) -> dict[str, Any]:
    integrity = {"sent": 100, "lost": 0, "duplicated": 0, "reordered": 0, "foreign": 0}
    report = {"integrity": integrity, "ways": {"hung up": 3}, "unclosed": 0}
    for name, value in changed.items():
        (integrity if name in integrity else report)[name] = value
    return report


def test_a_soak_that_went_well() -> None:
    assert judge(end(), (9, 12), (9, 11)) == []


@pytest.mark.parametrize(
    ("report", "after", "words"),
    [
        (end(lost=1), (9, 12), "1 frames lost"),
        (end(duplicated=2), (9, 12), "2 duplicated"),
        (end(reordered=1), (9, 12), "1 out of order"),
        (end(foreign=1), (9, 12), "1 foreign"),
        (end(sent=0), (9, 12), "no audio"),
        (end(unclosed=1), (9, 12), "left open"),
        (end(ways={"ended unexpectedly": 1}), (9, 12), "ended unexpectedly"),
        (end(), (10, 12), "1 tasks more"),
        (end(), (9, 14), "2 descriptors more"),
    ],
)
def test_each_fault_is_reported(report: dict[str, Any], after: tuple[int, int], words: str) -> None:
    [complaint] = judge(report, (9, 12), after)
    assert words in complaint


def row(number: int, memory_kb: float = 80 * 1024) -> Row:
    return Row(number, number, 40, 20, memory_kb, 12.5, [1, 2, 3], [1, 2, 3], [1, 2, 3], 0.5, 0)


def test_drift_leaves_the_first_row_out() -> None:
    rows = [row(1, 10 * 1024), row(2), row(3), row(4, 90 * 1024), row(5, 90 * 1024)]
    [words] = drift(rows)
    assert "memory 80.0 to 90.0 MB" in words
    assert "too few" in drift(rows[:2])[0]
    assert "12.5" in line(rows[0])


def test_a_function_can_be_removed_from_a_schedule() -> None:
    """A removed function is not called again, the others are; an empty schedule can be refilled."""

    async def scenario() -> list[str]:
        called: list[str] = []
        beat = asyncio.Event()
        schedule = Schedule(Window())
        schedule.run()

        def add(name: str) -> int:
            def call() -> None:
                called.append(name)
                beat.set()

            return schedule.add(time.monotonic_ns(), call)

        async def calls(name: str, times: int) -> None:
            while called.count(name) < times:
                beat.clear()
                await beat.wait()

        first, second = add("first"), add("second")
        await calls("first", 2)
        schedule.remove(first)
        called.clear()
        await calls("second", 3)
        assert "first" not in called
        schedule.remove(second)
        called.clear()
        while schedule._due:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)
        add("third")
        await calls("third", 2)
        schedule.stop()
        return called

    with asyncio.Runner(loop_factory=exact_loop) as runner:
        called = runner.run(asyncio.wait_for(scenario(), 60))
    assert set(called) == {"third"}
