"""Twilio's playback buffer, on a clock that is a number."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.testing.phone.playback import HeardStretch, PlaybackBuffer

SECOND = bytes(range(160)) * 50
QUIET = b"\xff"


def test_audio_plays_at_once_and_in_real_time():
    buffer = PlaybackBuffer(100.0)
    buffer.add_audio(SECOND, 101.0)
    assert not PlaybackBuffer(100.0).is_playing(100.0)
    assert buffer.is_playing(101.0)
    assert buffer.queued(101.25) == 0.75
    assert buffer.heard(101.5) == QUIET * 8000 + SECOND[:4000]
    assert buffer.heard(103.0) == QUIET * 8000 + SECOND + QUIET * 8000
    assert buffer.stretches(103.0) == [HeardStretch(101.0, 102.0, cut=False)]
    assert not buffer.is_playing(102.0)
    assert buffer.runs_out_at == 102.0


def test_pieces_sent_faster_than_real_time_queue_up_without_gaps():
    buffer = PlaybackBuffer(0.0)
    for _ in range(3):
        buffer.add_audio(SECOND, 0.5)
    assert buffer.queued(0.5) == 3.0
    assert buffer.heard(3.5) == QUIET * 4000 + SECOND * 3


def test_a_late_piece_leaves_a_gap_of_silence():
    buffer = PlaybackBuffer(0.0)
    buffer.add_audio(SECOND, 0.0)
    buffer.add_audio(SECOND, 1.01)
    assert buffer.heard(2.01) == SECOND + QUIET * 80 + SECOND
    assert len(buffer.stretches(2.01)) == 2


def test_pieces_paced_at_exactly_real_time_leave_no_gap():
    """A float clock is never quite on the sample; half a sample is no gap."""
    buffer = PlaybackBuffer(0.1)
    for n in range(500):
        buffer.add_audio(SECOND[:160], 0.1 + n * 0.02)
    assert buffer.heard(10.1) == SECOND[:160] * 500
    assert len(buffer.stretches(10.1)) == 1


def test_a_window_of_what_was_heard():
    buffer = PlaybackBuffer(0.0)
    buffer.add_audio(SECOND, 1.0)
    assert buffer.heard(1.5, since=0.5) == QUIET * 4000 + SECOND[:4000]
    assert buffer.heard(1.5, since=1.25) == SECOND[2000:4000]
    assert buffer.heard(3.0, since=2.5) == QUIET * 4000


def test_a_mark_waits_for_the_audio_before_it_and_no_other():
    buffer = PlaybackBuffer(0.0)
    buffer.add_audio(SECOND, 0.0)
    buffer.add_mark("one", 0.0)
    buffer.add_audio(SECOND, 0.0)
    assert buffer.next_mark_at() == 1.0
    assert buffer.take_due_marks(0.999) == []
    assert buffer.take_due_marks(1.0) == ["one"]
    assert buffer.next_mark_at() is None


@pytest.mark.parametrize("played_until", [None, 1.0])
def test_a_mark_with_nothing_buffered_is_due_at_once(played_until):
    buffer = PlaybackBuffer(0.0)
    if played_until is not None:
        buffer.add_audio(SECOND, 0.0)
    buffer.add_mark("now", 5.0)
    assert buffer.take_due_marks(5.0) == ["now"]


def test_clear_cuts_what_is_heard_and_gives_all_marks_back():
    buffer = PlaybackBuffer(0.0)
    buffer.add_audio(SECOND, 0.0)
    buffer.add_mark("a", 0.0)
    buffer.add_audio(SECOND, 0.0)
    buffer.add_mark("b", 0.0)
    assert buffer.clear(0.25) == ["a", "b"]
    assert buffer.dropped == 14000
    assert not buffer.is_playing(0.25)
    assert buffer.next_mark_at() is None
    buffer.add_audio(SECOND, 0.5)
    assert buffer.heard(1.5) == SECOND[:2000] + QUIET * 2000 + SECOND
    assert buffer.stretches(1.5) == [
        HeardStretch(0.0, 0.25, cut=True),
        HeardStretch(0.5, 1.5, cut=False),
    ]


def test_clear_of_an_empty_buffer_does_nothing():
    buffer = PlaybackBuffer(0.0)
    assert buffer.clear(1.0) == []
    buffer.add_audio(SECOND, 1.0)
    assert buffer.clear(5.0) == []
    assert buffer.dropped == 0
    assert buffer.stretches(5.0) == [HeardStretch(1.0, 2.0, cut=False)]


steps = st.lists(
    st.tuples(
        st.one_of(st.just("clear"), st.just("mark"), st.integers(0, 2000)),
        st.one_of(st.just(0.0), st.floats(0, 0.5)),
    ),
    max_size=40,
)


@given(steps, st.floats(0, 1e6))
def test_nothing_is_lost_or_invented(actions, began):
    """Sent is heard plus dropped; marks come back once, in order, when audio has played."""
    now = began
    buffer = PlaybackBuffer(began)
    sent = bytearray()
    marks_sent: list[str] = []
    marks_back: list[str] = []
    for action, wait in actions:
        now += wait
        for name in buffer.take_due_marks(now):
            marks_back.append(name)
        if action == "clear":
            marks_back += buffer.clear(now)
            assert not buffer.is_playing(now)
        elif action == "mark":
            marks_sent.append(str(len(marks_sent)))
            due = max(now, buffer.runs_out_at)
            buffer.add_mark(marks_sent[-1], now)
            if buffer.next_mark_at() is not None and marks_back == marks_sent[:-1]:
                assert buffer.next_mark_at() == due
        else:
            # No byte of the audio is silence, so that what was heard can be told from the gaps.
            audio = bytes((len(sent) + i) % 255 for i in range(action))
            sent += audio
            buffer.add_audio(audio, now)
        # Half a sample of rounding at most: the length of what was heard is the time elapsed.
        assert abs(len(buffer.heard(now)) - (now - began) * 8000) <= 1.5
    end = max(now, buffer.runs_out_at) + 1
    marks_back += buffer.take_due_marks(end)
    assert marks_back == marks_sent
    heard = buffer.heard(end).replace(QUIET, b"")
    assert len(heard) + buffer.dropped == len(sent) == buffer.sent
    assert buffer.heard_bytes(end) == len(heard)
    if not buffer.dropped:
        assert heard == sent
    times = [time for one in buffer.stretches(end) for time in (one.start, one.end)]
    assert all(a <= b + 1 / 8000 for a, b in pairwise(times))
