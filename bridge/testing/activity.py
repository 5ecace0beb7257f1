"""Voice activity detection by loudness, for clean audio of a phone line."""

from __future__ import annotations

import audioop
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bridge.testing.speech import RATE, ulaw_to_pcm

_FRAME_BYTES = 160
_FRAME_SECONDS = _FRAME_BYTES / RATE
_LOUD = 300  # root mean square of 16-bit samples: some 40 dB below full scale
_ONSET_FRAMES = 3  # consecutive loud frames, so that a click is not speech
_HOLD_SECONDS = 0.5  # of silence, so that a pause between words does not end a turn
_CUT_SECONDS = 0.2  # until an agent that is interrupted by a key has fallen silent
_GAP_SECONDS = 0.1  # in the audio of one reply: the network's


@dataclass(frozen=True, slots=True)
class SpeechTurn:
    """One side speaks from `start` to `end`, in seconds; `end` is None while it goes on."""

    start: float
    end: float | None


def key_press(at: float) -> SpeechTurn:
    """Return a key pressed `at` seconds as a turn of the caller's, without length."""
    return SpeechTurn(at, at)


def reply_to(
    start: float,
    caller: Iterable[SpeechTurn],
    agent: Iterable[SpeechTurn],
    played: Sequence[tuple[float, float]] = (),
) -> tuple[SpeechTurn, float] | None:
    """Return the caller's turn that the agent's turn from `start` on replies to, and the seconds
    that the caller waited for it.

    The wait runs from the end of the caller's last turn to the first audio of the reply, which may
    be silent: `played` is when the phone played audio, from and to. None if it is not a reply: the
    caller has not spoken yet or still speaks, or the agent was speaking when the caller stopped,
    or has spoken since. All lists are in order; turns from `start` on are ignored.
    """
    last = None
    for turn in caller:
        if turn.start < start:
            last = turn
    if last is None or last.end is None or last.end > start:
        return None
    for turn in agent:
        if turn.start < start and (turn.end is None or turn.end > last.end + _CUT_SECONDS):
            return None
    began = start
    for first, end in reversed(played):
        if first <= start and began - end < _GAP_SECONDS:
            began = min(began, first)
    return last, (began if began > last.end else start) - last.end


class VoiceDetector:
    """Detects the turns of one side of a call, whose audio begins `start` seconds into the call.

    A turn ends with the last piece that has a voice in it.
    """

    def __init__(self, start: float = 0.0) -> None:
        self.turns: list[SpeechTurn] = []  # the finished ones
        self.speaking_since: float | None = None
        self.last_voice_at: float | None = None
        self._start = start
        self._frames = 0
        self._loud_frames = 0
        self._rest = b""

    def feed(self, ulaw: bytes) -> list[SpeechTurn]:
        """Process µ-law; return the turns that began (without `end`) or ended in it."""
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
        """End the current turn, if any, at its last loud frame."""
        if self.speaking_since is None or self.last_voice_at is None:
            return []
        turn = SpeechTurn(self.speaking_since, self.last_voice_at)
        self.speaking_since = None
        self.turns.append(turn)
        return [turn]
