"""The receiving side of a session: reads, records, detects speech, dispatches messages."""

from __future__ import annotations

import msgspec
from trio_websocket import ConnectionClosed, WebSocketConnection

from bridge.testing.agent.client_messages import handle_message
from bridge.testing.agent.hearing import BYTES_PER_SECOND, Heard, Onset, SpeechDetector
from bridge.testing.agent.record import CallerTurn, keep
from bridge.testing.agent.schema import UNPARSABLE, Refused
from bridge.testing.agent.session_protocol import Session


class Receiver:
    """Reads everything that the client of `session` sends over `ws`."""

    def __init__(self, session: Session, ws: WebSocketConnection) -> None:
        knobs = session.behaviour
        self._session = session
        self._ws = ws
        self._detector = SpeechDetector(
            knobs.speech_threshold, knobs.speech_onset, knobs.speech_end
        )
        self._reports = 0

    async def run(self) -> None:
        """Read until the client is gone; record every message in order."""
        while True:
            try:
                message = await self._ws.get_message()
            except ConnectionClosed:
                return
            try:
                if isinstance(message, bytes):
                    await self._audio(message)
                else:
                    await self._text(message)
            except Refused as refused:
                self._session.faults.append(f"{refused.code}: {refused.description}")
                await self._session.error(refused.code, refused.description)
            self._session.wake()

    async def end_turn(self) -> None:
        """End the caller's turn by force (ForceEndTurn)."""
        if self._session.senses is not None:
            await self._session.senses.end_turn()
            return
        heard = self._detector.end_turn()
        if heard is not None:
            self._session.add_turn(CallerTurn(heard=heard))

    async def _audio(self, audio: bytes) -> None:
        session = self._session
        session.record_audio(audio)
        if session.failed:
            return
        if session.settings is None:
            raise Refused("BINARY_MESSAGE_BEFORE_SETTINGS", "Received audio before Settings.")
        if not session.applied.is_set():
            keep(session.faults, "audio before SettingsApplied")
        await self._report_latency()
        if session.deaf:
            return
        if session.senses is not None:
            await session.senses.hear(audio)
        else:
            for found in self._detector.feed(audio):
                await self._hear(found)

    async def _hear(self, found: Onset | Heard) -> None:
        if isinstance(found, Onset):
            keep(self._session.onsets, found.start)
            await self._session.user_started_speaking()
        else:
            self._session.event(f"caller spoke {found.seconds:.1f} s")
            self._session.add_turn(CallerTurn(heard=found))

    async def _report_latency(self) -> None:
        # Per amount of caller audio, not by a clock: needs no task and is deterministic.
        every = self._session.behaviour.latency_every
        if every and self._session.applied.is_set():
            due = int(self._session.received_bytes / BYTES_PER_SECOND / every)
            if due > self._reports:
                self._reports = due
                await self._session.latency_report(stt_latency=0.18)

    async def _text(self, text: str) -> None:
        try:
            message = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            self._session.record_message({"type": None, "unparsable": text[:1000]})
            raise Refused(UNPARSABLE, f"not JSON: {error}") from None
        if not isinstance(message, dict):
            self._session.record_message({"type": None, "unparsable": text[:1000]})
            raise Refused(UNPARSABLE, "not a JSON object")
        self._session.record_message(message)
        if not self._session.failed:
            await handle_message(self._session, message)
