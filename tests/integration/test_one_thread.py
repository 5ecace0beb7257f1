"""One worker thread: its order, its deadline, and what an abandoned function leaves behind.

The clock is virtual; a function that hangs waits for an event that the test sets.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from bridge.one_thread import OneThread


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def hang(gate: threading.Event) -> None:
    assert gate.wait(30)


async def abandon(thread: OneThread, gate: threading.Event) -> None:
    """Let a function hang in the thread, and cancel its caller."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, lambda: hang(gate))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert thread.is_stuck


async def test_it_returns_what_the_function_returns_and_raises_what_it_raises():
    thread = OneThread()
    assert await thread.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert not thread.is_stuck


async def test_functions_run_one_at_a_time_in_the_order_in_which_they_came():
    thread = OneThread()
    inside, order = 0, []

    def work(number: int) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        order.append(number)
        inside -= 1

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(thread.run, lambda number=number: work(number))
            await trio.testing.wait_all_tasks_blocked()
    assert order == list(range(20))


async def test_a_function_that_hangs_is_abandoned_and_keeps_the_thread(autojump_clock, gate):
    thread = OneThread()
    with pytest.raises(trio.TooSlowError):
        await thread.run(lambda: hang(gate), within=5)
    assert trio.current_time() == 5
    assert thread.is_stuck
    with pytest.raises(trio.TooSlowError):
        await thread.run(lambda: pytest.fail("a second thread went in"), within=5)
    assert trio.current_time() == 10
    assert thread.is_stuck


async def test_once_the_abandoned_function_has_returned_the_thread_is_free(gate):
    thread = OneThread()
    await abandon(thread, gate)
    gate.set()
    with trio.fail_after(30):
        await thread.wait_idle()
    assert not thread.is_stuck
    assert await thread.run(lambda: 7) == 7


async def test_a_function_whose_caller_waits_for_it_is_not_stuck(gate):
    thread = OneThread()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, lambda: hang(gate))
        await trio.testing.wait_all_tasks_blocked()
        assert not thread.is_stuck
        gate.set()


async def test_cancelled_the_caller_goes_on_at_once_and_its_function_keeps_the_thread(gate):
    with trio.fail_after(30):
        await abandon(OneThread(), gate)


async def test_a_caller_that_waits_behind_an_abandoned_function_does_not_hide_that_it_hangs(gate):
    thread = OneThread()
    await abandon(thread, gate)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, lambda: None)
            await trio.testing.wait_all_tasks_blocked()
            assert thread.is_stuck
            gate.set()
    assert not thread.is_stuck


async def test_waiting_until_it_is_idle_can_be_given_up(autojump_clock, gate):
    thread = OneThread()
    await abandon(thread, gate)
    with trio.move_on_after(1) as waiting:
        await thread.wait_idle()
    assert waiting.cancelled_caught


async def test_without_a_thread_to_be_had_it_says_so_and_is_free(monkeypatch):
    def start(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    thread = OneThread()
    with monkeypatch.context() as patch:
        patch.setattr(trio._threads, "start_thread_soon", start)
        with pytest.raises(RuntimeError, match="new thread"):
            await thread.run(lambda: 7)
    assert not thread.is_stuck
    assert await thread.run(lambda: 7) == 7
