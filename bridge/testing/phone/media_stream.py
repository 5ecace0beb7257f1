"""One Media Stream as Twilio runs it, over an open websocket, from `connected` to `stop`.

The messages, their order and their types (numbers are strings except in the media format) follow
twilio.com/docs/voice/media-streams/websocket-messages, completed from traces of real calls: 160
bytes every 20 ms, a first timestamp that is not zero.

Three tasks: one sends the caller's frames on the clock, one sends marks back when they are due, one
receives. Twilio never waits for a slow server, and neither does this one for longer than
`SEND_SECONDS`.
"""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from bridge.testing.phone.call_log import CallEndedError, CallLog
from bridge.testing.phone.strict import Clear, Mark, Media, MessageError, read_message
from bridge.testing.speech import RATE, SILENCE

FRAME_BYTES = 160
FRAME_SECONDS = FRAME_BYTES / RATE
DIGIT_SECONDS = 0.2  # between two consecutive keys
KEYS = "0123456789*#ABCD"

# A frame is sent whole or not at all, so sending ignores cancellation, for this long: a server that
# has not read for so long has lost the call.
SEND_SECONDS = 5.0

BROKEN_PIPE = 31903
PROTOCOL_ERROR = 31924
BUFFER_OVERFLOW = 31930

_ABNORMAL_CLOSURE = 1006
_PROTOCOL_CLOSURES = (1002, 1007, 1009)  # invalid framing, not UTF-8, too big; from either side
_SILENT_FRAME = SILENCE * FRAME_BYTES

EndedBy = Literal["caller", "drop", "server"]


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """The contents of `start`, and the behaviour of this Twilio."""

    account_sid: str
    call_sid: str
    stream_sid: str
    parameters: tuple[tuple[str, str], ...]
    first_timestamp: int  # milliseconds
    silence_frames: bool  # whether frames are sent while the caller says nothing


@dataclass(slots=True, eq=False)
class _Utterance:
    frames: list[bytes]
    size: int
    next: int = 0
    sent: trio.Event = field(default_factory=trio.Event)


class SimulatedMediaStream:
    """Twilio's end of a bidirectional Media Stream; `run` carries it from start to end.

    `started` is set once `start` has been sent.
    """

    def __init__(
        self,
        websocket: WebSocketConnection,
        connection: trio.abc.Stream,
        facts: StreamFacts,
        log: CallLog,
        started: trio.Event,
    ) -> None:
        self._websocket = websocket
        self._connection = connection
        self._facts = facts
        self._log = log
        self._introduced = False
        self._sequence_number = 0
        self._chunk = 0
        self._started = started
        # As long as the callers of `say` are many: each waits for its own.
        self._speech: deque[_Utterance] = deque()
        self._speech_came = trio.Event()
        self._live: Callable[[int], bytes] | None = None
        # As long as the server sends marks: they are names only, and Twilio sets no limit.
        self._cleared_marks: deque[str] = deque()
        self._line = trio.CancelScope()
        self._over = trio.Event()
        self.ended_by: EndedBy | None = None

    async def run(self) -> EndedBy:
        """Send `connected` and `start`, then carry the call until either side ends it."""
        try:
            with self._line:
                await self._introduce()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_caller)
                    nursery.start_soon(self._send_marks)
                    await self._receive()
                    nursery.cancel_scope.cancel("the media stream ended")
        finally:
            self._over.set()
        assert self.ended_by is not None
        return self.ended_by

    async def say(self, ulaw: bytes) -> None:
        """Speak: µ-law in frames of 20 ms, the last one padded with silence.

        Returns when the last frame was sent; cancelled, the caller falls silent. Raises
        `CallEndedError` when the stream ends first.
        """
        if not ulaw:
            return
        pieces = [ulaw[at : at + FRAME_BYTES] for at in range(0, len(ulaw), FRAME_BYTES)]
        pieces[-1] = pieces[-1].ljust(FRAME_BYTES, SILENCE)
        utterance = _Utterance(pieces, len(ulaw))
        self._speech.append(utterance)
        self._speech_came.set()
        try:
            await self._unless_over(utterance.sent)
        finally:
            if utterance in self._speech:
                self._speech.remove(utterance)

    def speak_live(self, source: Callable[[int], bytes]) -> None:
        """From now on the caller's frames are those of `source`, which is asked for each when it is
        due, for so many bytes of µ-law, and must not block.
        """
        self._live = source
        self._speech_came.set()

    async def press(self, digits: str) -> None:
        """Press keys of the keypad in order. Raises `CallEndedError`."""
        if strange := set(digits) - set(KEYS):
            raise ValueError(f"no key on a keypad: {''.join(sorted(strange))}")
        for index, digit in enumerate(digits):
            if index:
                await trio.sleep(DIGIT_SECONDS)
            if self._over.is_set():
                raise CallEndedError("the media stream has ended")
            await self._send("dtmf", {"dtmf": {"track": "inbound_track", "digit": digit}})
            self._log.note("dtmf", digit)

    async def hang_up(self) -> None:
        """Send `stop` and end the stream."""
        if self.ended_by is None:
            self.ended_by = "caller"
            ids = {"accountSid": self._facts.account_sid, "callSid": self._facts.call_sid}
            await self._send("stop", {"stop": ids})
            self._line.cancel("the caller hung up")

    async def drop(self) -> None:
        """Lose the connection abruptly: no `stop`, no close."""
        if self.ended_by is None:
            self.ended_by = "drop"
            await trio.aclose_forcefully(self._connection)
            self._line.cancel("the connection was dropped")

    async def _introduce(self) -> None:
        await self._send_text({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        start = {
            "accountSid": self._facts.account_sid,
            "streamSid": self._facts.stream_sid,
            "callSid": self._facts.call_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": RATE, "channels": 1},
            "customParameters": dict(self._facts.parameters),
        }
        await self._send("start", {"start": start})
        self._introduced = True
        self._log.note("started", self._facts.stream_sid)
        self._started.set()

    async def _send_caller(self) -> None:
        """Frame n is due n times 20 ms after the start: late frames bunch, none is shifted."""
        began = trio.current_time()
        slot = 0
        while True:
            if not self._speech and not self._facts.silence_frames and self._live is None:
                self._speech_came = trio.Event()
                await self._speech_came.wait()
                passed = (trio.current_time() - began) / FRAME_SECONDS
                slot = max(slot, math.ceil(passed - 1e-6))
            await trio.sleep_until(began + slot * FRAME_SECONDS)
            await self._send_frame(slot)
            slot += 1

    async def _send_frame(self, slot: int) -> None:
        utterance = self._speech[0] if self._speech else None
        if utterance is None and self._live is not None:
            frame = self._live(FRAME_BYTES)
        elif utterance is None:
            if not self._facts.silence_frames:
                return  # `say` was cancelled
            frame = _SILENT_FRAME
        else:
            frame = utterance.frames[utterance.next]
            if utterance.next == 0:
                self._log.note("say", size=utterance.size)
            utterance.next += 1
        self._chunk += 1
        media = {
            "track": "inbound",
            "chunk": str(self._chunk),
            "timestamp": str(self._facts.first_timestamp + round(slot * FRAME_SECONDS * 1000)),
            "payload": base64.b64encode(frame).decode("ascii"),
        }
        if await self._send("media", {"media": media}):
            self._log.sent_audio += frame
        if utterance is not None and utterance.next == len(utterance.frames):
            if utterance in self._speech:
                self._speech.remove(utterance)
            utterance.sent.set()
            self._log.note("said")

    async def _send_marks(self) -> None:
        """Return cleared marks at once, the others when they are due."""
        playback = self._log.playback
        while True:
            names = list(self._cleared_marks)
            self._cleared_marks.clear()
            names += playback.take_due_marks(trio.current_time())
            for name in names:
                await self._send("mark", {"mark": {"name": name}})
                self._log.note("mark_echoed", name)
            if not names:
                due = playback.next_mark_at()
                changed = self._log.changed
                with trio.move_on_at(math.inf if due is None else due):
                    await changed.wait()

    async def _receive(self) -> None:
        while True:
            try:
                message = await self._websocket.get_message()
            except ConnectionClosed as closed:
                self._server_closed(closed)
                return
            try:
                self._obey(message)
            except MessageError as error:
                self._log.fault(error.code, error.detail)

    def _obey(self, message: str | bytes) -> None:
        log, now = self._log, trio.current_time()
        instruction = read_message(message, self._facts.stream_sid if self._introduced else None)
        match instruction:
            case Media(payload):
                log.received_audio += payload
                log.playback.add_audio(payload, now)
                log.note("media", size=len(payload))
            case Mark(name):
                log.playback.add_mark(name, now)
                log.note("mark", name)
            case Clear():
                unheard = log.playback.dropped
                self._cleared_marks.extend(log.playback.clear(now))
                log.note("clear", size=log.playback.dropped - unheard)

    def _server_closed(self, closed: ConnectionClosed) -> None:
        if self.ended_by is not None:
            return
        self.ended_by = "server"
        if closed.reason is None:
            self._log.fault(PROTOCOL_ERROR, "the server broke the websocket protocol")
            return
        code, why = int(closed.reason.code), closed.reason.reason
        self._log.note("closed", f"{code} {why}" if why else str(code))
        if code == _ABNORMAL_CLOSURE:
            self._log.fault(BROKEN_PIPE, "the connection broke off without a close")
        elif code in _PROTOCOL_CLOSURES:
            self._log.fault(PROTOCOL_ERROR, f"closed for a websocket protocol error: {code} {why}")

    async def _send(self, event: str, body: dict[str, object]) -> bool:
        if self.ended_by is not None and event != "stop":
            return False  # nothing follows `stop`, even while it is being sent
        self._sequence_number += 1
        return await self._send_text(
            {
                "event": event,
                "sequenceNumber": str(self._sequence_number),
                **body,
                "streamSid": self._facts.stream_sid,
            }
        )

    async def _send_text(self, message: dict[str, object]) -> bool:
        """Send a message; return False if the stream has ended (the receiver learns why)."""
        with trio.move_on_after(SEND_SECONDS, shield=True):
            try:
                await self._websocket.send_message(json.dumps(message, separators=(",", ":")))
            except ConnectionClosed:
                return False
            return True
        self._log.fault(BUFFER_OVERFLOW, f"the server has not read for {SEND_SECONDS:g} s")
        await trio.aclose_forcefully(self._connection)
        return False

    async def _unless_over(self, event: trio.Event) -> None:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self._over.wait()
                nursery.cancel_scope.cancel("the media stream ended")

            nursery.start_soon(watch)
            await event.wait()
            nursery.cancel_scope.cancel("done")
        if not event.is_set():
            raise CallEndedError("the media stream has ended")
