"""Framing loses, adds and reorders nothing, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio import SAMPLE_RATE, Framer, seconds, silence

pieces = st.lists(st.binary(max_size=700), max_size=30)


@given(pieces, st.integers(1, 500))
def test_any_split_comes_out_byte_for_byte_in_whole_frames(
    audio: list[bytes], frame_bytes: int
) -> None:
    framer, so_far, out = Framer(frame_bytes), 0, b""
    for piece in audio:
        so_far += len(piece)
        out += framer.whole(piece)
        assert len(out) == so_far - so_far % frame_bytes
    assert out + framer.flush() == b"".join(audio)
    assert framer.flush() == b""


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte, not 0"):
        Framer(0)


def test_a_byte_is_125_microseconds() -> None:
    assert len(silence(1000)) == SAMPLE_RATE == 8000
    assert set(silence(20)) == {0xFF}
    assert seconds(160) == 0.02
