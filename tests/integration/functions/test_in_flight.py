"""Plain functions in threads: beside Trio, stuck, abandoned."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from bridge.caller import CallInfo
from bridge.functions import function
from bridge.functions.threads import THREADS_PER_CALL
from tests.unit.functions.one_call import a_call, fc, wait


async def test_call_info() -> None:
    async def f(a: int, call: CallInfo) -> list[Any]:
        return [a, call.call_sid, call.caller, call.called, call.parameters["tier"]]

    def g(me: CallInfo) -> str:
        return me.stream_sid

    async with a_call(f, g) as phone:
        phone.ask(fc("f", "f", a=1), fc("g", "g"))
    assert phone.answers == {"f": [1, "CA1", "+15551234567", "+15557654321", "gold"], "g": "MZ1"}


async def test_a_plain_function_that_raises() -> None:
    def one() -> None:
        raise ValueError("password hunter2")

    def two() -> None:
        raise StopIteration

    async with a_call(one, two) as phone:
        phone.ask(fc("one", "1"), fc("two", "2"))
    assert phone.answers == {id: {"error": "the function failed"} for id in "12"}


async def test_a_plain_function_runs_beside_trio() -> None:
    def blocking(seconds: float) -> bool:
        time.sleep(seconds)
        return threading.current_thread() is threading.main_thread()

    async with a_call(blocking) as phone:
        phone.ask(fc("blocking", seconds=0.05))
    assert phone.answers == {"fc_1": False}


class Stuck:
    """Functions that block until the test lets them go, and that ignore all cancellation."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self._began = threading.Semaphore(0)
        self._ended = threading.Semaphore(0)
        self._may_end = threading.Event()

    def block(self, me: str) -> str:
        self._began.release()
        self._may_end.wait(20)
        self.effects.append(me)
        self._ended.release()
        return "too late"

    async def began(self, count: int) -> None:
        for _ in range(count):
            await trio.to_thread.run_sync(self._began.acquire)

    async def ended(self, count: int) -> None:
        for _ in range(count):
            await trio.to_thread.run_sync(self._ended.acquire)

    def __enter__(self) -> Stuck:
        return self

    def __exit__(self, *exc: object) -> None:
        self._may_end.set()


async def test_a_thread_that_ignores_cancellation_is_abandoned() -> None:
    """Nothing waits for it: neither the deadline, nor the agent, nor the end of the call."""
    with Stuck() as stuck, trio.fail_after(10):

        @function(deadline=0.5)
        def short(me: str) -> str:
            return stuck.block(me)

        async with a_call(stuck.block, short) as phone:
            phone.ask(fc("short", "t", me="t"), fc("block", "c", me="c"), fc("block", "n", me="n"))
            await stuck.began(3)
            phone.cancel("c")
            await phone.answered("t")
            phone.nursery.cancel_scope.cancel()
    assert phone.answers == {"t": {"error": "the function did not answer within 0.5 seconds"}}
    assert phone.lines == {"t": "timeout", "c": "cancelled", "n": "cancelled"}
    busy = [line["threads_busy"] for line in phone.logs if "threads_busy" in line]
    assert busy == [3, 3]
    await stuck.ended(3)
    await wait_all_tasks_blocked(0.01)
    assert sorted(stuck.effects) == ["c", "n", "t"]
    assert len(phone.results) == 1, "what they returned is thrown away"


async def test_a_call_full_of_stuck_threads_harms_no_other() -> None:
    @function(deadline=0.05)
    def waits_for_a_thread() -> None: ...

    def quick() -> str:
        return "quick"

    with Stuck() as stuck, trio.fail_after(10):
        async with a_call(stuck.block, waits_for_a_thread) as one, a_call(quick) as other:
            one.ask(*(fc("block", str(n), me="x") for n in range(THREADS_PER_CALL)))
            await stuck.began(THREADS_PER_CALL)
            one.ask(fc("waits_for_a_thread", "w"))
            other.ask(fc("quick"))
            await other.answered("fc_1")
            await one.answered("w")
            one.nursery.cancel_scope.cancel()
    assert other.answers == {"fc_1": "quick"}
    assert one.answers == {"w": {"error": "the function did not answer within 0.05 seconds"}}


async def test_an_async_function_in_a_plain_decorator() -> None:
    @functools.wraps(wait)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        return wait(*args, **kwargs)

    async with a_call(decorated) as phone:
        phone.ask(fc("wait", seconds=0))
    assert phone.answers == {"fc_1": "waited 0"}
