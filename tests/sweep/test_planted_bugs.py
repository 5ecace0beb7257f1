"""The sweep finds what it is for, and holds when a second fault strikes during the cleanup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.call.call import Call
from bridge.call.conversation import Conversation
from bridge.call.live_calls import LiveCalls
from bridge.ending import Ending
from bridge.transport.websocket import WebSocket
from tests.sweep import scenario
from tests.sweep.promises import FAULTS, sweep
from tests.sweep.scenario import STUBBORN, Fault, play


def leak_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the slot back only when all went well: the classic missing `finally`."""

    @contextmanager
    def carrying(self: LiveCalls, call: Call) -> Iterator[None]:
        self._live.add(call)
        yield
        self._live.discard(call)

    monkeypatch.setattr(LiveCalls, "carrying", carrying)


def leave_the_session_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the agent's session to the garbage collector."""
    close = WebSocket.close

    async def close_the_phone_only(self: WebSocket, code: int = 1000, *, by: float) -> None:
        if self._frames.client:
            await trio.lowlevel.checkpoint()
        else:
            await close(self, code, by=by)

    monkeypatch.setattr(WebSocket, "close", close_the_phone_only)


def wait_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say goodbye under a shield with a deadline far beyond the teardown's."""
    monkeypatch.setattr(Ending, "by", lambda self: trio.current_time() + 60)


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
        (wait_too_long, "cancel", "teardown took"),
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


def test_a_new_session_that_does_not_speak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a real one does not, until it is spoken to."""

    async def say_nothing(self: Conversation, **_: Any) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Conversation, "_begin", say_nothing)
    _, found = sweep("lose agent", stride=97, reconnect=True)
    assert any("waited in silence" in promise for broken in found.values() for promise in broken)


@given(st.integers(0, 2**30), st.integers(0, 2**30), st.sampled_from(FAULTS), st.integers(0, 3))
@settings(max_examples=60)
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
