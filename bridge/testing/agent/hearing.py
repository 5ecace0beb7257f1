"""Speech detection by loudness, timed by the audio itself.

It recognises no words. Its clock is the number of bytes processed, so the same audio gives the same
result in real time, late, or all at once.
"""

from __future__ import annotations

import audioop
from collections import deque
from dataclasses import dataclass

BYTES_PER_SECOND = 8000
WINDOW = 160  # 20 ms: short enough to place an onset, long enough for one period of a low voice
PREROLL = 1600  # 200 ms kept from before the onset, since words begin softly
TAIL = 800  # 100 ms kept after the last loud window, since words end softly
MAX_UTTERANCE = 60 * BYTES_PER_SECOND  # noise without a pause is cut here, so memory is bounded


@dataclass(frozen=True)
class Heard:
    """One utterance of the caller.

    `start` and `end` are seconds since the first byte of the caller's audio; `audio` is µ-law at
    8 kHz with a little of what came before and after.
    """

    start: float
    end: float
    audio: bytes

    @property
    def seconds(self) -> float:
        """How long the caller spoke."""
        return self.end - self.start


@dataclass(frozen=True)
class Onset:
    """The caller began to speak `start` seconds into their audio."""

    start: float


class SpeechDetector:
    """Finds utterances in µ-law audio at 8 kHz.

    `threshold` is the root mean square of 16-bit samples; `onset` and `end` are seconds.
    """

    def __init__(self, threshold: int = 400, onset: float = 0.1, end: float = 0.5) -> None:
        self._threshold = threshold
        self._onset = max(1, round(onset * BYTES_PER_SECOND / WINDOW))
        self._end = max(1, round(end * BYTES_PER_SECOND / WINDOW))
        self._rest = b""  # less than one window
        self._position = 0  # bytes in whole windows
        self._run = 0  # consecutive windows that indicate a change of state
        self._recent: deque[bytes] = deque(maxlen=self._onset + PREROLL // WINDOW)
        self._utterance = bytearray()
        self._start = 0
        self.speaking = False

    def feed(self, audio: bytes) -> list[Onset | Heard]:
        """Process µ-law of any length; return the events in it, in order."""
        data = self._rest + audio
        whole = len(data) - len(data) % WINDOW
        self._rest = data[whole:]
        found = (self._window(data[i : i + WINDOW]) for i in range(0, whole, WINDOW))
        return [event for event in found if event is not None]

    def end_turn(self) -> Heard | None:
        """End the utterance by force (ForceEndTurn); None if the caller is not speaking."""
        return self._finish() if self.speaking else None

    def _window(self, window: bytes) -> Onset | Heard | None:
        loud = audioop.rms(audioop.ulaw2lin(window, 2), 2) > self._threshold
        self._position += WINDOW
        if not self.speaking:
            self._recent.append(window)
            self._run = self._run + 1 if loud else 0
            return self._begin() if self._run >= self._onset else None
        self._utterance += window
        self._run = 0 if loud else self._run + 1
        if self._run >= self._end or len(self._utterance) >= MAX_UTTERANCE:
            return self._finish()
        return None

    def _begin(self) -> Onset:
        self.speaking = True
        self._start = self._position - self._run * WINDOW
        self._utterance = bytearray(b"".join(self._recent))
        self._recent.clear()
        self._run = 0
        return Onset(self._start / BYTES_PER_SECOND)

    def _finish(self) -> Heard:
        quiet = self._run * WINDOW
        audio = bytes(self._utterance[: len(self._utterance) - max(0, quiet - TAIL)])
        end = self._position - quiet
        self.speaking = False
        self._run = 0
        self._utterance = bytearray()
        return Heard(self._start / BYTES_PER_SECOND, end / BYTES_PER_SECOND, audio)
