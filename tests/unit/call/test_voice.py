"""The caller's voice, told from the noise of the line by the audio alone."""

from __future__ import annotations

import itertools
import math
import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio import PHONE_FRAME_BYTES, silence
from bridge.call.voice import Voice
from bridge.testing.speech import load_clip, pcm_to_ulaw

PIECE = 0.02
QUIET = silence(20)


def noise(rms: float, seconds: float) -> bytes:
    """White noise at that root mean square of 16-bit samples; a second of it, repeated."""
    source = random.Random(rms)
    second = array("h", (int(source.gauss(0, rms)) for _ in range(8000)))
    return pcm_to_ulaw(second.tobytes()) * math.ceil(seconds)


def voiced(*audio: bytes) -> list[float]:
    """Play the audio in the phone's pieces; the times, from the first byte, of those voiced."""
    voice, times = Voice(), []
    whole = b"".join(audio)
    for number, start in enumerate(range(0, len(whole), PHONE_FRAME_BYTES), start=1):
        voice.heard(whole[start : start + PHONE_FRAME_BYTES], number * PIECE)
        if voice.last_voiced_at == number * PIECE:
            times.append(number * PIECE)
    return times


def test_nothing_was_heard_before_the_first_words() -> None:
    assert Voice().last_voiced_at == -math.inf


@pytest.mark.parametrize("line", [QUIET * 100, noise(100, 2)], ids=["quiet", "hissing"])
def test_the_end_of_speech_is_where_the_words_end(line: bytes) -> None:
    """The clip's own silence around its words is a tenth of a second at either end."""
    clip = load_clip("still-there")
    times = voiced(line, clip, line)
    begin, end = 2.0, 2.0 + len(clip) / 8000
    assert begin < times[0] < begin + 0.2
    assert end - 0.2 < times[-1] <= end


def test_speech_has_no_gap_that_could_be_taken_for_a_silence() -> None:
    """Longer pauses than a second are the speaker's."""
    times = voiced(load_clip("hello"))
    assert max(b - a for a, b in itertools.pairwise(times)) < 1.0


@pytest.mark.parametrize("rms", [30, 100, 200])
def test_the_noise_of_a_line_is_no_voice(rms: int) -> None:
    assert voiced(noise(rms, 10)) == []


def test_a_click_is_no_voice() -> None:
    click = b"\x00" * PHONE_FRAME_BYTES
    assert voiced(QUIET, click, QUIET, click, QUIET) == []


def test_a_noise_that_begins_is_taken_for_noise_after_a_while() -> None:
    times = voiced(QUIET * 500, noise(700, 60))
    assert times[0] < 10.1
    assert times[-1] < 10 + 40


def test_a_voice_is_heard_over_a_noise_that_was_learnt() -> None:
    loud = noise(300, 20)
    times = voiced(loud, load_clip("still-there"), loud[:8000])
    assert times != []
    assert all(20 < at < 20 + 2 for at in times)


def test_music_on_hold_is_heard_for_as_long_as_it_plays() -> None:
    """Steady and without a pause, at the level of speech."""
    tone = array("h", (int(9000 * math.sin(at / 3)) for at in range(8000)))
    assert voiced(pcm_to_ulaw(tone.tobytes()) * 300)[-1] == pytest.approx(300)


def test_pieces_of_any_length_are_measured_alike() -> None:
    clip = load_clip("help")
    for size in (1, 80, 240, 4000):
        voice = Voice()
        for start in range(0, len(clip), size):
            voice.heard(clip[start : start + size], (start + size) / 8000)
        assert voice.last_voiced_at > 1


@given(st.lists(st.binary(max_size=400), max_size=50))
def test_any_bytes_are_audio(pieces: list[bytes]) -> None:
    voice, last = Voice(), -math.inf
    for at, piece in enumerate(pieces):
        voice.heard(piece, at)
        assert last <= voice.last_voiced_at <= at or voice.last_voiced_at == -math.inf
        last = voice.last_voiced_at


@given(st.integers(0, 60))
def test_silence_is_never_a_voice(count: int) -> None:
    voice = Voice()
    for at in range(count):
        voice.heard(QUIET, at)
    assert voice.last_voiced_at == -math.inf
