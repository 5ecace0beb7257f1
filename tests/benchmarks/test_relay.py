"""The relay benchmark runs and prints plausible figures; whether they are good depends on the
machine, so no test judges them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.benchmarks.compare import Pair, capacity, checks
from tests.benchmarks.figures import Figures, row

POSITIVE = ("seconds", "cpu_ms", "p50_ms", "server_core_percent", "generator_core_percent")

RUN = Figures(
    server="bridge",
    calls=40,
    seconds=4.0,
    cpu_ms=10.0,
    p50_ms=2.0,
    p95_ms=4.0,
    p99_ms=8.0,
    memory_kb_per_call=100.0,
    server_core_percent=40.0,
    others_on_core_percent=3.0,
    generator_core_percent=50.0,
    generator_late_p99_ms=0.1,
    frames_sent=8000,
    frames_lost=0,
    frames_duplicated=0,
    frames_reordered=0,
    frames_foreign=0,
)


async def relay(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # Far above what it takes, so that a busy machine does not fail the test.
    with trio.fail_after(150):
        return await trio.run_process(
            [sys.executable, "-m", "tests.benchmarks.relay", *arguments],
            cwd=Path(__file__).parents[2],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory of a process is read from Linux's /proc"
)
async def test_prints_both_axes_for_bridge_and_the_floor() -> None:
    done = await relay("--quick", "--calls", "2", "--json")
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    assert {"cores", "cpu", "python", "trio", "date", "load_before"} <= document["machine"].keys()
    [load] = document["loads"]
    [pair] = load["pairs"]
    for server in ("bridge", "floor"):
        found = pair[server]
        assert (found["server"], found["calls"]) == (server, 2)
        assert {name: found[name] for name in POSITIVE if not found[name] > 0} == {}
        assert found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
        # Two calls for more than a second, fifty frames a second each.
        assert found["frames_sent"] >= 100
        kinds = ("lost", "duplicated", "reordered", "foreign")
        assert {kind: found[f"frames_{kind}"] for kind in kinds} == dict.fromkeys(kinds, 0)
    assert len(load["checks"]) == 3


async def test_a_wrong_number_of_calls_is_refused() -> None:
    done = await relay("--calls", "0")
    assert done.returncode == 2
    assert b"--calls" in done.stderr


def test_pairs_are_compared_one_by_one_and_their_median_is_checked() -> None:
    floor = replace(RUN, server="floor", cpu_ms=8.0, p50_ms=1.0, p99_ms=5.0)
    busy = replace(floor, cpu_ms=20.0, p50_ms=30.0, p99_ms=90.0)
    found = checks(
        [
            Pair(RUN, floor),
            Pair(replace(RUN, cpu_ms=25.0, p50_ms=31.5, p99_ms=110.0), busy),
            Pair(replace(RUN, cpu_ms=12.0), floor),
        ]
    )
    assert [(check.value, check.met) for check in found] == [
        (1.25, True),
        (1.0, True),
        (3.0, True),
        (100.0, True),
    ]
    missed = checks([Pair(replace(RUN, p50_ms=4.0), floor)])[1]
    assert "MISSED" in str(missed)


def test_memory_is_not_judged_with_few_calls() -> None:
    few = replace(RUN, calls=10, memory_kb_per_call=None)
    assert len(checks([Pair(few, few)])) == 3


@pytest.mark.parametrize(
    ("most", "tried", "carried"),
    [
        (170, [80, 120, 160, 200, 200], 160),
        (50, [80, 80, 60, 60, 40], 40),
        (5, [80, 80, 60, 60, 40, 40, 20, 20], 0),
    ],
)
async def test_the_search_for_the_capacity(most: int, tried: list[int], carried: int) -> None:
    runs: list[int] = []

    async def measure(calls: int) -> Figures:
        runs.append(calls)
        return replace(RUN, calls=calls, p99_ms=10.0 if calls <= most else 400.0)

    found = await capacity(measure)
    assert (runs, found.calls) == (tried, carried)
    assert "400 ms" in str(found)


async def test_one_noisy_run_does_not_end_the_search() -> None:
    noisy = [120]

    async def measure(calls: int) -> Figures:
        late = calls in noisy
        if late:
            noisy.remove(calls)
        return replace(RUN, calls=calls, p99_ms=400.0 if late or calls > 160 else 10.0)

    assert (await capacity(measure)).calls == 160


async def test_the_search_says_when_the_load_generator_is_the_bottleneck() -> None:
    async def measure(calls: int) -> Figures:
        return replace(RUN, calls=calls, p99_ms=400.0, generator_core_percent=97.0)

    assert "the load generator is the bottleneck" in str(await capacity(measure))


def test_a_row_shows_what_is_unknown_and_its_notes() -> None:
    text = row(replace(RUN, memory_kb_per_call=None, notes=["not clean: busy"]))
    assert " - " in text
    assert text.endswith("not clean: busy")
