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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.call.call import Call
from bridge.call.live_calls import LiveCalls
from bridge.deepgram.session import AgentSession
from bridge.ending import Ending
from tests.sweep import scenario
from tests.sweep.scenario import FRIENDLY, STUBBORN, Fault, Run, play

TEARDOWN_SECONDS = 2.0  # call.teardown_seconds
KEEP_ALIVE_SECONDS = 5.0  # hypercorn's default

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
        if goes_on:
            pass
        elif run.outcomes and run.call_ended_at - run.injected_at > TEARDOWN_SECONDS + 0.001:
            broken.append(f"teardown took {run.call_ended_at - run.injected_at:.3f} s")
        # A connection that has not become a call yet is hypercorn's, until its keep-alive ends.
        most = TEARDOWN_SECONDS if run.outcomes else KEEP_ALIVE_SECONDS
        if not goes_on and run.connection_ended_at - run.injected_at > most + 0.001:
            broken.append(f"the connection lived on for {run.connection_ended_at:.3f} s")
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
        case "raise" if run.injected_into == "agent websocket reader":
            # The library's reader belongs to the session; with it the agent is lost.
            return lost | either
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


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"seed": 0}, id="seed 0"),
        pytest.param({"seed": 1}, id="seed 1"),
        pytest.param({"behaviour": STUBBORN, "polite": False}, id="peers that never say goodbye"),
        pytest.param({"reconnect": True}, id="a lost agent is called again"),
    ],
)
def test_every_promise_holds_after_a_fault_at_every_step(
    fault: Fault, kind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    points, found = sweep(fault, **kind)
    with capsys.disabled():
        print(f"\n    sweep: {fault} at each of {points} steps ({len(found)} broken)", end="")
    assert not found


@pytest.mark.parametrize(
    ("fault", "stride"), [("raise", 1), ("cancel", 4), ("lose phone", 4), ("lose agent", 4)]
)
def test_they_hold_when_the_session_is_opened_at_the_webhook(
    fault: Fault, stride: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """At each step where a bug may strike, and at every fourth of the others'."""
    points, found = sweep(fault, stride, warm=True)
    with capsys.disabled():
        print(f"\n    sweep: {fault} at {points // stride} steps ({len(found)} broken)", end="")
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


# ---- the sweep itself finds what it is for -------------------------------------------------------


def leak_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the slot back only when all went well: the classic missing `finally`."""

    @contextmanager
    def carrying(self: LiveCalls, call: Call) -> Iterator[None]:
        self._live.add(call)
        yield
        self._live.discard(call)

    monkeypatch.setattr(LiveCalls, "carrying", carrying)


def leave_the_session_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say goodbye to the agent only if the call was not cancelled."""

    async def close(self: AgentSession, close_by: object) -> None:
        await trio.lowlevel.checkpoint()
        await self._connection.aclose()

    monkeypatch.setattr(AgentSession, "_close", close)


def wait_without_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say goodbye under a shield without a deadline."""
    monkeypatch.setattr(Ending, "by", lambda self: float("inf"))


def report_the_last_symptom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sign of the end overwrite the one before."""
    begin = Ending.begin

    def overwrite(self: Ending[Any], *args: Any, **options: Any) -> bool:
        self.first = None
        return begin(self, *args, **options)

    monkeypatch.setattr(Ending, "begin", overwrite)


@pytest.mark.parametrize(
    ("plant", "fault", "found_as"),
    [
        (leak_a_slot, "cancel", "still hold a slot"),
        (leave_the_session_open, "cancel", "still open"),
        (wait_without_a_deadline, "cancel", "teardown took"),
        (report_the_last_symptom, "lose agent", "the outcome was"),
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    fault: Fault,
    found_as: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = LiveCalls()
    monkeypatch.setattr(scenario.bridge, "calls", calls)
    monkeypatch.setattr(scenario.bridge.setup, "_calls", calls)
    plant(monkeypatch)
    _, found = sweep(fault, stride=11, behaviour=STUBBORN, polite=False)
    assert any(found_as in promise for broken in found.values() for promise in broken)


@given(st.integers(0, 2**30), st.integers(0, 2**30), st.sampled_from(FAULTS), st.integers(0, 3))
@settings(max_examples=100)
def test_a_second_fault_during_the_cleanup_of_the_first(
    first: int, gap: int, second: Fault, seed: int
) -> None:
    """Whatever strikes while the call is taken down: nothing is left, one line says why."""
    points = len(play(None, None, seed=seed).steps)
    run = play("cancel", first % points, second=(second, gap % 40), seed=seed)
    assert run.error is None
    assert not run.guard_hit
    assert run.live_calls == run.open_sessions == run.agent_streams_open == 0
    assert len(run.outcomes) <= 1
