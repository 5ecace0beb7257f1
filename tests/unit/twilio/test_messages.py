"""Media Streams messages: what Twilio documents is understood, anything else refused politely."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.twilio import messages
from bridge.twilio.messages import BadMessage, Outbound, parse

SID = "MZ" + "0123456789abcdef" * 2


def test_connected() -> None:
    message = parse('{"event":"connected","protocol":"Call","version":"1.0.0"}')
    assert message == messages.Connected(protocol="Call", version="1.0.0")


def start(**changes: Any) -> str:
    details = {
        "accountSid": "AC" + "0" * 32,
        "streamSid": SID,
        "callSid": "CA" + "1" * 32,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"From": "+15551234567"},
    }
    return json.dumps(
        {
            "event": "start",
            "sequenceNumber": "1",
            "start": {k: v for k, v in (details | changes).items() if v is not None},
            "streamSid": SID,
        }
    )


def test_start() -> None:
    message = parse(start())
    assert isinstance(message, messages.Start)
    assert message.start.call_sid == "CA" + "1" * 32
    assert message.start.stream_sid == message.stream_sid == SID
    assert message.start.custom_parameters == {"From": "+15551234567"}
    assert message.start.media_format == messages.MediaFormat("audio/x-mulaw", 8000, 1)


@pytest.mark.parametrize("absent", ["customParameters", "tracks", "accountSid", "mediaFormat"])
def test_start_without_what_old_streams_leave_out(absent: str) -> None:
    message = parse(start(**{absent: None}))
    assert isinstance(message, messages.Start)


def test_integers_are_read_from_strings_too() -> None:
    form = {"encoding": "audio/x-mulaw", "sampleRate": "8000", "channels": "1"}
    message = parse(start(mediaFormat=form))
    assert isinstance(message, messages.Start)
    assert message.start.media_format == messages.MediaFormat()


@given(st.binary(max_size=1000))
def test_media_carries_any_bytes(audio: bytes) -> None:
    payload = base64.b64encode(audio).decode()
    message = parse(
        json.dumps(
            {
                "event": "media",
                "sequenceNumber": "4",
                "media": {"track": "inbound", "chunk": "2", "timestamp": "5", "payload": payload},
                "streamSid": SID,
            }
        )
    )
    assert isinstance(message, messages.Media)
    assert message.media.payload == audio


def test_dtmf_mark_and_stop() -> None:
    dtmf = parse(
        '{"event":"dtmf","streamSid":"MZ1","sequenceNumber":"5",'
        '"dtmf":{"track":"inbound_track","digit":"1"}}'
    )
    assert dtmf == messages.Dtmf(messages.DtmfDetails("1"), "MZ1")
    mark = parse(
        '{"event":"mark","sequenceNumber":"4","streamSid":"MZ1","mark":{"name":"my label"}}'
    )
    assert mark == messages.Mark(messages.MarkDetails("my label"), "MZ1")
    stop = parse(
        '{"event":"stop","sequenceNumber":"5","stop":{"accountSid":"AC1","callSid":"CA1"},'
        '"streamSid":"MZ1"}'
    )
    assert stop == messages.Stop("MZ1")


def test_unknown_events_are_named_not_refused() -> None:
    assert parse('{"event":"transcription","text":"hi"}') == messages.Unknown("transcription")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        "{}",
        '{"event":1}',
        '{"event":"media"}',
        '{"event":"media","media":{"payload":"***"}}',
        '{"event":"media","media":{"payload":"AAA"}}',
        '{"event":"media","media":[]}',
        '{"event":"start","start":{"streamSid":"MZ1"}}',
        '{"event":"mark","mark":{"name":7}}',
        "[" * 60_000,
        '{"event":' * 5_000,
        '{"event":"media","media":{"payload":"\ud800"}}',
        b"\x00\x01",
    ],
)
def test_what_is_no_message_is_refused_in_few_words(text: str | bytes) -> None:
    with pytest.raises(BadMessage) as caught:
        parse(text)
    assert 0 < len(str(caught.value)) < 300


@given(st.text() | st.binary())
def test_no_input_raises_anything_else(text: str | bytes) -> None:
    try:
        parse(text)
    except BadMessage:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(["connected", "start", "media", "dtmf", "mark", "stop"]), json_values)
def test_no_shape_of_a_known_event_raises_anything_else(event: str, value: object) -> None:
    try:
        parse(json.dumps({"event": event, event: value, "streamSid": value}))
    except BadMessage:
        pass


@given(st.text(), st.binary(), st.text())
def test_outbound_messages_have_these_fields_and_no_others(
    sid: str, audio: bytes, name: str
) -> None:
    """Twilio's warning 31951 is for any additional or missing field."""
    sid, name = (s.encode("utf-8", "replace").decode() for s in (sid, name))
    outbound = Outbound(sid)
    payload = base64.b64encode(audio).decode()
    assert json.loads(outbound.media(audio)) == {
        "event": "media",
        "streamSid": sid,
        "media": {"payload": payload},
    }
    assert json.loads(outbound.mark(name)) == {
        "event": "mark",
        "streamSid": sid,
        "mark": {"name": name},
    }
    assert json.loads(outbound.clear()) == {"event": "clear", "streamSid": sid}
