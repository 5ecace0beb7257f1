"""The count of damaged audio: each kind of damage is counted, and only damage."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.testing.load.flow import FRAME_BYTES, Flow, Window


def flow(frames: int = 0, call: int = 7) -> tuple[Flow, list[bytes]]:
    """A flow whose window is always open, and its first frames, sent at 0, 10, 20, … ns."""
    fresh = Flow(call, Window(begins=0, ends=1e9))
    return fresh, [fresh.next_frame(10 * number) for number in range(frames)]


@given(cuts=st.lists(st.integers(0, 20 * FRAME_BYTES)))
def test_frames_are_found_in_messages_of_any_size(cuts: list[int]) -> None:
    one, frames = flow(20)
    audio = b"".join(frames)
    edges = [0, *sorted(cuts), len(audio)]
    for start, end in pairwise(edges):
        one.arrived(audio[start:end], now=1000)
    assert one.complete
    assert (one.integrity.sent, one.integrity.faults) == (20, 0)
    assert list(one.totals) == [1000 - 10 * number for number in range(20)]


def test_beyond_framing_is_the_delay_of_the_last_frame_of_each_message() -> None:
    one, frames = flow(3)
    one.arrived(b"".join(frames), now=25)
    assert list(one.totals) == [25, 15, 5]
    assert list(one.beyond_framing) == [5]


@pytest.mark.parametrize(
    ("order", "damage"),
    [
        ([0, 1, 3], {"lost": 1}),
        ([0, 1, 1, 2, 3], {"duplicated": 1}),
        ([0, 2, 1, 3], {"reordered": 1}),
    ],
)
def test_damage_is_counted_once_and_by_its_name(order: list[int], damage: dict[str, int]) -> None:
    one, frames = flow(4)
    for number in order:
        one.arrived(frames[number], now=1000)
    found = one.integrity
    assert {name: n for name, n in vars(found).items() if name != "sent" and n} == damage
    assert found.faults == 1


def test_audio_of_another_call_is_foreign() -> None:
    one, _ = flow(1)
    _, [stray] = flow(1, call=8)
    one.arrived(stray, now=1000)
    assert (one.integrity.foreign, one.integrity.lost) == (1, 1)


def test_silence_that_the_server_fills_in_is_no_damage() -> None:
    one, [frame] = flow(1)
    one.arrived(b"\xff" * 480, now=5)
    one.arrived(frame, now=6)
    assert one.integrity.faults == 0
    assert one.silence_bytes == 480


def test_silence_between_frames_is_no_damage() -> None:
    one, [first, second] = flow(2)
    one.arrived(first + b"\xff" * FRAME_BYTES + second, now=1000)
    assert one.complete
    assert one.integrity.faults == 0


def test_bytes_that_are_no_frame_are_foreign() -> None:
    one, [frame] = flow(1)
    for wrong in (frame[:4] + b"x" * (FRAME_BYTES - 4), frame[:12] + b"99999999" + frame[20:]):
        one.arrived(wrong, now=1000)
    assert one.integrity.foreign == 2


def test_only_frames_sent_within_the_window_count() -> None:
    one = Flow(1, Window(begins=10, ends=20))
    for at in (9, 10, 19, 20):
        one.arrived(one.next_frame(at), now=100)
    assert list(one.totals) == [90, 81]
