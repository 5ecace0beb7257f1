"""Who speaks when: voice told from silence by its loudness, on the clean audio of a phone line."""

from __future__ import annotations

import audioop
from collections.abc import Iterable
from dataclasses import dataclass

from bridge.testing.speech import RATE, ulaw_to_pcm

_FRAME_BYTES = 160
_FRAME_SECONDS = _FRAME_BYTES / RATE
_LOUD = 300  # root mean square of 16-bit samples: some 40 dB below full scale
_ONSET_FRAMES = 3  # loud in a row, so that a click is no word
_HOLD_SECONDS = 0.5  # of quiet, so that a pause between words is no end


@dataclass(frozen=True, slots=True)
class SpeechTurn:
    """A side speaks from `start` to `end`, in seconds; `end` is None while it still does."""

    start: float
    end: float | None


def reply_seconds(
    start: float, caller: Iterable[SpeechTurn], agent: Iterable[SpeechTurn]
) -> float | None:
    """How long the caller waited for what the agent says from `start` on, in seconds.

    From the end of the caller's last turn before it to `start`. None where it is no reply: the
    caller has not spoken yet or still does, or the agent was speaking when the caller fell silent,
    or has spoken since. Of the turns (in order), those that begin at `start` or later count for
    nothing.
    """
    last = None
    for turn in caller:
        if turn.start < start:
            last = turn
    if last is None or last.end is None or last.end > start:
        return None
    for turn in agent:
        if turn.start < start and (turn.end is None or turn.end > last.end):
            return None
    return start - last.end


class VoiceDetector:
    """Hears one side of a call, whose audio begins `start` seconds into it."""

    def __init__(self, start: float = 0.0) -> None:
        self.turns: list[SpeechTurn] = []  # those that are over
        self.speaking_since: float | None = None
        self.last_voice_at: float | None = None
        self._start = start
        self._frames = 0
        self._loud_frames = 0
        self._rest = b""

    def feed(self, ulaw: bytes) -> list[SpeechTurn]:
        """Hear the next µ-law bytes; gives the turns that began (no `end` yet) or ended in them."""
        news: list[SpeechTurn] = []
        audio = self._rest + ulaw
        whole = len(audio) - len(audio) % _FRAME_BYTES
        self._rest = audio[whole:]
        for at in range(0, whole, _FRAME_BYTES):
            loud = audioop.rms(ulaw_to_pcm(audio[at : at + _FRAME_BYTES]), 2) > _LOUD
            self._frames += 1
            now = self._start + self._frames * _FRAME_SECONDS
            self._loud_frames = self._loud_frames + 1 if loud else 0
            if self._loud_frames >= _ONSET_FRAMES:
                self.last_voice_at = now
                if self.speaking_since is None:
                    self.speaking_since = now - self._loud_frames * _FRAME_SECONDS
                    news.append(SpeechTurn(self.speaking_since, None))
            elif self.last_voice_at is not None and now - self.last_voice_at >= _HOLD_SECONDS:
                news += self.finish()
        return news

    def finish(self) -> list[SpeechTurn]:
        """End the turn that is on, if any, with its last loud moment."""
        if self.speaking_since is None or self.last_voice_at is None:
            return []
        turn = SpeechTurn(self.speaking_since, self.last_voice_at)
        self.speaking_since = None
        self.turns.append(turn)
        return [turn]
