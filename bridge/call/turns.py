"""The turns of a call and their timings, above all the reply time. Sans-I/O.

The *reply time* is how long the caller waits: from the end of the caller's speech to the first
audio of the reply that the phone plays.

Theory of operation. The end of the caller's speech is in the caller's audio: the last piece with a
voice in it. The agent's messages come later, when it has recognised the words and is certain that
the turn is over; they only say that there was a turn, so the end is looked up when they come. Noise
after that moment does not count, and noise without words is not a turn. A reply begins with the
first audio after that moment, except words that bridge gave the agent to say (a filler, a
question). It plays once the phone has played what was sent before; if `clear` or the end of the
call comes first, the caller never heard it, and it has no reply time. Nor has a reply that begins
while the caller speaks: the caller was not waiting.

Typed turns are measured in the same way from where the words were given, and kept apart: the agent
neither has to recognise the words nor to wait for their end.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import msgspec

from bridge.audio import SAMPLE_RATE
from bridge.deepgram.messages import AgentStartedSpeaking, LatencyReport

# A call of an hour has a few hundred turns. Turns beyond the limit are not kept, so that a call of
# days does not exhaust the memory.
MAX_TURNS: Final = 1000

# The caller counts as speaking for so long after a voiced piece. Pauses between syllables are
# shorter, and no agent is certain of the end of a turn so soon.
STILL_SPEAKING_SECONDS: Final = 0.1


class Turn(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The timings of one exchange. None: the event did not happen, or its time is not known.

    `speech_ended_at` is the end of the caller's speech in the audio; `typed_at` is when the caller
    pressed the last key or wrote the words. `confirmed_at` is when the agent confirmed the words
    (ConversationText of the user), and `heard_at` when the phone had played the reply.

    `reply_seconds` is the reply time of a spoken turn, from `speech_ended_at`, and
    `typed_reply_seconds` that of a typed turn, from `typed_at`. A turn never has both, and has
    neither if the caller heard nothing of the reply.

    `latencies` are Deepgram's own figures, in seconds by their names in LatencyReport and
    AgentStartedSpeaking, such as `ttt_text_latency`, `tts_latency` and `total_latency`.
    https://developers.deepgram.com/docs/voice-agent-latency-report
    """

    speech_ended_at: float | None = None
    typed_at: float | None = None
    confirmed_at: float | None = None
    first_audio_received_at: float | None = None
    first_audio_sent_at: float | None = None
    heard_at: float | None = None
    reply_seconds: float | None = None
    typed_reply_seconds: float | None = None
    latencies: dict[str, float] = {}


class HasVoice(Protocol):
    """The caller's audio; see `bridge.call.voice.Voice`."""

    @property
    def last_voiced_at(self) -> float:
        """When the caller was last heard to speak, on Trio's clock; -inf: never."""
        ...


class Turns:
    """The turns of one call so far. Times are on Trio's clock; those in `all` are seconds since
    `began_at`."""

    def __init__(self, began_at: float, voice: HasVoice) -> None:
        self.all: list[Turn] = []
        self._began_at = began_at
        self._voice = voice
        self._ended_at = -math.inf  # the end of the speech that was confirmed last
        self._typed_at: float | None = None  # words that the agent has not confirmed yet
        # The confirmed turn whose reply has not come.
        self._unanswered: Turn | None = None
        # Where in the agent's audio a reply may begin, in bytes; inf: other words come first.
        self._reply_from = 0.0
        self._speaking = False  # the agent is in the middle of an utterance
        # Replies that the phone may not have begun to play, and when it will.
        self._waiting: list[tuple[float, Turn]] = []
        # The turn that each outstanding mark follows.
        self._marked: dict[str, Turn] = {}
        self._over = False

    # ---- the caller -----------------------------------------------------------------------------

    def caller_spoke(self) -> None:
        """Begin a new turn: the caller has started to speak."""
        if self.all and self.all[-1].first_audio_received_at is not None:
            self._new()

    def typed(self, now: float) -> None:
        """The caller has pressed the last key of an entry, or written words, at `now`."""
        self._typed_at = now

    def confirmed(self, now: float, *, echo: bool) -> None:
        """The agent has confirmed the caller's words. `echo`: words that bridge gave to it."""
        turn = self._last()
        if turn is not self._unanswered and turn.first_audio_received_at is not None:
            turn = self._new()
        ended_at = self._voice.last_voiced_at
        if echo and self._typed_at is not None:
            turn.typed_at, turn.speech_ended_at = self._typed_at - self._began_at, None
            self._typed_at = None
        elif ended_at > self._ended_at:
            turn.typed_at, turn.speech_ended_at = None, ended_at - self._began_at
        turn.confirmed_at = now - self._began_at
        self._ended_at = ended_at
        # The rest of what the agent is saying answers something else.
        self._reply_from = math.inf if self._speaking else 0.0
        self._unanswered = None if self._over else turn

    # ---- the agent ------------------------------------------------------------------------------

    def line(self, position: int, *, reply: bool) -> None:
        """The agent's audio from byte `position` on speaks a line: a reply, or other words."""
        self._reply_from = position if reply else math.inf

    def utterance_done(self, position: int) -> None:
        """The agent's audio from byte `position` on is another utterance."""
        self._speaking, self._reply_from = False, position

    def latencies(self, report: LatencyReport | AgentStartedSpeaking) -> None:
        """Add the agent's own latencies of this turn; the last report of each kind counts."""
        if self.all:
            turn, reported = self.all[-1], msgspec.to_builtins(report)
            if turn.first_audio_received_at is not None:
                # Reported several times a second; those after the reply are of the next turn.
                reported.pop("stt_latency", None)
            turn.latencies |= {k: v for k, v in reported.items() if isinstance(v, float)}

    # ---- the agent's audio ----------------------------------------------------------------------

    def audio_received(self, now: float) -> None:
        """Agent audio that will be played has arrived."""
        self._speaking = True
        turn = self._last()
        if turn.first_audio_received_at is None:
            turn.first_audio_received_at = now - self._began_at

    def audio_sent(self, position: int, nbytes: int, now: float, plays_at: float) -> bool:
        """`nbytes` of agent audio from byte `position` on were written to the phone, which will
        play them from `plays_at` on. Returns whether they were the turn's first."""
        if self._unanswered is not None and self._reply_from < position + nbytes:
            plays_at += max(0.0, self._reply_from - position) / SAMPLE_RATE
            self._answer(self._unanswered, now, plays_at)
        turn = self._last()
        if turn.first_audio_sent_at is not None:
            return False
        turn.first_audio_sent_at = now - self._began_at
        return True

    def mark_sent(self, name: str) -> None:
        """A mark was sent after the audio sent so far."""
        self._marked[name] = self._last()

    def mark_heard(self, name: str, now: float) -> None:
        """A mark came back because all audio before it was played."""
        if (turn := self._marked.pop(name, None)) is not None:
            turn.heard_at = now - self._began_at

    def cleared(self, now: float) -> None:
        """The phone discards what it has not played by `now`; replies in it are not heard."""
        self._marked.clear()
        for plays_at, turn in self._waiting:
            if plays_at >= now:
                turn.reply_seconds = turn.typed_reply_seconds = None
        self._waiting.clear()

    def over(self, now: float) -> None:
        """The call is ending: the phone plays no more."""
        self.cleared(now)
        self._unanswered, self._over = None, True

    def _answer(self, turn: Turn, now: float, plays_at: float) -> None:
        self._unanswered = None
        at = plays_at - self._began_at
        if turn.typed_at is not None:
            turn.typed_reply_seconds = at - turn.typed_at
        elif turn.speech_ended_at is not None:
            if plays_at - self._voice.last_voiced_at < STILL_SPEAKING_SECONDS:
                return
            turn.reply_seconds = at - turn.speech_ended_at
        self._waiting = [waiting for waiting in self._waiting if waiting[0] >= now]
        self._waiting.append((plays_at, turn))

    # ---- turns ----------------------------------------------------------------------------------

    def _last(self) -> Turn:
        return self.all[-1] if self.all else self._new()

    def _new(self) -> Turn:
        turn = Turn(latencies={})
        self.all.append(turn)
        del self.all[MAX_TURNS:]
        return turn
