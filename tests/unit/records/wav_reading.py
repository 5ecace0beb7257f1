"""Recordings read back: by the standard library, sample by sample."""

from __future__ import annotations

import wave
from pathlib import Path

from bridge.audio import SAMPLE_RATE

A, B = b"\x00", b"\x80"  # the loudest µ-law samples there are: -32124 and +32124

LOUD = {A: -32124, B: 32124}


def samples(path: Path) -> tuple[list[int], list[int]]:
    """Left and right of a file, by the standard library's reader."""
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (2, 2, SAMPLE_RATE)
        pcm = memoryview(file.readframes(file.getnframes())).cast("h").tolist()
        assert len(pcm) == 2 * file.getnframes()
    return pcm[::2], pcm[1::2]


def runs(side: list[int] | bytes) -> list[tuple[int, int]]:
    """Values and for how many samples: [(value, length), ...]."""
    result: list[tuple[int, int]] = []
    for value in side:
        if result and result[-1][0] == value:
            result[-1] = (value, result[-1][1] + 1)
        else:
            result.append((value, 1))
    return result
