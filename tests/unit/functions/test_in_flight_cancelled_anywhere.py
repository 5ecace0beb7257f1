"""One call with every kind of function, cancelled at each of its scheduling points in turn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
import trio
from structlog.testing import capture_logs
from trio._core import _run
from trio.testing import MockClock

from bridge.caller import CallInfo
from bridge.deepgram.messages import (
    CancelledFunction,
    FunctionCall,
    FunctionCallCancelled,
    FunctionCallRequest,
    FunctionResult,
)
from bridge.functions import Functions, function
from bridge.functions.in_flight import FunctionCalls

IDS = ("looks", "nested", "slow", "fails", "unknown", "bad")


async def looks(a: int) -> int:
    for _ in range(3):
        await trio.sleep(0.1)
    return a


async def nested() -> str:
    async with trio.open_nursery() as nursery:
        for seconds in (0.1, 0.2):
            nursery.start_soon(trio.sleep, seconds)
    return "both"


@function(deadline=0.25)
async def slow() -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.move_on_after(0.1, shield=True):
            await trio.sleep(0.05)


async def fails() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.sleep(0.15)
        raise ValueError


FUNCTIONS = Functions.of(looks, nested, slow, fails)
REQUEST = FunctionCallRequest(
    (
        FunctionCall("looks", "looks", '{"a":1}'),
        FunctionCall("nested", "nested"),
        FunctionCall("slow", "slow"),
        FunctionCall("fails", "fails"),
        FunctionCall("unknown", "unknown"),
        FunctionCall("bad", "looks", '{"a":"x"}'),
    )
)


class AtStep(trio.abc.Instrument):
    """Does something before the given step of any task; counts all steps."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.steps = 0
        self._step = step
        self._action = action

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.steps == self._step:
            self._action()
        self.steps += 1


class Run:
    """One run of the story; `cancelled_at` steps in, the given ids or the whole call end."""

    def __init__(self, cancelled_at: int = -1, ids: tuple[str, ...] = ()) -> None:
        self.began: list[str] = []
        self.sent: list[str] = []
        self.contents: dict[str, object] = {}
        self.began_before_cancel: list[str] | None = None
        self._ids = ids
        self._cancelled_at = cancelled_at
        with capture_logs() as logs, pytest.MonkeyPatch.context() as patch:
            # The same order of tasks in every run, up to the cancellation: step 17 is step 17.
            patch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
            patch.setattr(_run, "_r", random.Random(0))
            trio.run(self._main, clock=MockClock(autojump_threshold=0))
        self.lines = [line for line in logs if line["event"] == "function call"]

    async def _main(self) -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.calls = FunctionCalls(FUNCTIONS, CallInfo(), self._answer)
                at_step = AtStep(self._cancelled_at, self._cancel)
                trio.lowlevel.add_instrument(at_step)
                self.calls.start(nursery, REQUEST)
            self.seconds = trio.current_time()
        trio.lowlevel.remove_instrument(at_step)
        self.steps = at_step.steps

    async def _answer(self, result: FunctionResult) -> None:
        self.began.append(result.id)
        await trio.sleep(0.03)
        await trio.lowlevel.checkpoint()
        self.sent.append(result.id)
        self.contents[result.id] = json.loads(result.content)

    def _cancel(self) -> None:
        self.began_before_cancel = list(self.began)
        if self._ids:
            wanted = tuple(CancelledFunction(one) for one in self._ids)
            self.calls.cancel(FunctionCallCancelled(wanted))
        else:
            self._nursery.cancel_scope.cancel()

    def check(self) -> None:
        """What holds however it went."""
        assert len(self.calls) == 0, "nothing is left in flight"
        assert len(set(self.sent)) == len(self.sent), "no answer twice"
        assert sorted(line["id"] for line in self.lines) == sorted(IDS), "one line each"


UNDISTURBED = Run()


def test_undisturbed() -> None:
    UNDISTURBED.check()
    assert set(UNDISTURBED.sent) == set(IDS)
    assert UNDISTURBED.steps > 30


def test_the_call_ends_anywhere() -> None:
    for step in range(UNDISTURBED.steps):
        run = Run(step)
        run.check()
        assert run.began_before_cancel is not None
        assert set(run.sent) <= set(run.began_before_cancel), "no new answer after the end"
        assert run.seconds <= UNDISTURBED.seconds


@pytest.mark.parametrize("id", IDS)
def test_the_agent_takes_one_back_anywhere(id: str) -> None:
    for step in range(UNDISTURBED.steps):
        run = Run(step, (id,))
        run.check()
        assert run.began == run.sent or set(run.began) == set(run.sent), "no answer is cut off"
        assert run.began_before_cancel is not None
        answered = id in run.began_before_cancel
        assert set(run.sent) == set(IDS) - (set() if answered else {id})
        for other in set(run.sent):
            assert run.contents[other] == UNDISTURBED.contents[other]
