"""Sounds to say, in µ-law at 8 kHz."""

from __future__ import annotations

import math
from array import array

from bridge.testing.speech import pcm_to_ulaw


def quiet(seconds: float) -> bytes:
    return b"\xff" * round(8000 * seconds)


def tone(seconds: float) -> bytes:
    count = round(8000 * seconds)
    return pcm_to_ulaw(array("h", [round(9000 * math.sin(i / 3)) for i in range(count)]).tobytes())
