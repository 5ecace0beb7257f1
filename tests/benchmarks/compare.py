"""How bridge compares with the least that carries the same calls, and how many calls a core takes.

Both are made of runs of `relay.measure`, which is passed in. Runs that are to be compared follow
each other, A B A B: what the machine does beside is the same for both, as nearly as can be had.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from tests.benchmarks.figures import GENERATOR_BUSY_PERCENT, Figures

FULL_MS: Final = 50.0
"""A server is full when one frame in a hundred is later than this, its frame's length apart."""

FIRST_LOADS: Final = (1, 10, 20, 40, 80, 160, 320)

HALVINGS: Final = 2
"""How often the gap between the last load that was carried and the first that was not is halved."""

Measure = Callable[[int], Awaitable[Figures]]


class Pair(NamedTuple):
    """One run of bridge and one of `asyncio_relay` right behind it, under the same load."""

    bridge: Figures
    floor: Figures

    @property
    def ratio(self) -> float:
        """Bridge's CPU time per call-second in units of the other's."""
        return self.bridge.cpu_ms_per_call_second / self.floor.cpu_ms_per_call_second


async def pairs(bridge: Measure, floor: Measure, number: int, calls: int) -> list[Pair]:
    """Measure so many pairs."""
    return [Pair(await bridge(calls), await floor(calls)) for _ in range(number)]


def pairs_text(found: Sequence[Pair], frame_ms: int) -> str:
    """The pairs for people."""
    lines = [f"Beside an asyncio relay, {found[0].bridge.calls} calls, CPU ms per call-second:"]
    for number, pair in enumerate(found, start=1):
        bridge, floor = pair
        lines.append(
            f"  pair {number}: bridge {bridge.cpu_ms_per_call_second:.2f},"
            f" asyncio {floor.cpu_ms_per_call_second:.2f}, ratio {pair.ratio:.2f};"
            f" 99th beyond a frame: bridge {bridge.added_p99_ms(frame_ms):.1f} ms,"
            f" asyncio {floor.added_p99_ms(frame_ms):.1f} ms"
        )
    lines.append(f"  median ratio {statistics.median(pair.ratio for pair in found):.2f}")
    return "\n".join(lines)


async def fill(bridge: Measure, frame_ms: int) -> tuple[list[Figures], str]:
    """Load one core more and more until it is full: the runs, by load, and one line that says
    where that is."""
    runs: dict[int, Figures] = {}
    carried, refused, why = 0, 0, "full"

    async def carries(calls: int) -> bool:
        nonlocal why
        run = runs[calls] = await bridge(calls)
        if run.generator_core_percent > GENERATOR_BUSY_PERCENT:
            why = "more than the load generator can make"
            return False
        return run.added_p99_ms(frame_ms) < FULL_MS

    for calls in FIRST_LOADS:
        if not await carries(calls):
            refused = calls
            break
        carried = calls
    for _ in range(HALVINGS):
        middle = (carried + refused) // 2
        if carried < middle < refused:
            if await carries(middle):
                carried = middle
            else:
                refused = middle
    rows = [runs[calls] for calls in sorted(runs)]
    limit = f"; {refused} are {why}" if refused else ""
    return rows, (
        f"One core carries {carried} calls with a 99th percentile below {FULL_MS:.0f} ms beyond a"
        f" frame's length{limit}."
    )
