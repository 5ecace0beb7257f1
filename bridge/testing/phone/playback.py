"""Twilio's playback buffer: what the server sends, played to the caller in real time.

Twilio buffers `media` and plays it in order; it sends a `mark` back when everything before it has
been played, at once when nothing is buffered; `clear` empties the buffer and sends every
outstanding mark back (twilio.com/docs/voice/media-streams/websocket-messages). Here that is a pure
object: the clock is a float of seconds passed in, which must never run backwards.

The audio is kept in *runs*: what was played without a gap. Only a run's beginning is a float of
seconds; inside it everything is counted in samples, so that an hour of 20 ms pieces adds up exactly
and a mark is due at an exact time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from bridge.testing.speech import RATE, SILENCE

_HALF_SAMPLE = 0.5 / RATE
_ROUNDING = 1e-6  # samples: what a float clock may be off by


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
    """Plays µ-law bytes at 8000 a second from the moment they come; `now` is when it begins.

    It holds as much as it is sent, as Twilio documents no limit.
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
        """Bytes added so far; always what was or will be heard plus `dropped`."""
        return self._sent

    @property
    def dropped(self) -> int:
        """Bytes that `clear` threw away unheard."""
        return self._dropped

    @property
    def runs_out_at(self) -> float:
        """When the last byte is or was played: in the past when nothing is buffered."""
        return self._runs_out_at

    def add_audio(self, audio: bytes, now: float) -> None:
        """Buffer µ-law bytes behind what is there; they play at once when nothing is."""
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
        """A mark, due when everything sent before it has been played."""
        self._marks.append((max(now, self._runs_out_at), name))

    def next_mark_at(self) -> float | None:
        """When the next mark is due; None when none is pending."""
        return self._marks[0][0] if self._marks else None

    def take_due_marks(self, now: float) -> list[str]:
        """The names of the marks due by now, in the order they came; each is given once."""
        names = []
        while self._marks and self._marks[0][0] <= now:
            names.append(self._marks.popleft()[1])
        return names

    def clear(self, now: float) -> list[str]:
        """Throw away what has not been played; gives all pending mark names, in order."""
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
        """Seconds of audio still to be played."""
        return max(0.0, self._runs_out_at - now)

    def is_playing(self, now: float) -> bool:
        """Whether the caller is hearing buffered audio (which may itself be silence)."""
        return self._runs_out_at > now

    def heard_bytes(self, now: float) -> int:
        """How many of the bytes sent have been played."""
        return self._heard_before_last_run + (self._runs[-1].played(now) if self._runs else 0)

    def heard(self, now: float, since: float | None = None) -> bytes:
        """What the caller heard from `since` (default: the beginning) to `now`, as heard.

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
        """When audio was heard, gap by gap, up to `now`."""
        return [
            HeardStretch(run.start, min(run.end, now), run.cut)
            for run in self._runs
            if run.start < now and run.audio
        ]

    def _position(self, when: float) -> int:
        return math.floor((when - self._began) * RATE + 0.5)
