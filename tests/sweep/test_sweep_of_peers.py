"""The sweep again, with peers and settings of other kinds: see `test_sweep`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sweep.promises import FAULTS, sweep
from tests.sweep.scenario import STUBBORN, Fault


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"behaviour": STUBBORN, "polite": False}, id="peers that never say goodbye"),
        pytest.param({"reconnect": True, "stride": 2}, id="a lost agent is called again"),
    ],
)
def test_every_promise_holds_with_other_peers_too(
    fault: Fault, kind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    points, found = sweep(fault, **kind)
    with capsys.disabled():
        struck = points // kind.get("stride", 1)
        print(f"\n    sweep: {fault} at {struck} of {points} steps ({len(found)} broken)", end="")
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
