"""Detect the caller's voice in the audio itself. Sans-I/O.

Theory of operation. A µ-law sample holds its magnitude as one of eight segments, each twice as loud
(6 dB) as the one below. The sum of the segments of a piece is its level: 0 on a quiet line, 2 to 4
for each sample of speech. A piece is voiced if it is 6 dB louder than the noise of the line, and
the piece before it was, too; a click lasts for one piece only.

The noise is the lowest level heard, and it rises slowly: a car that starts is noise half a minute
later, while speech has gaps in every second. It does not rise without limit: hold music and
announcements stay voices, as they do for the agent.

This runs for each 20 ms of each call. A segment is written as that many one bits, so one population
count adds up a whole piece.

https://www.itu.int/rec/T-REC-G.711
"""

from __future__ import annotations

import math
from typing import Final

from bridge.audio import PHONE_FRAME_BYTES

PAUSE: Final = 0.5
"""Seconds of quiet within one utterance, between its words."""

# All levels are sums of segments over one 20 ms piece.
MARGIN: Final = 1.0 * PHONE_FRAME_BYTES
"""Between the line's noise and a voice: one segment, 6 dB."""

LOUDEST_NOISE: Final = 1.5 * PHONE_FRAME_BYTES
"""The loudest noise: about -34 dB of full scale."""

NOISE_RISES: Final = 0.001 * PHONE_FRAME_BYTES
"""By how much the noise may rise in each piece: 0.3 dB a second."""

# Each µ-law byte to as many one bits as the number of its segment; µ-law bytes are inverted.
_ONES: Final = bytes((1 << (~byte >> 4 & 7)) - 1 for byte in range(256))
_as_int: Final = int.from_bytes


class Voice:
    """Follows the caller's voice in µ-law audio at 8 kHz, piece by piece as the phone sends it.

    `last_voiced_at` is when the caller was last heard to speak, and `voiced_from` when these words
    began, in seconds on the clock of `at`; `-inf` and `inf` before the caller's first words.
    """

    __slots__ = ("_loud", "_noise", "last_voiced_at", "voiced_from")

    def __init__(self) -> None:
        self.last_voiced_at = -math.inf
        self.voiced_from = math.inf
        self._noise = 0.0
        self._loud = False

    def heard(self, audio: bytes, at: float) -> None:
        """Take a piece of the caller's audio, spoken by `at`. Cheap: under a microsecond."""
        level: float = _as_int(audio.translate(_ONES), "little").bit_count()
        if len(audio) != PHONE_FRAME_BYTES:
            level *= PHONE_FRAME_BYTES / (len(audio) or 1)
        noise = self._noise
        if level < noise + MARGIN:
            self._loud = False
        elif self._loud:
            if at - self.last_voiced_at > PAUSE:
                self.voiced_from = at
            self.last_voiced_at = at
        else:
            self._loud = True
        if level <= noise:
            self._noise = level
        elif noise < LOUDEST_NOISE:
            self._noise = noise + NOISE_RISES
