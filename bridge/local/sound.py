"""Rates of sampling, for the speech workers: what the engines speak to the phone's 8 kHz, and the
phone's 8 kHz to the 16 kHz the recogniser was trained on. µ-law is `audioop`'s. Needs numpy.

All samples are signed 16-bit in the machine's byte order.
"""

from __future__ import annotations

import audioop
import math
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

Samples: TypeAlias = "np.ndarray[Any, np.dtype[np.int16]]"
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

PHONE_RATE = 8000
RECOGNISER_RATE = 16000

# A low-pass that ends where the phone's band does, 3400 Hz of 4000, with its stop band 60 dB down:
# what an engine says above it would fold back as a hiss.
_CUTOFF = 0.92
_PERIODS = 16
_KAISER_BETA = 6.0

# The recogniser's acoustic model never met the dead silence above 4 kHz that a phone line leaves;
# a little white noise there raises its accuracy. Standard deviation of 32767.
_NOISE = 40.0


def ulaw_to_samples(ulaw: bytes) -> Samples:
    """µ-law as samples."""
    return np.frombuffer(audioop.ulaw2lin(ulaw, 2), np.int16)


def samples_to_ulaw(samples: Samples) -> bytes:
    """Samples as µ-law."""
    return audioop.lin2ulaw(samples.tobytes(), 2)


def resample(samples: Samples, rate: int, to_rate: int = PHONE_RATE) -> Samples:
    """`samples` at `rate` as samples at `to_rate` (Hz), band-limited and as long in seconds."""
    if rate == to_rate or not len(samples):
        return samples
    common = math.gcd(rate, to_rate)
    step, phases = rate // common, to_rate // common
    kernels = _kernels(rate, to_rate)
    reach = kernels.shape[1] // 2
    index = np.arange((len(samples) * phases + step // 2) // step) * step
    padded = np.concatenate(
        [np.zeros(reach, np.float32), samples.astype(np.float32), np.zeros(reach + 1, np.float32)]
    )
    taps = padded[(index // phases)[:, None] + np.arange(1, 2 * reach + 1)]
    return _clipped(np.einsum("ij,ij->i", taps, kernels[index % phases]))


class Upsampler:
    """Turns the phone's 8 kHz into the recogniser's 16 kHz, portion by portion."""

    def __init__(self, seed: int = 0) -> None:
        self._kernel = _kernels(PHONE_RATE, RECOGNISER_RATE)
        self._tail = np.zeros(self._kernel.shape[1] - 1, np.float32)
        self._random = np.random.default_rng(seed)

    def feed(self, samples: Samples) -> Samples:
        """Twice as many samples as given; they lag by half a kernel, 2 ms."""
        source = np.concatenate([self._tail, samples.astype(np.float32)])
        self._tail = source[len(samples) :]
        out = np.empty(2 * len(samples), np.float32)
        for phase in (0, 1):
            out[phase::2] = np.correlate(source, self._kernel[phase], "valid")
        out += self._random.normal(0, _NOISE, len(out))
        return _clipped(out)


@lru_cache(maxsize=8)
def _kernels(rate: int, to_rate: int) -> Floats:
    """One windowed sinc for each phase between two input samples; each adds up to one, so that no
    phase is louder than another."""
    phases = to_rate // math.gcd(rate, to_rate)
    scale = _CUTOFF * min(1.0, to_rate / rate)
    reach = math.ceil(_PERIODS * max(1.0, rate / to_rate))
    taps = np.arange(1 - reach, 1 + reach)
    distance = taps[None, :] - (np.arange(phases) / phases)[:, None]
    window = np.i0(_KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / reach) ** 2)))
    kernels = np.sinc(scale * distance) * window
    kernels /= kernels.sum(axis=1, keepdims=True)
    return kernels.astype(np.float32)


def _clipped(values: Floats) -> Samples:
    return np.clip(np.rint(values), -32768, 32767).astype(np.int16)
