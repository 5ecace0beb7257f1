"""Twilio's playback buffer: plays the server's audio to the caller in real time. Sans-I/O.

Twilio buffers `media` and plays it in order; it sends a `mark` back when everything before it has
been played, at once when nothing is buffered; `clear` empties the buffer and sends every
outstanding mark back (twilio.com/docs/voice/media-streams/websocket-messages). The current time is
passed in, in seconds, and must never run backwards.

Audio is kept in *runs*, played without a gap. Only the start of a run is a float of seconds; inside
it everything is counted in samples, so that an hour of 20 ms pieces adds up exactly and each mark
is due at an exact time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from bridge.testing.speech import RATE, SILENCE

_HALF_SAMPLE = 0.5 / RATE
_ROUNDING = 1e-6  # samples: the rounding error of a float clock


@dataclass(frozen=True, slots=True)
class HeardStretch:
    """Audio the caller heard without a gap, from `start` to `end` (seconds on the given clock)."""

    start: float
    end: float
    cut: bool  # a `clear` ended it


@dataclass(slots=True)
class _Run:
    start: float
    offset: int  # samples since the buffer began
    audio: bytearray = field(default_factory=bytearray)
    cut: bool = False

    @property
    def end(self) -> float:
        return self.start + len(self.audio) / RATE

    def played(self, now: float) -> int:
        return max(0, min(len(self.audio), math.floor((now - self.start) * RATE + _ROUNDING)))


class PlaybackBuffer:
    """Plays µ-law at 8000 bytes a second from the moment it arrives; `now` is the start.

    Unbounded, because Twilio documents no limit.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._runs: list[_Run] = []
        self._marks: deque[tuple[float, str]] = deque()
        self._runs_out_at = now
        self._heard_before_last_run = 0
        self._sent = 0
        self._dropped = 0

    @property
    def sent(self) -> int:
        """Bytes added so far: those heard, those still to be heard, and `dropped`."""
        return self._sent

    @property
    def dropped(self) -> int:
        """Bytes that `clear` discarded unheard."""
        return self._dropped

    @property
    def runs_out_at(self) -> float:
        """The time at which the last byte is played; in the past when nothing is buffered."""
        return self._runs_out_at

    def add_audio(self, audio: bytes, now: float) -> None:
        """Append µ-law; it plays at once when nothing is buffered."""
        if not audio:
            return
        self._sent += len(audio)
        run = self._runs[-1] if self._runs else None
        if run is None or run.cut or now - run.end > _HALF_SAMPLE:
            behind = 0
            if run is not None:
                self._heard_before_last_run += len(run.audio)
                behind = run.offset + len(run.audio)
            run = _Run(now, max(behind, self._position(now)))
            self._runs.append(run)
        run.audio += audio
        self._runs_out_at = run.end

    def add_mark(self, name: str, now: float) -> None:
        """Add a mark, due when everything sent before it has been played."""
        self._marks.append((max(now, self._runs_out_at), name))

    def next_mark_at(self) -> float | None:
        """Return when the next mark is due, or None."""
        return self._marks[0][0] if self._marks else None

    def take_due_marks(self, now: float) -> list[str]:
        """Remove and return the names of the marks due by now, in order."""
        names = []
        while self._marks and self._marks[0][0] <= now:
            names.append(self._marks.popleft()[1])
        return names

    def clear(self, now: float) -> list[str]:
        """Discard what has not been played; return all pending mark names, in order."""
        names = [name for _, name in self._marks]
        self._marks.clear()
        if self._runs and self._runs_out_at > now:
            run = self._runs[-1]
            played = run.played(now)
            self._dropped += len(run.audio) - played
            del run.audio[played:]
            run.cut = True
            self._runs_out_at = now
        return names

    def queued(self, now: float) -> float:
        """Return the seconds of audio still to be played."""
        return max(0.0, self._runs_out_at - now)

    def is_playing(self, now: float) -> bool:
        """Return whether buffered audio is playing (which may itself be silence)."""
        return self._runs_out_at > now

    def heard_bytes(self, now: float) -> int:
        """Return how many of the bytes sent have been played."""
        return self._heard_before_last_run + (self._runs[-1].played(now) if self._runs else 0)

    def heard(self, now: float, since: float | None = None) -> bytes:
        """Return what the caller heard from `since` (default: the start) to `now`.

        µ-law at 8 kHz with 0xFF where nothing played: one byte for each sample of elapsed time.
        """
        first = 0 if since is None else max(0, self._position(since))
        out = bytearray(SILENCE * (self._position(now) - first))
        for run in reversed(self._runs):
            if run.offset + len(run.audio) <= first:
                break
            skipped = max(0, first - run.offset)
            piece = run.audio[skipped : run.played(now)]
            at = run.offset + skipped - first
            out[at : at + len(piece)] = piece
        return bytes(out)

    def stretches(self, now: float) -> list[HeardStretch]:
        """Return when audio was heard, one item per stretch without a gap, up to `now`."""
        return [
            HeardStretch(run.start, min(run.end, now), run.cut)
            for run in self._runs
            if run.start < now and run.audio
        ]

    def _position(self, when: float) -> int:
        return math.floor((when - self._began) * RATE + 0.5)
