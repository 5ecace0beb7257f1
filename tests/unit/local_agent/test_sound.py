"""Between the rates of the engines, the phone and the recogniser."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.local_agent.sound import (
    PHONE_RATE,
    RECOGNISER_RATE,
    Upsampler,
    resample,
    samples_to_ulaw,
    ulaw_to_samples,
)


def tone(hertz: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.rint(
        10_000 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)
    ).astype(np.int16)


def level(samples: np.ndarray, hertz: float, rate: int) -> float:
    """How much of 10,000 there is at a frequency, the ends left out."""
    inner = samples[len(samples) // 5 : -len(samples) // 5].astype(float)
    turns = np.exp(-2j * np.pi * hertz * np.arange(len(inner)) / rate)
    return 2 * abs((inner * turns).mean()) / 10_000


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 32_000, 44_100])
def test_a_voice_keeps_its_pitch_length_and_loudness(rate: int) -> None:
    out = resample(tone(1000, rate), rate)
    assert len(out) == pytest.approx(0.5 * PHONE_RATE, abs=1)
    assert level(out, 1000, PHONE_RATE) == pytest.approx(1, abs=0.02)


def test_what_lies_above_the_phones_band_does_not_fold_back() -> None:
    out = resample(tone(6000, 22_050), 22_050)
    assert level(out, 2000, PHONE_RATE) < 0.001
    assert np.abs(out[400:-400]).max() < 30


@pytest.mark.parametrize("portion", [1, 7, 240, 4000])
def test_upsampling_in_portions_of_any_size_is_one_stream(portion: int) -> None:
    samples, upsampler = tone(1000, PHONE_RATE), Upsampler()
    parts = [upsampler.feed(samples[i : i + portion]) for i in range(0, len(samples), portion)]
    out = np.concatenate(parts)
    assert len(out) == 2 * len(samples)
    assert level(out, 1000, RECOGNISER_RATE) == pytest.approx(1, abs=0.02)
    # A seam between portions would be a click, and so energy everywhere.
    assert level(out, 5000, RECOGNISER_RATE) < 0.01


def test_the_recogniser_never_gets_dead_silence() -> None:
    out = Upsampler().feed(np.zeros(4000, np.int16))
    assert 30 < out.std() < 50


def test_ulaw_and_back() -> None:
    every = bytes(range(256))
    again = samples_to_ulaw(ulaw_to_samples(every))
    assert [a for a, b in zip(every, again, strict=True) if a != b] == [0x7F]  # minus zero


def test_nothing_is_nothing() -> None:
    assert len(resample(np.zeros(0, np.int16), 22_050)) == 0
