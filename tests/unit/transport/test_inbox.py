"""What waits between a websocket's reader and who acts on it, on the virtual clock."""

from __future__ import annotations

import pytest
import trio

from bridge.transport.grid import Nap
from bridge.transport.inbox import Inbox

Clock = trio.testing.MockClock


async def test_what_came_together_is_taken_together() -> None:
    inbox = Inbox(8)
    for message in ("one", b"two", "three"):
        await inbox.put(message)
    assert await inbox.take() == ["one", b"two", "three"]


async def test_audio_waits_for_the_tick_and_words_do_not(autojump_clock: Clock) -> None:
    inbox, nap = Inbox(8), Nap(0.06)
    taken: list[tuple[float, list[str | bytes]]] = []

    async def taker() -> None:
        for _ in range(3):
            messages = await inbox.take(nap)
            taken.append((round(trio.current_time(), 3), messages))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker)
        await trio.sleep(0.01)
        await inbox.put(b"a")
        await trio.sleep(0.01)
        await inbox.put(b"b")
        await trio.sleep(0.05)  # 0.07
        await inbox.put(b"c")
        await inbox.put("UserStartedSpeaking")
    assert taken == [(0.06, [b"a", b"b"]), (0.07, [b"c", "UserStartedSpeaking"]), (0.12, [])]


async def test_without_a_nap_audio_is_taken_at_once(autojump_clock: Clock) -> None:
    inbox = Inbox(8)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def put() -> None:
            await trio.sleep(0.01)
            await inbox.put(b"a")

        assert await inbox.take() == [b"a"]
        assert inbox.oldest_at == trio.current_time() == pytest.approx(0.01)


async def test_a_full_inbox_is_taken_at_once_and_holds_its_reader_back(
    autojump_clock: Clock,
) -> None:
    inbox, nap = Inbox(2), Nap(0.06)
    put: list[float] = []

    async def reader() -> None:
        for number in range(3):
            await inbox.put(bytes([number]))
            put.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.sleep(0.01)
        assert len(put) == 2
        assert await inbox.take(nap) == [b"\0", b"\1"]
        assert trio.current_time() == pytest.approx(0.01)
    assert await inbox.take() == [b"\2"]


async def test_the_end_is_told_behind_the_last_message(autojump_clock: Clock) -> None:
    inbox = Inbox(8)
    await inbox.put(b"last")
    inbox.end()
    assert await inbox.take(Nap(0.06)) == [b"last"]
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await inbox.take()


async def test_the_end_wakes_who_waits(autojump_clock: Clock) -> None:
    for nap in (None, Nap(10)):
        inbox = Inbox(8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)

            @nursery.start_soon
            async def end(inbox: Inbox = inbox) -> None:
                await trio.sleep(0.5)
                inbox.end()

            with pytest.raises(trio.EndOfChannel):
                await inbox.take(nap)
            assert trio.current_time() % 1 == pytest.approx(0.5)


async def test_nobody_waits_to_put_what_nobody_takes(autojump_clock: Clock) -> None:
    inbox = Inbox(1)
    await inbox.put(b"1")
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inbox.put, b"2")
            await trio.sleep(0.1)
            inbox.discard()
        await inbox.put(b"3")
    with pytest.raises(trio.EndOfChannel):
        await inbox.take()


async def test_cancelling_take_loses_nothing(autojump_clock: Clock) -> None:
    inbox = Inbox(8)
    for nap in (None, Nap(10)):
        with trio.move_on_after(0.1):
            await inbox.take(nap)
            pytest.fail("there was nothing to take")
        await inbox.put(b"kept")
        assert await inbox.take() == [b"kept"]
