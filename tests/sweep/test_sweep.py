"""The sweep: a fault at every scheduling step of a call, and the same promises after each.

A fault can strike between any two steps of any task, and hand-picked moments miss the one that
matters. So the call is played once to count its steps, and once more for each step and each kind
of fault, with the fault injected there:

    cancel      the server cancels the connection's task, as when it is shutting down
    raise       the task whose turn it is raises: a bug in our code or in a library's reader
    lose phone  the phone's connection is gone, both directions, between two steps
    lose agent  the agent's connection is gone

After each run `broken_promises` lists what was not kept; the list must be empty.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.sweep import scenario
from tests.sweep.promises import FAULTS, sweep
from tests.sweep.scenario import FRIENDLY, STUBBORN, Fault, play


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"seed": 0}, id="seed 0"),
        # The same in another order of tasks.
        pytest.param({"seed": 1, "stride": 3}, id="seed 1"),
    ],
)
def test_every_promise_holds_after_a_fault_at_every_step(
    fault: Fault, kind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    points, found = sweep(fault, **kind)
    with capsys.disabled():
        struck = points // kind.get("stride", 1)
        print(f"\n    sweep: {fault} at {struck} of {points} steps ({len(found)} broken)", end="")
    assert not found


def test_the_call_without_a_fault() -> None:
    run = play()
    assert set(run.steps) > scenario.CALL_TASKS, "every task takes part"
    assert run.outcomes == ["caller_hung_up"]
    assert run.function_answers == ['"12:00"'], "the function really ran"
    assert run.error is None
    assert run.tracebacks == 0


@pytest.mark.parametrize("behaviour", [FRIENDLY, STUBBORN])
def test_a_run_repeats_itself(behaviour: scenario.Behaviour) -> None:
    """Otherwise a step's number would mean nothing."""
    first, second = play(behaviour=behaviour), play(behaviour=behaviour)
    assert first.steps == second.steps
    assert play(behaviour=behaviour, seed=7).steps != first.steps
