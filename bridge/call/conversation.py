"""What the agent says, message by message, and what the phone is told because of it.

One task runs this, so that audio, `clear` and marks reach the phone in the order in which the agent
meant them: audio of a reply never overtakes the `clear` that interrupts the one before. It outlives
the agent's sessions: after a reconnection it goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import msgspec
import trio

from bridge.audio import PHONE_FRAME_BYTES, SAMPLE_RATE, Framer
from bridge.call.barge_in import StaleAudioGate
from bridge.call.parting import Parting
from bridge.call.playback import Playback
from bridge.call.silence import Silence, State
from bridge.call.transcript import Transcript
from bridge.call.turns import Turns
from bridge.deepgram import messages as agent_says
from bridge.deepgram.session import AgentClosed, AgentFailed, AgentSession
from bridge.functions.in_flight import FunctionCalls
from bridge.log import get_logger
from bridge.twilio.media_stream import MediaStream

log = get_logger(__name__)

# One media message carries at most this much, a second: the agent sends faster than real time, and
# a message that is being written cannot be overtaken by `clear`.
MAX_MEDIA_BYTES: Final = SAMPLE_RATE

# Items of the conversation kept to resume it with. A model's memory of a phone call needs no more,
# and a call of hours must not grow without end; the oldest go first.
HISTORY_ITEMS: Final = 300


# Words given to the agent as the caller's, whose echo has not come: as many as may wait, and some.
ECHOES: Final = 32

# One message in so many has its delay measured: one a second, in a reply.
DELAYS_SAMPLED: Final = 16

# Kept for the record; a call of an hour has a few dozen.
MAX_FUNCTIONS: Final = 1000


def _nobody_measures(seconds: float) -> None:
    pass


class FunctionResult(NamedTuple):
    """A function the agent asked for: seconds since the call began, and how long it took."""

    at: float
    name: str
    seconds: float
    result: str


class Recording(Protocol):
    """Both sides of a call on disk; see `bridge.records.wav.CallRecording`. Never raises."""

    def caller(self, audio: bytes, at: float) -> None: ...

    def agent(self, audio: bytes, at: float) -> None: ...

    def cleared(self, at: float) -> None: ...

    def finish(self, at: float) -> None: ...

    async def run(self) -> None: ...


class Conversation:
    """The state of one call's conversation, and the router of the agent's messages.

    `delay_sent` is told now and then how long audio was on its way from the agent to the phone.
    `frame_ms` is how long audio in the middle of a reply may wait for more to be sent with it.
    `greeting_protected`: the caller cannot interrupt the first utterance. Times are seconds of
    Trio's clock; what is kept for the record counts from `began_at`.
    """

    def __init__(
        self,
        phone: MediaStream,
        silence: Silence,
        *,
        began_at: float,
        frame_ms: int,
        delay_sent: Callable[[float], object] = _nobody_measures,
        greeting_protected: bool = False,
    ) -> None:
        self._phone = phone
        self._silence = silence
        self._began_at = began_at
        self._greeting_protected = greeting_protected
        self._gate = StaleAudioGate()
        self._frames = Framer(PHONE_FRAME_BYTES)
        self._audio = bytearray()
        self._oldest_at = began_at
        self._delay_sent = delay_sent
        self.bytes_dropped = 0
        """Of the agent's audio, what came when the caller had cut in, or had not been sent yet."""
        # What the agent was given to say: when it says it, that is no word of its own.
        self._given: list[str] = []
        # What it was given as the caller's words: they are in the transcript already.
        self._echoes: deque[str] = deque(maxlen=ECHOES)
        self._cuts = 0
        self.playback = Playback()
        self.transcript = Transcript()
        self.turns = Turns(began_at)
        self.history: list[dict[str, Any]] = []
        self.functions: list[FunctionResult] = []
        self.recording: Recording | None = None
        self.parting: Parting | None = None
        self.barge_in_seconds: list[float] = []
        """How long each `clear` took, also those that found the phone silent."""
        self.barge_ins = 0
        """How often the caller cut in: there was something that was not heard."""
        self.running: FunctionCalls | None = None
        self.changed: Callable[[], object] = _nobody_watches
        """Called when there is something new to see. Never waits, never raises."""

    @property
    def awaited(self) -> State:
        """Whose word is awaited."""
        return self._silence.state

    # ---- from the agent -------------------------------------------------------------------------

    async def follow(
        self, agent: AgentSession, functions: FunctionCalls, nursery: trio.Nursery
    ) -> NoReturn:
        """Play, clear and mark as the agent says, until its session ends. The functions it asks
        for run in `nursery`.

        Raises AgentFailed when the agent sends an Error, AgentClosed when the session is over.
        """
        # A new session has nothing stale on the wire, and nothing half sent.
        self._gate = StaleAudioGate()
        self._frames.flush()
        self._silence.session_opened(trio.current_time())
        self.running = functions
        self.changed()
        try:
            while True:
                received = await agent.receive()
                if not self._audio:
                    self._oldest_at = agent.oldest_at
                for message in received:
                    if isinstance(message, bytes):
                        self._hear_audio(message)
                    else:
                        await self._hear(message, functions, nursery)
                        self.changed()
                await self._play()
        except (AgentFailed, AgentClosed):
            # What it said before is still worth hearing.
            await self._play()
            raise

    def _hear_audio(self, audio: bytes) -> None:
        now = trio.current_time()
        if self._gate.passes(now):
            self.turns.agent_audio(now)
            self._audio += self._frames.whole(audio)
        else:
            self.bytes_dropped += len(audio)

    async def _hear(
        self, message: agent_says.Message, functions: FunctionCalls, nursery: trio.Nursery
    ) -> None:
        now = trio.current_time()
        match message:
            case agent_says.UserStartedSpeaking():
                self._silence.caller_spoke(now)
                self.turns.caller_spoke(now)
                if not self._greeting_protected:
                    await self._barge_in(now)
            case agent_says.AgentAudioDone():
                await self._utterance_done()
            case agent_says.ConversationText(role=role, content=words):
                log.debug("said", role=role, words=words)
                if role == "user":
                    self._gate.new_turn()
                    self._silence.caller_said(now)
                    self.turns.caller_said(now)
                    if words in self._echoes:
                        self._echoes.remove(words)
                    else:
                        self.transcript.caller(words, now - self._began_at)
                else:
                    self.transcript.agent(words, now - self._began_at, len(self._audio))
                    if not any(words in given for given in self._given):
                        self._silence.agent_said(now)
                    if self.parting is not None:
                        self.parting.agent_said(words)
            case agent_says.FunctionCallRequest():
                self._gate.new_turn()
                functions.start(nursery, message)
            case agent_says.FunctionCallCancelled():
                functions.cancel(message)
            case agent_says.EndOfTurn():
                self._gate.new_turn()
                self._silence.caller_said(now)
            case agent_says.AgentThinking():
                self._gate.new_turn()
                self._silence.agent_thinking(now)
            case agent_says.AgentStartedSpeaking() | agent_says.LatencyReport():
                if isinstance(message, agent_says.AgentStartedSpeaking):
                    self._gate.new_turn()
                self.turns.latencies(message)
            case agent_says.History():
                item = msgspec.to_builtins(message)
                self.history.append({k: v for k, v in item.items() if v is not None})
                del self.history[:-HISTORY_ITEMS]
            case agent_says.Warning(code=code, description=words):
                log.warning("agent warning", code=code, words=words)
            case agent_says.Error():
                raise AgentFailed(message)
            case _:
                pass

    async def _utterance_done(self) -> None:
        """The agent has sent an utterance whole: play its last bytes, and ask to be told when the
        caller has heard it."""
        self._gate.audio_done()
        self._audio += self._frames.flush()
        await self._play()
        if self.playback.may_be_playing:
            mark = self.playback.next_mark()
            self.transcript.mark_sent(mark)
            self.turns.mark_sent(mark)
            if self.parting is not None:
                self.parting.utterance_sent(mark)
            await self._phone.mark(mark)

    async def _barge_in(self, signalled_at: float) -> None:
        """The caller cut in: nothing said so far shall be heard any more.

        What has not been written yet never will be, and what the phone has not played it forgets.
        `clear` is sent even if the phone should be silent: that costs nothing, and it may not be.
        """
        self._gate.user_started_speaking(signalled_at)
        self._cuts += 1
        unsent = len(self._audio) + len(self._frames.flush())
        self.bytes_dropped += unsent
        self._audio.clear()
        await self._phone.clear()
        now = trio.current_time()
        self.barge_in_seconds.append(now - signalled_at)
        unheard = self.playback.cleared(now)
        self.barge_ins += unsent > 0 or unheard > 0
        self.transcript.cleared(unheard)
        self.turns.cleared()
        if self.recording is not None:
            self.recording.cleared(now - self._began_at)
        self._silence.agent_done_playing(now)
        if self.parting is not None:
            self.parting.caller_cut_in()
        log.debug("barge-in", unheard_seconds=round(unheard, 3))

    async def _play(self) -> None:
        audio, self._audio = bytes(self._audio), bytearray()
        cuts = self._cuts
        for start in range(0, len(audio), MAX_MEDIA_BYTES):
            piece = audio[start : start + MAX_MEDIA_BYTES]
            await self._phone.play(piece)
            if cuts != self._cuts:
                return  # written words cut in meanwhile, and `clear` was right behind this piece
            now = trio.current_time()
            if self._phone.frames_sent % DELAYS_SAMPLED == 1:
                self._delay_sent(now - self._oldest_at)
            begins = not self.playback.queued(now)
            self.playback.sent(len(piece), now)
            self.transcript.audio_sent(len(piece))
            begins |= self.turns.audio_sent(now)
            self._silence.agent_audio(now)
            if self.recording is not None:
                self.recording.agent(piece, now - self._began_at)
            if begins:
                self.changed()

    def function_done(self, name: str, seconds: float, result: str) -> None:
        """A function has been answered, or will not be."""
        if len(self.functions) < MAX_FUNCTIONS:
            at = trio.current_time() - self._began_at - seconds
            self.functions.append(FunctionResult(at, name, seconds, result))
        self.changed()

    # ---- from us --------------------------------------------------------------------------------

    async def inject(self, agent: AgentSession, words: str, behavior: str) -> None:
        """Give the agent words to say; `behavior` as in InjectAgentMessage.

        Raises AgentClosed when the session is over.
        """
        if words not in self._given:
            self._given.append(words)
        self._gate.new_turn()
        self._silence.injected(trio.current_time())
        await agent.send(agent_says.InjectAgentMessage(words, behavior))

    async def give_callers_words(self, agent: AgentSession, words: str, *, cut_in: bool) -> None:
        """Give the agent words that the caller wrote or keyed in, as if they had been spoken; with
        `cut_in` they interrupt it, as speech does.

        Raises AgentClosed when the session is over.
        """
        if cut_in and self.playback.may_be_playing and not self._greeting_protected:
            await self._barge_in(trio.current_time())
        if words not in self._echoes:
            self._echoes.append(words)
        await agent.send(agent_says.InjectUserMessage(words))

    async def wait_played(self) -> None:
        """Wait until the phone has played what it was sent, as far as the clock can tell."""
        while (queued := self.playback.queued(trio.current_time())) > 0:  # noqa: ASYNC110
            await trio.sleep(queued)

    # ---- from the phone -------------------------------------------------------------------------

    def mark_returned(self, name: str) -> None:
        """A mark came back from the phone: what was sent before it has been heard, or cleared."""
        now = trio.current_time()
        played = self.playback.mark_returned(name)
        if played:
            self._greeting_protected = False
            self.transcript.mark_heard(name)
            self.turns.mark_heard(name, now)
            if not self.playback.may_be_playing:
                self._silence.agent_done_playing(now)
        if self.parting is not None:
            self.parting.mark_returned(name, played=played)
        self.changed()

    def keys_pressed(self, digits: str) -> None:
        """The caller typed these digits on the keypad."""
        now = trio.current_time()
        self._silence.caller_pressed(now)
        self.transcript.caller(digits, now - self._began_at, role="keypad")
        self.changed()

    def words_written(self, words: str) -> None:
        """The caller wrote these words instead of saying them."""
        now = trio.current_time()
        self._silence.caller_pressed(now)
        self.transcript.caller(words, now - self._began_at)
        self.changed()


def _nobody_watches() -> None:
    pass
