"""What must hold after a fault in a call, whatever the fault and wherever it strikes."""

from __future__ import annotations

from typing import Any

from tests.sweep.scenario import Fault, Run, play

TEARDOWN_SECONDS = 2.0  # call.teardown_seconds
KEEP_ALIVE_SECONDS = 5.0  # hypercorn's default
SILENCE_SECONDS = 11.0  # call.stall_seconds, and one second

FAULTS: tuple[Fault, ...] = ("cancel", "raise", "lose phone", "lose agent")


def broken_promises(
    run: Run, fault: Fault, *, reconnect: bool = False, warm: bool = False, **_: Any
) -> list[str]:
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
    allowed = allowed_outcomes(run, fault, reconnect, warm)
    if run.outcomes and run.outcomes[0] not in allowed:
        broken.append(f"the outcome was {run.outcomes[0]}, expected one of {sorted(allowed)}")
    if run.injected_at is not None:
        goes_on = (reconnect or warm) and run.outcomes == ["caller_hung_up"]
        took = run.call_ended_at - run.injected_at
        if not goes_on and run.outcomes and took > TEARDOWN_SECONDS + 0.001:
            broken.append(f"teardown took {took:.3f} s")
        # A connection that has not become a call yet is hypercorn's, until its keep-alive ends.
        most = TEARDOWN_SECONDS if run.outcomes else KEEP_ALIVE_SECONDS
        lived = run.connection_ended_at - run.injected_at
        if not goes_on and lived > most + 0.001:
            broken.append(f"the connection lived on for {lived:.3f} s")
        if reconnect and fault == "lose agent" and run.agent_connected and not run.stop_sent_then:
            heard = min(run.heard_again_at or run.call_ended_at, run.call_ended_at)
            if heard - run.injected_at > SILENCE_SECONDS:
                broken.append(f"the caller waited in silence for {heard - run.injected_at:.1f} s")
    # A bug is told of once, also when the call was ending for another reason already.
    if run.tracebacks > (fault == "raise"):
        broken.append(f"{run.tracebacks} tracebacks")
    if run.outcomes[:1] == ["internal_error"] and run.tracebacks != 1:
        broken.append("a bug was not told of")
    return broken


def allowed_outcomes(run: Run, fault: Fault, reconnect: bool, warm: bool) -> set[str]:
    """What the call's outcome may be: what was recorded before the fault, or else its effect."""
    if run.outcome_then is not None:
        return {run.outcome_then}
    # `stop` may have been on its way when the fault struck; both are then true.
    either = {"caller_hung_up"} if run.stop_sent else set()
    lost = {"caller_hung_up"} if reconnect else {"agent_failed", "agent_unreachable"}
    if warm:
        # Before the call had it, or after.
        lost = lost | {"caller_hung_up"}
    match fault:
        case "cancel":
            return {"server_shutdown"} | either
        case "lose phone":
            return {"phone_lost"} | either
        case "lose agent" if not run.agent_connected:
            return {"caller_hung_up"}  # there was nothing to lose
        case "lose agent":
            return lost | either
        case "raise" if run.injected_into == "agent reader" and not run.agent_ready:
            # What trio-websocket raises while it shakes hands is the agent's failure: most often,
            # the peer is no websocket.
            return {"internal_error", "agent_unreachable"} | either
        case "raise":
            return {"internal_error"} | either


def sweep(fault: Fault, stride: int = 1, **kind: Any) -> tuple[int, dict[int, list[str]]]:
    """Play the call with the fault at every step; how many steps there were, and what broke."""
    points = len(play(fault, None, **kind).steps)
    assert points > 100, "the call is too short to prove anything"
    found = {}
    for at in range(0, points, stride):
        run = play(fault, at, **kind)
        assert run.injected_at is not None, "two runs with one seed differed"
        if broken := broken_promises(run, fault, **kind):
            found[at] = [f"at {run.injected_into}", f"{run.injected_at:.3f}", *broken]
    return points, found
