"""The pipes to a speech worker, as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.local_agent import frames
from bridge.local_agent.frames import FrameError, FrameReader, frame

kinds = st.sampled_from([frames.HEAR, frames.SPEAK, frames.EVENT, frames.SPEECH, frames.PONG])


@given(st.lists(st.tuples(kinds, st.binary(max_size=300))), st.lists(st.integers(1, 50)))
def test_frames_come_out_whole_however_the_pipe_cuts_them(
    sent: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(frame(kind, content) for kind, content in sent)
    reader, received = FrameReader(), []
    for size in [*cuts, len(data)]:
        received += reader.feed(data[:size])
        data = data[size:]
    assert received == sent


def test_a_pipe_that_carries_something_else_is_noticed() -> None:
    with pytest.raises(FrameError, match="the longest is"):
        list(FrameReader().feed(b"Traceback (most recent call last):"))


def test_nothing_too_long_is_sent() -> None:
    with pytest.raises(FrameError):
        frame(frames.HEAR, bytes(frames.MAX_CONTENT + 1))


@given(st.integers(0, 2**32 - 1), st.binary(max_size=20))
def test_an_utterance_keeps_its_number(number: int, content: bytes) -> None:
    assert frames.split_number(frames.numbered(number, content)) == (number, content)


def test_an_utterance_without_its_number() -> None:
    with pytest.raises(FrameError, match="number"):
        frames.split_number(b"\0\0")
