"""Threads for plain functions: a share for each call, a bound for all."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from bridge.functions.threads import THREADS, THREADS_PER_CALL, ThreadLimiter


async def test_a_call_has_its_share_and_no_more() -> None:
    one, other = ThreadLimiter(), ThreadLimiter()
    for borrower in range(THREADS_PER_CALL):
        await one.acquire_on_behalf_of(borrower)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.acquire_on_behalf_of, "one more")
        await wait_all_tasks_blocked()
        assert one.busy == THREADS_PER_CALL
        await other.acquire_on_behalf_of("another call's")
        assert one.busy == other.busy == THREADS_PER_CALL + 1
        one.release_on_behalf_of(0)
    assert one.busy == THREADS_PER_CALL + 1


async def test_all_calls_together_have_a_bound() -> None:
    limiters = [ThreadLimiter() for _ in range(THREADS // THREADS_PER_CALL + 1)]
    for limiter in limiters[:-1]:
        for borrower in range(THREADS_PER_CALL):
            await limiter.acquire_on_behalf_of((limiter, borrower))
    late = limiters[-1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.acquire_on_behalf_of, "late")
        await wait_all_tasks_blocked()
        assert late.busy == THREADS
        nursery.cancel_scope.cancel()
    # Cancelled while waiting, it took nothing from its call's share either.
    limiters[0].release_on_behalf_of((limiters[0], 0))
    with trio.fail_after(1):
        await late.acquire_on_behalf_of("late again")
    late.release_on_behalf_of("late again")
    assert late.busy == THREADS - 1


async def test_each_run_of_trio_has_its_own() -> None:
    """The tests above kept threads; here there are none."""
    assert ThreadLimiter().busy == 0
