"""Twilio Media Streams messages in both directions: text to typed structs, and back. Sans-I/O.

Shapes: https://www.twilio.com/docs/voice/media-streams/websocket-messages. Twilio writes integers
as strings in some places and as numbers in others, so they are read from either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from bridge.tagged_messages import BadMessage as BadMessage
from bridge.tagged_messages import message_reader

# Twilio's are two letters and 32 hex digits. They are repeated in every message, log line and file
# name of the call, so nothing that could do harm there is accepted.
Sid = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,64}\Z")]


class Connected(msgspec.Struct, frozen=True, tag="connected", tag_field="event"):
    """The first message: the socket speaks Media Streams."""

    protocol: str = ""
    version: str = ""


class MediaFormat(msgspec.Struct, frozen=True, rename="camel"):
    """The format of the phone's audio; Twilio documents these values only."""

    encoding: str = "audio/x-mulaw"
    sample_rate: int = 8000
    channels: int = 1


class StartDetails(msgspec.Struct, frozen=True, rename="camel"):
    """The facts of the call. `custom_parameters` are the TwiML's `<Parameter>`s."""

    stream_sid: Sid
    call_sid: Sid
    account_sid: str = ""
    tracks: tuple[str, ...] = ()
    media_format: MediaFormat = MediaFormat()
    custom_parameters: dict[str, str] = {}


class Start(msgspec.Struct, frozen=True, tag="start", tag_field="event", rename="camel"):
    """The second message: it brings the stream SID, and audio may be sent from here on."""

    start: StartDetails
    stream_sid: str = ""


class MediaDetails(msgspec.Struct, frozen=True):
    """`payload` is µ-law at 8 kHz, base64 already undone; usually 160 bytes, 20 ms. `timestamp` is
    when it was spoken, in milliseconds since the stream began; see `media_clock`."""

    payload: bytes
    track: str = "inbound"
    timestamp: str | float | None = None


class Media(msgspec.Struct, frozen=True, tag="media", tag_field="event", rename="camel"):
    """A piece of the caller's audio."""

    media: MediaDetails
    stream_sid: str = ""


class DtmfDetails(msgspec.Struct, frozen=True):
    """One key: 0 to 9, *, # or A to D."""

    digit: str


class Dtmf(msgspec.Struct, frozen=True, tag="dtmf", tag_field="event", rename="camel"):
    """The caller pressed a key."""

    dtmf: DtmfDetails
    stream_sid: str = ""


class MarkDetails(msgspec.Struct, frozen=True):
    """`name` is the one with which the mark was sent."""

    name: str


class Mark(msgspec.Struct, frozen=True, tag="mark", tag_field="event", rename="camel"):
    """All audio sent before this mark has been played, or cleared."""

    mark: MarkDetails
    stream_sid: str = ""


class Stop(msgspec.Struct, frozen=True, tag="stop", tag_field="event", rename="camel"):
    """The call is over: the caller hung up or Twilio took the call away."""

    stream_sid: str = ""


class Unknown(msgspec.Struct, frozen=True):
    """An event this version does not know; Twilio may add some at any time."""

    event: str


Message = Connected | Start | Media | Dtmf | Mark | Stop

parse: Callable[[str | bytes], Message | Unknown] = message_reader(
    Message, "event", Unknown, strict=False
)
"""Read one message from Twilio.

Raises BadMessage when it is binary, not JSON, or a known event of the wrong shape.
"""


class _OutMark(msgspec.Struct):
    name: str


class Outbound:
    """Encodes the messages that bridge sends on one stream: media, mark and clear, nothing else.

    Twilio warns (error 31951) about any other event and any missing or additional field.
    """

    def __init__(self, stream_sid: str) -> None:
        sid = msgspec.json.encode(stream_sid).decode()
        # Fifty messages a second share everything but their payload, so it is encoded once.
        self._media_head = f'{{"event":"media","streamSid":{sid},"media":{{"payload":'
        self._mark_head = f'{{"event":"mark","streamSid":{sid},"mark":'
        self._clear = f'{{"event":"clear","streamSid":{sid}}}'

    def media(self, audio: bytes) -> str:
        """Play this audio after what was sent before: µ-law at 8 kHz, any length, no header."""
        return f"{self._media_head}{msgspec.json.encode(audio).decode('ascii')}}}}}"

    def mark(self, name: str) -> str:
        """Ask Twilio to return `name` when all audio sent so far has been played."""
        return f"{self._mark_head}{msgspec.json.encode(_OutMark(name)).decode()}}}"

    def clear(self) -> str:
        """Empty Twilio's playback buffer now; Twilio returns every outstanding mark."""
        return self._clear
