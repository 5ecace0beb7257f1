"""The benchmark runs, and its figures are figures. What they are is for people to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory of a process is read from Linux's /proc"
)

POSITIVE = (
    "seconds",
    "uplink_beyond_median_ms",
    "uplink_beyond_p99_ms",
    "uplink_total_median_ms",
    "uplink_total_p99_ms",
    "downlink_median_ms",
    "downlink_p99_ms",
    "downlink_max_ms",
    "cpu_ms_per_call_second",
    "rss_kb_per_call",
    "server_core_percent",
    "generator_core_percent",
    "frames_sent",
)


async def relay(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # Far above what it takes: a machine busy with other things is no failure.
    with trio.fail_after(150):
        return await trio.run_process(
            [sys.executable, "-m", "tests.benchmarks.relay", *arguments],
            cwd=Path(__file__).parents[2],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


async def test_prints_figures_of_one_call() -> None:
    done = await relay("--calls", "1", "--seconds", "1", "--pairs", "1", "--json")
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    assert {"cores", "cpu", "python", "trio", "date", "load_before"} <= document["machine"].keys()
    [figures] = document["figures"]
    [pair] = document["pairs"]
    for each in ("bridge", "floor"):
        assert pair[each]["calls"] == 10
        assert {name: pair[each][name] for name in POSITIVE if not pair[each][name] > 0} == {}
    assert pair["ratio"] > 0
    assert pair["bridge"]["frames_lost"] == pair["floor"]["frames_lost"] == 0
    assert figures["calls"] == 1
    # One call may have its memory from the one before it.
    some = [name for name in POSITIVE if name != "rss_kb_per_call"]
    assert {name: figures[name] for name in some if not figures[name] > 0} == {}
    # One second both ways, and the warm-up before it.
    assert figures["frames_sent"] >= 100
    kinds = ("lost", "duplicated", "reordered", "foreign")
    assert {kind: figures[f"frames_{kind}"] for kind in kinds} == dict.fromkeys(kinds, 0)


async def test_a_wrong_number_of_calls_is_refused() -> None:
    done = await relay("--calls", "0")
    assert done.returncode == 2
    assert b"--calls" in done.stderr
