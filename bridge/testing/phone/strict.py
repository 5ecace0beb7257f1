"""Reads a server's websocket messages as strictly as Twilio: instructions, or warnings. Sans-I/O.

The rules, and the warnings 31950 and 31951 for breaking them, are those of
twilio.com/docs/voice/media-streams/websocket-messages and twilio.com/docs/api/errors. They are
written down here a second time on purpose, with nothing shared with the bridge's own messages: a
mistake in the bridge's reading of the protocol must meet a different reading of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass

UNDECODABLE = 31950
INVALID_MESSAGE = 31951

_SHOWN = 120  # characters of an offending message in a fault's detail


@dataclass(frozen=True, slots=True)
class Media:
    """Audio to play: `payload` is raw µ-law at 8 kHz."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark, to be returned when all audio before it has been played."""

    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    """Empty the playback buffer."""


Instruction = Media | Mark | Clear


class MessageError(Exception):
    """Twilio would warn about this message and ignore it."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


def read_message(message: str | bytes, stream_sid: str | None) -> Instruction:
    """Read one websocket message sent to the stream `stream_sid` (None: `start` not yet sent).

    Raises `MessageError` with Twilio's warning code for everything but exactly the documented
    `media`, `mark` and `clear`: no field missing, none extra, each of its type.
    """
    if isinstance(message, bytes):
        raise MessageError(UNDECODABLE, f"a binary frame of {len(message)} bytes")
    document = _parse(message)
    if stream_sid is None:
        raise _invalid("sent before `start`, when no stream SID can be known", message)
    event = document.get("event")
    if event == "media":
        body = _body(document, "media", message)
        payload = _text(body, "payload", "media", message)
        _exactly(body, {"payload"}, "media", message)
    elif event == "mark":
        body = _body(document, "mark", message)
        name = _text(body, "name", "mark", message)
        _exactly(body, {"name"}, "mark", message)
    elif event == "clear":
        _exactly(document, {"event", "streamSid"}, "the message", message)
    else:
        raise _invalid(f"unknown event {event!r}", message)
    sid = document.get("streamSid")
    if sid != stream_sid:
        raise _invalid(f"streamSid is {sid!r}, not this stream's {stream_sid!r}", message)
    if event == "media":
        return Media(_audio(payload, message))
    if event == "mark":
        return Mark(name)
    return Clear()


def _parse(message: str) -> Mapping[str, object]:
    try:
        document = json.loads(message)
    except (ValueError, RecursionError):
        raise _invalid("not JSON", message) from None
    if not isinstance(document, dict):
        raise _invalid("not a JSON object", message)
    return document


def _body(document: Mapping[str, object], event: str, message: str) -> Mapping[str, object]:
    _exactly(document, {"event", "streamSid", event}, "the message", message)
    body = document[event]
    if not isinstance(body, dict):
        raise _invalid(f"`{event}` is not an object", message)
    return body


def _text(body: Mapping[str, object], field: str, where: str, message: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        raise _invalid(f"`{where}.{field}` is missing or not a string", message)
    return value


def _exactly(document: Mapping[str, object], fields: set[str], where: str, message: str) -> None:
    if missing := fields - document.keys():
        raise _invalid(f"{where} lacks {_names(missing)}", message)
    if extra := document.keys() - fields:
        raise _invalid(f"{where} has the extra {_names(extra)}", message)


def _audio(payload: str, message: str) -> bytes:
    try:
        audio = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("`media.payload` is not base64", message) from None
    if not audio:
        raise _invalid("`media.payload` is empty", message)
    if audio[:4] == b"RIFF" and b"WAVE".startswith(audio[8:12]):
        raise _invalid("`media.payload` begins with a WAV header, which would be played", message)
    return audio


def _names(fields: set[str]) -> str:
    return ", ".join(f"`{field}`" for field in sorted(fields))


def _invalid(detail: str, message: str) -> MessageError:
    shown = message if len(message) <= _SHOWN else message[:_SHOWN] + "…"
    return MessageError(INVALID_MESSAGE, f"{detail}: {shown}")
