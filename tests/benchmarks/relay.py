"""What carrying a call costs: CPU, delay and memory of bridge, beside the floor.

    python -m tests.benchmarks.relay [--calls 10,40] [--pairs 3] [--seconds 4] [--quick]

The floor is `asyncio_relay`, the least program that carries the same calls: a ratio to it is
comparable between machines, a figure alone is not. The load is N phones, each sending 160 bytes of
µ-law 50 times a second, and an agent that returns each message at once. Both axes are measured in
each run: the CPU of the server process, and the round trip of each 160 bytes from the phone through
the server and the agent back to the phone. Bridge and the floor take turns, and the medians of the
pairs are compared with the goals. Last, the load on one core grows until the 99th percentile of the
round trip is above 50 ms, for both.

Every run has a fresh server on one core and the load generator on another. The figures are printed,
not judged, since they depend on the machine. Exit code 1 when bridge failed or damaged audio, with
one line that says how.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.benchmarks.compare import CAPACITY_GOAL, FULL_MS, Check, Pair, capacity, checks
from tests.benchmarks.figures import LEGEND, Figures, header, row
from tests.benchmarks.measuring import Run, facts, measure, numbers, run_program
from tests.benchmarks.server import BRIDGE, FLOOR, Subject

WARM_UP: Final = 1.5
"""Seconds of full load that are not measured: the first calls import, allocate and fill caches."""

CAPACITY_SECONDS: Final = 3.0
"""Measured time of each step of the search for the capacity."""

QUICK: Final = {"pairs": 1, "seconds": 2.0, "capacity": False}


async def relay(options: argparse.Namespace) -> int:
    """Measure everything, print it, and return the exit code."""

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    described = facts()
    say(", ".join(f"{name} {value}" for name, value in described.items()))
    say("On a busy machine, trust the ratios and differences of pairs, not single figures.")
    runs: list[Figures] = []
    document: dict[str, Any] = {"machine": described, "frame_ms": options.frame_ms, "loads": []}

    async def one(subject: Subject, calls: int, seconds: float) -> Figures:
        found = await measure(subject, calls, Run(seconds, WARM_UP, options.frame_ms))
        runs.append(found)
        say(row(found))
        return found

    for calls in options.calls:
        say(f"\n{header()}")
        pairs = [
            Pair(
                await one(BRIDGE, calls, options.seconds),
                await one(FLOOR, calls, options.seconds),
            )
            for _ in range(options.pairs)
        ]
        found = checks(pairs)
        say(f"{calls} calls, median of {len(pairs)} pairs:")
        for check in found:
            say(str(check))
        document["loads"].append(
            {
                "calls": calls,
                "pairs": [{"bridge": asdict(b), "floor": asdict(f)} for b, f in pairs],
                "checks": [_as_dict(check) for check in found],
            }
        )
    if options.capacity:
        say(f"\n{header()}")
        for subject in (BRIDGE, FLOOR):
            most = await capacity(partial(one, subject, seconds=CAPACITY_SECONDS))
            goal = float(CAPACITY_GOAL) if subject is BRIDGE else None
            name = f"{subject.name}, calls on one core, p99 below {FULL_MS:.0f} ms"
            check = Check(name, float(most.calls), goal, ".0f", at_least=True)
            say(f"{check} ({most})")
            document[f"capacity_{subject.name}"] = most.calls
    if options.profile is not None:
        # A run of its own: sampling slows the server down.
        profiled = Run(options.seconds, WARM_UP, options.frame_ms)
        await measure(BRIDGE, max(options.calls), profiled, options.profile)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    say(f"\n{LEGEND}")
    damaged = sum(run.faults for run in runs if run.server == BRIDGE.name)
    if damaged:
        print(f"relay: {damaged} frames did not return once and in order", file=sys.stderr)
    return 1 if damaged else 0


def _as_dict(check: Check) -> dict[str, Any]:
    return {"name": check.name, "value": check.value, "goal": check.goal, "met": check.met}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.relay",
        description="Print the CPU, delay and memory that calls cost, beside the floor.",
    )
    parser.add_argument(
        "--calls", type=numbers, default=[10, 40], metavar="N,N,…", help="default: 10,40"
    )
    parser.add_argument("--pairs", type=int, default=3, help="runs of each server at each load")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time of each run")
    parser.add_argument("--quick", action="store_true", help="one short pair each, no capacity")
    parser.add_argument("--frame-ms", type=int, default=20, help="call.frame_ms of bridge")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="afterwards, run py-spy on bridge under the greatest load; .svg: a flame graph",
    )
    parser.set_defaults(capacity=True)
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    if options.pairs < 1 or options.seconds <= 0:
        parser.error("at least one pair, of more than 0 seconds")
    run_program("relay", relay, options)


if __name__ == "__main__":
    main()
