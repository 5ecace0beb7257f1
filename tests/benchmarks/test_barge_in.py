"""The barge-in benchmark runs and prints plausible figures, which no test judges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import trio

POSITIVE = ("median_ms", "p99_ms", "max_ms", "server_mean_ms")


async def barge_in(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # Far above what it takes, so that a busy machine does not fail the test.
    with trio.fail_after(150):
        return await trio.run_process(
            [sys.executable, "-m", "tests.benchmarks.barge_in", *arguments],
            cwd=Path(__file__).parents[2],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


async def test_prints_figures_of_three_interruptions() -> None:
    done = await barge_in("--times", "3", "--json")
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    assert {"cores", "cpu", "python", "trio", "date", "load_before"} <= document["machine"].keys()
    figures = document["figures"]
    # Each interruption was measured once here and once by the server.
    assert (figures["times"], figures["server_times"]) == (3, 3)
    assert {name: figures[name] for name in POSITIVE if not figures[name] > 0} == {}
    assert figures["median_ms"] <= figures["p99_ms"] <= figures["max_ms"]


async def test_a_wrong_number_of_times_is_refused() -> None:
    done = await barge_in("--times", "0")
    assert done.returncode == 2
    assert b"--times" in done.stderr
