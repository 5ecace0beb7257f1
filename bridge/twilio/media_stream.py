"""The phone's side of a call: one Media Streams socket, typed.

https://www.twilio.com/docs/voice/media-streams
"""

from __future__ import annotations

from typing import Final, Protocol

from bridge.log import get_logger
from bridge.transport.websocket import WebSocketClosed
from bridge.twilio import messages

log = get_logger(__name__)

# Single bad messages do not end a call, however many there are among good ones. This many in a row,
# as many as a phone sends in two seconds, and the peer is not a phone.
MAX_CONSECUTIVE_BAD_MESSAGES: Final = 100

# Characters logged about a bad message: its reason quotes from the message.
REASON_SHOWN: Final = 200

# What comes once, before the audio. A union would be built anew at each use.
_OPENING: Final = (messages.Start, messages.Connected)


class NotAPhone(Exception):
    """The peer does not speak Media Streams. The message says what was wrong last."""


class PhoneGone(Exception):
    """The socket is closed or lost: the normal end after `stop`, a failure before it."""


class MediaSocket(Protocol):
    """The websocket that Twilio opened: a `bridge.transport.websocket.WebSocket`, or a test's."""

    received_at: float
    """When what `receive` returned last was read, in seconds of Trio's clock."""

    async def receive(self) -> list[str | bytes]:
        """Return the messages that came together, at least one, in order. Raises WebSocketClosed
        when there are no more."""

    async def send(self, message: str) -> None:
        """Send a text message, whole or not at all. Raises WebSocketClosed."""

    async def close(self, code: int, *, by: float) -> None:
        """Send a Close frame and wait for the phone's until `by`, a time of Trio's clock; then
        drop the connection, together with any send in progress. Idempotent."""


class MediaStream:
    """Typed messages from the phone, and audio, marks and clears to it.

    Nothing can be sent before the phone's `start` message was received: it brings the stream SID,
    which every message to Twilio must carry.
    """

    def __init__(self, socket: MediaSocket) -> None:
        self._socket = socket
        self._stream_sid = ""
        self._outbound: messages.Outbound  # set by `start`
        self._consecutive_bad = 0
        # Messages that came after `start`, in the same batch.
        self._early: list[str | bytes] = []
        self.received_at = socket.received_at
        """When what `receive` returned last was read, in seconds of Trio's clock."""
        self.bad_messages = 0
        self.bytes_received = 0
        self.frames_received = 0
        self.bytes_sent = 0
        self.frames_sent = 0

    async def start(self) -> messages.StartDetails:
        """Wait for the `start` message and return its details.

        Raises PhoneGone if the socket closes first, NotAPhone after too many bad messages.
        """
        while True:
            try:
                received = await self._socket.receive()
            except WebSocketClosed as closed:
                raise PhoneGone from closed
            for position, text in enumerate(received, start=1):
                match self._parse(text):
                    case messages.Start(start=details):
                        self._stream_sid = details.stream_sid
                        self._outbound = messages.Outbound(details.stream_sid)
                        self._early = received[position:]
                        return details
                    case messages.Connected() | None:
                        pass
                    case early:
                        self._skip(f"{type(early).__name__} before start")

    async def receive(self) -> list[messages.Message]:
        """Wait for the next messages of the stream and return all that came together, in order.

        Bad messages are counted and skipped, unknown ones skipped, so the list may be empty.
        Raises PhoneGone at the end, and NotAPhone after MAX_CONSECUTIVE_BAD_MESSAGES bad ones.
        """
        received, self._early = self._early, []
        if not received:
            try:
                received = await self._socket.receive()
            except WebSocketClosed as closed:
                raise PhoneGone from closed
        self.received_at = self._socket.received_at
        stream: list[messages.Message] = []
        for text in received:
            message = self._parse(text)
            if message is None:
                pass
            elif isinstance(message, _OPENING):
                self._skip(f"a second {type(message).__name__}")
            elif message.stream_sid not in (self._stream_sid, ""):
                self._skip(f"{type(message).__name__} of another stream")
            else:
                self._consecutive_bad = 0
                if isinstance(message, messages.Media):
                    self.bytes_received += len(message.media.payload)
                    self.frames_received += 1
                stream.append(message)
        return stream

    async def play(self, audio: bytes) -> None:
        """Queue µ-law at 8 kHz, any length, behind what the phone still has to play."""
        await self._send(self._outbound.media(audio))
        self.bytes_sent += len(audio)
        self.frames_sent += 1

    async def mark(self, name: str) -> None:
        """Ask for `name` to be sent back when the phone has played everything queued so far."""
        await self._send(self._outbound.mark(name))

    async def clear(self) -> None:
        """Make the phone forget what it has not played yet."""
        await self._send(self._outbound.clear())

    async def close(self, code: int, *, by: float) -> None:
        """Close the socket with this close code; Twilio then requests `/call-ended`.

        Returns at the time `by` on Trio's clock at the latest; the connection is then dropped if
        the phone does not read.
        """
        await self._socket.close(code, by=by)

    async def _send(self, text: str) -> None:
        try:
            await self._socket.send(text)
        except WebSocketClosed:
            # The receiver reports the end of the call; if the sender failed for the same reason, it
            # would hide which side ended the call.
            return

    def _parse(self, text: str | bytes) -> messages.Message | None:
        try:
            message = messages.parse(text)
        except messages.BadMessage as error:
            self._skip(str(error))
            return None
        if isinstance(message, messages.Unknown):
            log.debug("unknown event skipped", event_name=message.event[:64])
            return None
        return message

    def _skip(self, reason: str) -> None:
        self.bad_messages += 1
        self._consecutive_bad += 1
        log.debug("message skipped", reason=reason[:REASON_SHOWN])
        if self._consecutive_bad >= MAX_CONSECUTIVE_BAD_MESSAGES:
            raise NotAPhone(
                f"{self._consecutive_bad} consecutive messages that are not Media Streams messages"
                f", the last: {reason[:REASON_SHOWN]}"
            )
