"""What the agent says, message by message, and what the phone is told because of it.

One task runs this, so that audio, `clear` and marks reach the phone in the order in which the agent
meant them: audio of a reply never overtakes the `clear` that interrupts the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from bridge.agent import messages as agent_says
from bridge.agent.session import AgentFailed, AgentSession
from bridge.audio import PHONE_FRAME_BYTES, SAMPLE_RATE, Framer
from bridge.barge_in import StaleAudioGate
from bridge.functions.calls import FunctionCalls
from bridge.log import get_logger
from bridge.playback import Playback
from bridge.twilio.media_stream import MediaStream

log = get_logger(__name__)

# One media message carries at most this much, a second: the agent sends faster than real time, and
# a message that is being written cannot be overtaken by `clear`.
MAX_MEDIA_BYTES: Final = SAMPLE_RATE


class Conversation:
    """Routes the agent's messages for one call.

    `on_utterance_sent` is called with the name of the mark behind each whole utterance, which
    comes back when the caller has heard it; `on_said` with the role and words of each text;
    `on_barge_in` with the seconds from the agent's signal to the `clear` written.
    """

    def __init__(
        self,
        phone: MediaStream,
        playback: Playback,
        *,
        on_said: Callable[[str, str], None],
        on_utterance_sent: Callable[[str], None],
        on_barge_in: Callable[[float], None],
    ) -> None:
        self._phone = phone
        self._playback = playback
        self._on_said = on_said
        self._on_utterance_sent = on_utterance_sent
        self._on_barge_in = on_barge_in
        self._gate = StaleAudioGate()
        self._frames = Framer(PHONE_FRAME_BYTES)
        self._audio = bytearray()

    async def follow(
        self, agent: AgentSession, functions: FunctionCalls, nursery: trio.Nursery
    ) -> None:
        """Play, clear and mark as the agent says, until its session ends. The functions it asks
        for run in `nursery`.

        Raises AgentFailed when the agent sends an Error, AgentClosed when the session is over.
        """
        while True:
            for message in await agent.receive():
                if isinstance(message, bytes):
                    if self._gate.passes(trio.current_time()):
                        self._audio += self._frames.whole(message)
                else:
                    await self._hear(message, functions, nursery)
            # All that came together goes out together: fewer messages, the same delay.
            await self._play()

    async def _hear(
        self, message: agent_says.Message, functions: FunctionCalls, nursery: trio.Nursery
    ) -> None:
        match message:
            case agent_says.UserStartedSpeaking():
                await self._barge_in()
            case agent_says.AgentAudioDone():
                self._gate.audio_done()
                self._audio += self._frames.flush()
                await self._play()
                if self._playback.may_be_playing:
                    mark = self._playback.next_mark()
                    await self._phone.mark(mark)
                    self._on_utterance_sent(mark)
            case agent_says.ConversationText(role=role, content=words):
                if role == "user":
                    self._gate.new_turn()
                log.debug("said", role=role, words=words)
                self._on_said(role, words)
            case agent_says.FunctionCallRequest():
                self._gate.new_turn()
                functions.start(nursery, message)
            case agent_says.FunctionCallCancelled():
                functions.cancel(message)
            case (
                agent_says.EndOfTurn()
                | agent_says.AgentThinking()
                | agent_says.AgentStartedSpeaking()
            ):
                self._gate.new_turn()
            case agent_says.Warning(code=code, description=words):
                log.warning("agent warning", code=code, words=words)
            case agent_says.Error():
                raise AgentFailed(message)
            case _:
                pass

    async def _barge_in(self) -> None:
        """The caller cut in: nothing said so far shall be heard any more.

        What has not been written yet never will be, and what the phone has not played it forgets.
        `clear` is sent even if the phone should be silent: that costs nothing, and it may not be.
        """
        signalled_at = trio.current_time()
        self._gate.user_started_speaking(signalled_at)
        self._audio.clear()
        self._frames.flush()
        await self._phone.clear()
        now = trio.current_time()
        self._on_barge_in(now - signalled_at)
        unheard = self._playback.cleared(now)
        log.debug("barge-in", unheard_seconds=round(unheard, 3))

    async def _play(self) -> None:
        audio, self._audio = bytes(self._audio), bytearray()
        for start in range(0, len(audio), MAX_MEDIA_BYTES):
            piece = audio[start : start + MAX_MEDIA_BYTES]
            await self._phone.play(piece)
            self._playback.sent(len(piece), trio.current_time())
