"""The caller's audio between receiver and sender, on the virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio import silence
from bridge.call import uplink as uplinks
from bridge.call.uplink import LONGEST_FRAME_BYTES, QUEUE_PIECES, QUEUE_SECONDS, SILENT_AFTER

TWENTY_MS = bytes(range(160))

Uplink = partial(uplinks.Uplink, delay=lambda seconds: None)


async def take_all(uplink: uplinks.Uplink) -> list[bytes]:
    taken = []
    try:
        while True:
            taken.append(await uplink.take())
    except trio.EndOfChannel:
        return taken


@given(st.lists(st.binary(max_size=5000), max_size=20))
async def test_everything_put_is_taken_in_order(pieces: list[bytes]) -> None:
    uplink = Uplink(60)
    for piece in pieces:
        uplink.put(piece, trio.current_time())
    uplink.end()
    taken = await take_all(uplink)
    everything = b"".join(pieces)
    assert uplink.bytes_put == len(everything)
    # What is dropped is the oldest.
    assert b"".join(taken) == everything[uplink.bytes_dropped :]
    assert all(0 < len(frame) <= LONGEST_FRAME_BYTES for frame in taken)


async def test_the_oldest_is_dropped_and_counted_when_the_sender_does_not_take() -> None:
    uplink = Uplink(20)
    for number in range(150):
        uplink.put(bytes([number]) * 160, trio.current_time())
    uplink.end()
    taken = b"".join(await take_all(uplink))
    kept = round(QUEUE_SECONDS / 0.02)
    assert taken == b"".join(bytes([number]) * 160 for number in range(150 - kept, 150))
    assert uplink.bytes_dropped == (150 - kept) * 160
    assert uplink.bytes_put == 150 * 160


async def test_pieces_shorter_than_the_phones_are_bounded_by_their_number() -> None:
    uplink = Uplink(20)
    for number in range(QUEUE_PIECES + 100):
        uplink.put(bytes([number % 256]), trio.current_time())
    uplink.end()
    assert uplink.bytes_dropped == 100
    assert len(b"".join(await take_all(uplink))) == QUEUE_PIECES


async def arrivals_of(uplink: uplinks.Uplink, *batches: int) -> list[tuple[float, int]]:
    """When a sender that is always ready takes how many bytes, of batches 60 ms apart."""
    arrivals: list[tuple[float, int]] = []

    async def taker() -> None:
        while True:
            try:
                frame = await uplink.take()
            except trio.EndOfChannel:
                return
            arrivals.append((round(trio.current_time(), 3), len(frame)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker)
        for pieces in batches:
            await trio.sleep(0.06)
            for _ in range(pieces):
                uplink.put(TWENTY_MS, trio.current_time())
        uplink.end()
    return arrivals


async def test_audio_that_comes_together_is_sent_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    arrivals = await arrivals_of(Uplink(20), 3, 2, 4)
    assert arrivals == [(0.06, 480), (0.12, 320), (0.18, 640)]


async def test_a_longer_frame_is_collected_and_the_rest_is_sent_at_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    arrivals = await arrivals_of(Uplink(100), 3, 2, 4)
    assert arrivals == [(0.12, 800), (0.18, 640)]


async def test_collected_audio_is_sent_when_the_phone_falls_silent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with silent_phone(Uplink(100)) as uplink:
        uplink.put(TWENTY_MS, trio.current_time())
        assert await uplink.take() == TWENTY_MS + silence(80)
        assert trio.current_time() == pytest.approx(SILENT_AFTER)
        assert await uplink.take() == silence(100)


async def test_audio_that_waited_for_a_late_sender_is_taken_in_long_frames() -> None:
    uplink = Uplink(20)
    for _ in range(20):
        uplink.put(TWENTY_MS, trio.current_time())
    uplink.end()
    assert [len(frame) for frame in await take_all(uplink)] == [2080, 1120]


@asynccontextmanager
async def silent_phone(uplink: uplinks.Uplink) -> AsyncIterator[uplinks.Uplink]:
    """A call whose phone sends nothing by itself."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uplink.fill_silence)
        yield uplink
        nursery.cancel_scope.cancel()


async def test_silence_in_real_time_while_the_phone_sends_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with silent_phone(Uplink(60)) as uplink:
        at = []
        for _ in range(5):
            assert await uplink.take() == silence(60)
            at.append(trio.current_time())
        assert at == pytest.approx([SILENT_AFTER + n * 0.06 for n in range(5)])
        uplink.put(TWENTY_MS * 3, trio.current_time())
        assert await uplink.take() == TWENTY_MS * 3
        before = trio.current_time()
        assert await uplink.take() == silence(60)
        assert trio.current_time() - before == pytest.approx(SILENT_AFTER)


async def test_silence_is_not_made_up_for_after_a_slow_send(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with silent_phone(Uplink(60)) as uplink:
        await uplink.take()
        await trio.sleep(5)
        assert uplink.queued_seconds == 0
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
    uplink.put(TWENTY_MS, trio.current_time())
    assert await uplink.take() == TWENTY_MS
