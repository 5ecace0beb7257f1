"""Pairs of runs against the goals, and the search for the capacity of one core.

Compared runs follow each other, A B A B, so that both meet the same conditions on a busy machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from tests.benchmarks.figures import GENERATOR_BUSY_PERCENT, GENERATOR_LATE_MS, Figures

CPU_GOALS: Final = {10: 1.1, 40: 1.25}
"""The most CPU in units of the floor's, by number of calls."""

P50_GOAL_MS: Final = 2.0
P99_GOAL_MS: Final = 15.0
"""The most that the round trip may take longer than the floor's, at any number of calls."""

MEMORY_GOAL_KB: Final = 110.0
CAPACITY_GOAL: Final = 80

FULL_MS: Final = 50.0
"""A server is full when the 99th percentile of the round trip is above this."""

LOADS: Final = (80, 120, 160, 200, 240, 320)
LOADS_BELOW: Final = (60, 40, 20)
"""Tried one after the other when the first of LOADS is too much."""


class Pair(NamedTuple):
    """A run of bridge and the run of the floor after it, under the same load."""

    bridge: Figures
    floor: Figures


class Check(NamedTuple):
    """One figure beside its goal."""

    name: str
    value: float
    goal: float | None
    form: str = ".2f"
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def __str__(self) -> str:
        line = f"  {self.name:52} {format(self.value, self.form):>8}"
        if self.goal is None:
            return line
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "MISSED"
        return f"{line}   goal {sign} {format(self.goal, self.form)}: {verdict}"


def checks(pairs: Sequence[Pair]) -> list[Check]:
    """The medians over the pairs, each pair's own difference or ratio, beside their goals."""
    calls = pairs[0].bridge.calls
    ratio = statistics.median(pair.bridge.cpu_ms / pair.floor.cpu_ms for pair in pairs)
    found = [Check("CPU, ratio to the floor", ratio, CPU_GOALS.get(calls))]
    for name, goal in (("p50_ms", P50_GOAL_MS), ("p99_ms", P99_GOAL_MS)):
        more = statistics.median(
            getattr(pair.bridge, name) - getattr(pair.floor, name) for pair in pairs
        )
        found.append(Check(f"round trip {name[:3]}, ms more than the floor", more, goal, "+.2f"))
    memory = [pair.bridge.memory_kb_per_call for pair in pairs]
    if known := [kb for kb in memory if kb is not None]:
        found.append(Check("memory, KB per call", statistics.median(known), MEMORY_GOAL_KB, ".0f"))
    return found


class Capacity(NamedTuple):
    """The most calls that one core carried; the run that was too much, None if none was."""

    calls: int
    too_much: Figures | None

    def __str__(self) -> str:
        if self.too_much is None:
            return "the search ends there"
        run = self.too_much
        if run.generator_core_percent > GENERATOR_BUSY_PERCENT:
            return f"with {run.calls} calls the load generator is the bottleneck"
        if run.generator_late_p99_ms > GENERATOR_LATE_MS:
            late = f"{run.generator_late_p99_ms:.0f} ms late"
            return f"with {run.calls} calls the load generator itself is {late}: a busy machine"
        return f"with {run.calls} calls the 99th percentile is {run.p99_ms:.0f} ms"


async def capacity(measure: Callable[[int], Awaitable[Figures]]) -> Capacity:
    """Search upwards for the most calls with a 99th percentile of the round trip below FULL_MS.

    `measure` makes one run with a number of calls. A load that fails is tried once more, so that a
    second of other work on the machine does not end the search.
    """

    async def better(calls: int) -> Figures:
        run = await measure(calls)
        return run if run.p99_ms < FULL_MS else await measure(calls)

    carried = 0
    too_much: Figures | None = None
    for calls in LOADS:
        run = await better(calls)
        if run.p99_ms >= FULL_MS:
            too_much = run
            break
        carried = calls
    for calls in LOADS_BELOW:
        if carried:
            break
        run = await better(calls)
        if run.p99_ms < FULL_MS:
            carried = calls
        else:
            too_much = run
    return Capacity(carried, too_much)
