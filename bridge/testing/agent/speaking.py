"""The simulated agent's speech: one utterance at a time, faster than real time, interruptible.

The order of messages is that of developers.deepgram.com/docs/voice-agent-message-flow: each
sentence's ConversationText about where its audio begins, binary audio, AgentAudioDone after the
last chunk was sent (not heard).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import trio

from bridge.testing.agent.behaviour import Behaviour
from bridge.testing.agent.voice import SAMPLE_RATE, sentences, speech_for

Send = Callable[[dict[str, Any] | bytes], Awaitable[None]]
Voice = Callable[[str], Awaitable[bytes]]


@dataclass(eq=False)
class Utterance:
    """One thing the agent says. `sent` counts bytes of audio, stale ones included."""

    text: str
    audio: bytes
    sent: int = 0
    interrupted: bool = False
    stopped: trio.Event = field(default_factory=trio.Event, repr=False)

    def stop(self) -> None:
        """Stop generating it."""
        self.interrupted = True
        self.stopped.set()


class Mouth:
    """Speaks utterances one after another, first come first served.

    `send` takes messages and audio; `say_sentence` is called for each sentence that goes out and
    sends its ConversationText and History. `voice` makes the audio of a text: µ-law at 8 kHz.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        send: Send,
        say_sentence: Callable[[str, str], Awaitable[None]],
        voice: Voice | None = None,
    ) -> None:
        self._voice = voice
        self._behaviour = behaviour
        self._send = send
        self._say_sentence = say_sentence
        self._turn = trio.StrictFIFOLock()
        self._sizes = itertools.cycle(behaviour.chunk_bytes)
        self.current: Utterance | None = None
        self.experimental = False
        self.spoken: list[Utterance] = []

    def interrupt(self) -> bool:
        """Stop the current utterance; False if there is none to stop."""
        if self.current is None or self.current.interrupted:
            return False
        self.current.stop()
        return True

    async def say(self, text: str, audio: bytes | None, behavior: str) -> Utterance:
        """Say `text` with `audio` (µ-law at 8 kHz; None: made from the text).

        Returns when the last byte has been sent, or after the stale rest of an interrupted one.
        """
        if audio is None and self._voice is None:
            audio = speech_for(text)
        utterance = Utterance(text, audio or b"")
        async with self._turn:
            self.current = utterance
            try:
                if audio is None and self._voice is not None:
                    utterance.audio = await self._voice(text)
                await self._before(utterance)
                await self._speak(utterance, behavior)
            finally:
                self.current = None
                self.spoken.append(utterance)
                del self.spoken[:-1000]  # a long-running server keeps the latest only
        return utterance

    async def _before(self, utterance: Utterance) -> None:
        knobs = self._behaviour
        if knobs.agent_thinking:
            await self._send({"type": "AgentThinking", "content": "Thinking of a reply."})
        if knobs.reply_delay:
            with trio.move_on_after(knobs.reply_delay):
                await utterance.stopped.wait()
        if utterance.interrupted:
            return
        if knobs.latency_every:
            # Real sessions report one figure per message.
            for name in ("ttt_text_latency", "tts_latency", "total_latency"):
                await self._send({"type": "LatencyReport", name: 0.1})
        wanted = knobs.agent_started_speaking
        if wanted == "always" or (wanted == "experimental" and self.experimental):
            await self._send(
                {
                    "type": "AgentStartedSpeaking",
                    "total_latency": 0.5,
                    "tts_latency": 0.2,
                    "ttt_latency": 0.3,
                }
            )

    async def _speak(self, utterance: Utterance, behavior: str) -> None:
        texts = deque(_schedule(utterance))
        chunks = self._chunks(utterance.audio)
        begun = trio.current_time()
        late = 1 if self._behaviour.audio_before_text else 0  # chunks before the text
        for chunk in chunks:
            if not utterance.interrupted and not late:
                await self._say_due(texts, utterance.sent, behavior)
            if utterance.interrupted:
                # This chunk was never made, but it may yet come as the first stale one.
                chunks = itertools.chain([chunk], chunks)
                break
            await self._send(chunk)
            utterance.sent += len(chunk)
            late = 0
            if utterance.sent < len(utterance.audio):
                await self._pace(utterance, begun)
        if utterance.interrupted:
            await self._stale(utterance, chunks, texts, behavior)
        else:
            await self._say_due(texts, len(utterance.audio), behavior)
        if not utterance.interrupted or self._behaviour.audio_done_when_interrupted:
            await self._send({"type": "AgentAudioDone"})

    async def _say_due(self, texts: deque[tuple[int, str]], sent: int, behavior: str) -> None:
        while texts and texts[0][0] <= sent:
            await self._say_sentence(texts.popleft()[1], behavior)

    async def _pace(self, utterance: Utterance, begun: float) -> None:
        """Wait until the next chunk is due, or the utterance is stopped."""
        if not self._behaviour.speed:
            return
        due = begun + utterance.sent / SAMPLE_RATE / self._behaviour.speed
        with trio.move_on_at(due):
            await utterance.stopped.wait()

    async def _stale(
        self,
        utterance: Utterance,
        chunks: Iterator[bytes],
        texts: deque[tuple[int, str]],
        behavior: str,
    ) -> None:
        knobs = self._behaviour
        if not (knobs.stale_chunks or knobs.stale_text):
            return
        await trio.sleep(knobs.stale_delay)
        if knobs.stale_text and texts:
            await self._say_sentence(texts.popleft()[1], behavior)
        for chunk in itertools.islice(chunks, knobs.stale_chunks):
            await self._send(chunk)
            utterance.sent += len(chunk)

    def _chunks(self, audio: bytes) -> Iterator[bytes]:
        position = 0
        while position < len(audio):
            size = next(self._sizes)
            yield audio[position : position + size]
            position += size


def _schedule(utterance: Utterance) -> list[tuple[int, str]]:
    """Each sentence with the byte of audio it begins at, by its share of the characters."""
    parts = sentences(utterance.text)
    total = sum(map(len, parts)) or 1
    starts = itertools.accumulate(map(len, parts), initial=0)
    return [
        (start * len(utterance.audio) // total, part)
        for start, part in zip(starts, parts, strict=False)
    ]
