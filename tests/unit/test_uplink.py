"""The caller's audio between receiver and sender, on the virtual clock."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio import silence
from bridge.uplink import QUEUE_SECONDS, SILENT_AFTER, Uplink

TWENTY_MS = bytes(range(160))


async def take_all(uplink: Uplink) -> list[bytes]:
    taken = []
    try:
        while True:
            taken.append(await uplink.take())
    except trio.EndOfChannel:
        return taken


@given(st.lists(st.binary(max_size=500), max_size=20), st.integers(20, 250))
async def test_everything_put_is_taken_in_order(pieces: list[bytes], frame_ms: int) -> None:
    uplink = Uplink(frame_ms)
    for piece in pieces:
        uplink.put(piece)
    uplink.end()
    taken = await take_all(uplink)
    assert b"".join(taken) == b"".join(pieces)
    assert all(len(frame) == frame_ms * 8 for frame in taken[:-1])
    assert uplink.bytes_dropped == 0


async def test_the_oldest_is_dropped_and_counted_when_nobody_takes() -> None:
    uplink = Uplink(20)
    for number in range(150):
        uplink.put(bytes([number]) * 160)
    uplink.end()
    taken = await take_all(uplink)
    kept = round(QUEUE_SECONDS / 0.02)
    assert taken == [bytes([number]) * 160 for number in range(150 - kept, 150)]
    assert uplink.bytes_dropped == (150 - kept) * 160
    assert uplink.bytes_put == 150 * 160


async def test_a_frame_is_taken_when_it_is_full(autojump_clock: trio.testing.MockClock) -> None:
    uplink = Uplink(60)
    arrivals: list[tuple[float, int]] = []

    async def taker() -> None:
        while len(arrivals) < 3:
            frame = await uplink.take()
            arrivals.append((round(trio.current_time(), 3), len(frame)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker)
        for _ in range(9):
            await trio.sleep(0.02)
            uplink.put(TWENTY_MS)
    assert arrivals == [(0.06, 480), (0.12, 480), (0.18, 480)]


async def test_no_byte_waits_longer_than_a_frame(autojump_clock: trio.testing.MockClock) -> None:
    """The phone goes quiet in the middle of a frame: what there is goes out one frame later."""
    uplink = Uplink(60)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def phone() -> None:
            await trio.sleep(0.05)
            uplink.put(TWENTY_MS)

        assert await uplink.take() == TWENTY_MS
    assert trio.current_time() == pytest.approx(0.05 + 0.06)


async def test_the_rest_of_a_frame_never_overtakes_a_full_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The taker is late: it was elsewhere when both the frame and the alarm came."""
    uplink = Uplink(20)
    uplink.put(bytes([1]) * 200)
    await trio.sleep(1)
    uplink.put(bytes([2]) * 100)
    assert await uplink.take() == bytes([1]) * 160
    assert await uplink.take() == bytes([1]) * 40 + bytes([2]) * 100


async def test_silence_in_real_time_while_the_phone_sends_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    uplink = Uplink(60)
    at = []
    for _ in range(5):
        assert await uplink.take() == silence(60)
        at.append(trio.current_time())
    assert at == pytest.approx([SILENT_AFTER + n * 0.06 for n in range(5)])
    uplink.put(TWENTY_MS * 3)
    assert await uplink.take() == TWENTY_MS * 3
    before = trio.current_time()
    assert await uplink.take() == silence(60)
    assert trio.current_time() - before == pytest.approx(SILENT_AFTER)


async def test_silence_is_not_made_up_for_after_a_slow_send(
    autojump_clock: trio.testing.MockClock,
) -> None:
    uplink = Uplink(60)
    await uplink.take()
    await trio.sleep(5)
    await uplink.take()
    before = trio.current_time()
    for _ in range(10):
        await uplink.take()
    assert trio.current_time() - before == pytest.approx(0.6)


async def test_cancelling_take_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    uplink = Uplink(20)
    with trio.move_on_after(0.1):
        await uplink.take()
        pytest.fail("there was nothing to take")
    uplink.put(TWENTY_MS)
    assert await uplink.take() == TWENTY_MS
