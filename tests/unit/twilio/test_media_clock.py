"""When the caller's audio was spoken, whatever the network did to it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.twilio.media_clock import LATEST, MediaClock

FIRST = 155  # milliseconds; what Twilio begins with


def spoken(delays: list[float], clock: MediaClock | None = None) -> list[float]:
    """Pieces 20 ms apart, each received so many seconds after it was spoken; how far the clock is
    from when each would have been received without delay."""
    clock = clock or MediaClock()
    return [
        clock.spoken_at(str(FIRST + 20 * number), 50.0 + 0.02 * number + delay)
        - (50.0 + 0.02 * number)
        for number, delay in enumerate(delays)
    ]


def test_a_delay_is_taken_off() -> None:
    """After one piece that came straight through."""
    errors = spoken([0.03, 0.03, 0.8, 0.78, 0.03, 0.25, 1.0])
    assert errors == pytest.approx([0.03] * 7, abs=0.001)


def test_pieces_that_are_read_together_were_spoken_one_after_the_other() -> None:
    clock = MediaClock()
    clock.spoken_at("155", 1.0)
    times = [clock.spoken_at(str(155 + 20 * n), 1.5) for n in range(1, 26)]
    assert times == pytest.approx([1.0 + 0.02 * n for n in range(1, 26)], abs=0.001)


def test_the_clocks_may_drift_apart() -> None:
    """For ten minutes, by 500 parts in a million, under jitter of 50 ms."""
    source = random.Random(1)
    pieces = 50 * 600
    for sign in (1, -1):
        drift = [sign * 0.02 * 500e-6 * n for n in range(pieces)]
        errors = spoken([delay + source.expovariate(20.0) for delay in drift])
        tail = [e - d for e, d in zip(errors[500:], drift[500:], strict=True)]
        assert max(map(abs, tail)) < 0.02


def test_timestamps_that_begin_anew_are_followed_at_once() -> None:
    clock = MediaClock()
    spoken([0.0] * 100, clock)
    assert spoken([30.0, 30.0, 30.4, 30.0], clock) == pytest.approx([30.0] * 4, abs=0.001)
    assert spoken([0.0, 0.0, 0.4, 0.0], clock) == pytest.approx([0.0] * 4, abs=0.001)


def test_silence_that_is_not_sent_changes_nothing() -> None:
    clock = MediaClock()
    assert clock.spoken_at("155", 10.0) == 10.0
    assert clock.spoken_at("60155", 70.2) == pytest.approx(70.0, abs=0.001)


@pytest.mark.parametrize("timestamp", [None, "", "soon", "nan", "inf", "-inf", math.nan])
def test_without_a_timestamp_a_piece_counts_when_it_comes(timestamp: str | float | None) -> None:
    clock = MediaClock()
    assert clock.spoken_at(timestamp, 1.0) == 1.0
    assert clock.spoken_at("155", 2.0) == 2.0
    assert clock.spoken_at(timestamp, 3.0) == 3.0
    clock.spoken_at("1155", 3.0)
    assert clock.spoken_at("2155", 4.5) == pytest.approx(4.0, abs=0.001)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.text(), st.floats(), st.integers(-(10**20), 10**20).map(str)),
            st.floats(0, 100),
        )
    )
)
def test_nothing_is_spoken_after_it_is_received_or_long_before(
    pieces: list[tuple[str | float | None, float]],
) -> None:
    clock, now = MediaClock(), 1000.0
    for timestamp, passed in pieces:
        now += passed
        assert now - LATEST - 0.001 <= clock.spoken_at(timestamp, now) <= now
