"""A deploy drops no call: two servers behind the shipped HAProxy configuration, restarted under
load. `python -m tests.benchmarks.rolling` is the same with 600 calls and six restarts.
"""

from __future__ import annotations

import trio

from tests.benchmarks.rolling import Load, run


async def test_a_rolling_restart_drops_no_call() -> None:
    with trio.fail_after(150):
        figures = await run(Load(calls=24, callers=8, seconds=3, rounds=1))
    assert figures.complaints == []
    assert figures.dropped_bytes == 0
    # Both were restarted with live calls, and calls were ended by either side.
    assert [name for name, _, _ in figures.restarts] == ["a", "b"]
    assert all(calls for _, calls, _ in figures.restarts)
    assert set(figures.outcomes) == {"caller_hung_up", "agent_ended"}
    assert sum(figures.outcomes.values()) == figures.calls
