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
from tests.sweep.scenario import FRIENDLY, STUBBORN, Fault, Run, play

TEARDOWN_SECONDS = 2.0  # call.teardown_seconds
KEEP_ALIVE_SECONDS = 5.0  # hypercorn's default

FAULTS: tuple[Fault, ...] = ("cancel", "raise", "lose phone", "lose agent")


def broken_promises(run: Run, fault: Fault) -> list[str]:
    """What must hold whatever happens, and did not."""
    broken = []
    if run.error is not None:
        broken.append(f"an exception came out: {run.error!r}")
    if run.guard_hit:
        broken.append("a task did not end")
    if run.live_calls:
        broken.append(f"{run.live_calls} calls still hold a slot")
    if run.open_sessions:
        broken.append(f"{run.open_sessions} agent sessions still open")
    if run.agent_streams_open:
        broken.append(f"{run.agent_streams_open} of our sockets to the agent still open")
    if not run.phone_told:
        broken.append("the phone was not told")
    if len(run.outcomes) != (1 if run.began or run.outcomes else 0):
        broken.append(f"the outcome was recorded {len(run.outcomes)} times")
    if run.outcomes and run.outcomes[0] not in (allowed := allowed_outcomes(run, fault)):
        broken.append(f"the outcome was {run.outcomes[0]}, expected one of {sorted(allowed)}")
    if run.injected_at is not None:
        if run.outcomes and run.call_ended_at - run.injected_at > TEARDOWN_SECONDS + 0.001:
            broken.append(f"teardown took {run.call_ended_at - run.injected_at:.3f} s")
        # A connection that has not become a call yet is hypercorn's, until its keep-alive ends.
        most = TEARDOWN_SECONDS if run.outcomes else KEEP_ALIVE_SECONDS
        if run.connection_ended_at - run.injected_at > most + 0.001:
            broken.append(f"the connection lived on for {run.connection_ended_at:.3f} s")
    expected_tracebacks = int(run.outcomes[:1] == ["internal_error"])
    if run.tracebacks != expected_tracebacks:
        broken.append(f"{run.tracebacks} tracebacks, expected {expected_tracebacks}")
    return broken


def allowed_outcomes(run: Run, fault: Fault) -> set[str]:
    """What the call's outcome may be: what was recorded before the fault, or else its effect."""
    if run.outcome_then is not None:
        return {run.outcome_then}
    # `stop` may have been on its way when the fault struck; both are then true.
    either = {"caller_hung_up"} if run.stop_sent else set()
    match fault:
        case "cancel":
            return {"server_shutdown"} | either
        case "lose phone":
            return {"phone_lost"} | either
        case "lose agent" if not run.agent_connected:
            return {"caller_hung_up"}  # there was nothing to lose
        case "lose agent":
            return {"agent_failed", "agent_unreachable"} | either
        case "raise" if run.injected_into == "agent websocket reader":
            # The library's reader belongs to the session; with it the agent is lost.
            return {"agent_failed", "agent_unreachable"} | either
        case "raise":
            return {"internal_error"} | either


def sweep(fault: Fault, **kind: Any) -> tuple[int, dict[int, list[str]]]:
    """Play the call with the fault at every step; how many steps there were, and what broke."""
    points = len(play(fault, None, **kind).steps)
    assert points > 100, "the call is too short to prove anything"
    found = {}
    for at in range(points):
        run = play(fault, at, **kind)
        assert run.injected_at is not None, "two runs with one seed differed"
        if broken := broken_promises(run, fault):
            found[at] = [f"at {run.injected_into}", f"{run.injected_at:.3f}", *broken]
    return points, found


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"seed": 0}, id="seed 0"),
        pytest.param({"seed": 1}, id="seed 1"),
        pytest.param({"behaviour": STUBBORN, "polite": False}, id="peers that never say goodbye"),
    ],
)
def test_every_promise_holds_after_a_fault_at_every_step(
    fault: Fault, kind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    points, found = sweep(fault, **kind)
    with capsys.disabled():
        print(f"\n    sweep: {fault} at each of {points} steps ({len(found)} broken)", end="")
    assert not found


def test_the_call_without_a_fault() -> None:
    run = play()
    assert run.outcomes == ["caller_hung_up"]
    assert run.error is None
    assert run.tracebacks == 0


@pytest.mark.parametrize("behaviour", [FRIENDLY, STUBBORN])
def test_a_run_repeats_itself(behaviour: scenario.Behaviour) -> None:
    """Otherwise a step's number would mean nothing."""
    first, second = play(behaviour=behaviour), play(behaviour=behaviour)
    assert first.steps == second.steps
    assert play(behaviour=behaviour, seed=7).steps != first.steps
