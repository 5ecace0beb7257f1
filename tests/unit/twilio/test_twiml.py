"""TwiML against Twilio's own builder, and against whatever a caller can put into a header."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.twiml.voice_response import Connect, Dial, VoiceResponse

from bridge.twilio import twiml
from bridge.twilio.targets import caller_id, read_target

HOSTILE = "\"'><&;]]>\x00\x1b\ud800\ufffe<!--<Hangup/>"


def same_xml(ours: bytes, theirs: str) -> bool:
    def canonical(text: str | bytes) -> str:
        return ElementTree.canonicalize(text, strip_text=True)

    return canonical(ours.decode()) == canonical(theirs)


def test_connect_stream_is_what_twilios_builder_writes() -> None:
    ours = twiml.connect_stream(
        "wss://voice.example.com/media-stream",
        action="https://voice.example.com/call-ended",
        parameters={"From": "+15551234567", "To": "+15557654321"},
    )
    response, connect = VoiceResponse(), Connect(action="https://voice.example.com/call-ended")
    stream = connect.stream(url="wss://voice.example.com/media-stream")
    stream.parameter(name="From", value="+15551234567")
    stream.parameter(name="To", value="+15557654321")
    response.append(connect)
    assert same_xml(ours, str(response))


def test_hang_up_is_what_twilios_builder_writes() -> None:
    response = VoiceResponse()
    response.say("Sorry & goodbye.")
    response.hangup()
    assert same_xml(twiml.hang_up("Sorry & goodbye."), str(response))
    response = VoiceResponse()
    response.hangup()
    assert same_xml(twiml.hang_up(), str(response))


def test_words_are_said_in_their_language_and_voice() -> None:
    voice = twiml.Voice("fr-FR", "Polly.Lea-Neural")
    response = VoiceResponse()
    response.say("Désolé, <au revoir>.", language="fr-FR", voice="Polly.Lea-Neural")
    response.hangup()
    assert same_xml(twiml.hang_up("Désolé, <au revoir>.", voice), str(response))
    document = ElementTree.fromstring(twiml.dial("+15551112222", words="Un instant.", voice=voice))
    (say,) = document.iter("Say")
    assert say.attrib == {"language": "fr-FR", "voice": "Polly.Lea-Neural"}


@pytest.mark.parametrize(
    ("target", "noun"),
    [
        ("+15551112222", lambda dial: dial.number("+15551112222")),
        ("+15551112222;ext=12#", lambda dial: dial.number("+15551112222", send_digits="wwww12#")),
        ("sip:desk@example.com", lambda dial: dial.sip("sip:desk@example.com")),
        (
            "sip:desk@pbx.example.com:5061;transport=tls?x-a=b",
            lambda dial: dial.sip("sip:desk@pbx.example.com:5061;transport=tls?x-a=b"),
        ),
        ("client:ann.b", lambda dial: dial.client("ann.b")),
    ],
)
def test_each_kind_of_target_is_dialled_as_twilios_own_library_writes_it(
    target: str, noun: Callable[[Dial], object]
) -> None:
    response = VoiceResponse()
    dial = Dial(timeout=20, caller_id="+15557654321", action="call-ended?transfer=a%26b")
    noun(dial)
    response.append(dial)
    response.hangup()
    ours = twiml.dial(target, caller_id="+15557654321", action="call-ended?transfer=a%26b")
    assert same_xml(ours, str(response))


@pytest.mark.parametrize(
    "text",
    [
        *("", "reception", "5551112222", "+1 555 111 2222", "+15551112222;ext=", "+1;ext=12"),
        *("+15551112222;ext=1a", "sip:", "sip:example.com", "sip:a@b c", "sip:a@b><", "client:"),
        *("client:a b", "tel:+15551112222", "+15551112222\n", "client:" + "a" * 122),
        *('client:a"b', 'sip:"a"@b', "sip:a@::1", f"sip:{'a' * 250}@b", "whatsapp:+15551112222"),
    ],
)
def test_what_cannot_be_dialled_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="with an extension"):
        read_target(text)


@pytest.mark.parametrize(
    ("configured", "caller", "called", "shown"),
    [
        ("", "+15551234567", "+15557654321", "+15551234567"),
        ("", "client:ada", "+15557654321", "+15557654321"),
        ("", "sip:ada@example.com", "+15557654321", "+15557654321"),
        ("", "Anonymous", "+15557654321", "+15557654321"),
        ("", "+266696687", "+15557654321", "+15557654321"),
        ("", "", "sip:us@example.com", ""),
        ("+15550001111", "+15551234567", "+15557654321", "+15550001111"),
        ("+15550001111", "client:ada", "", "+15550001111"),
    ],
)
def test_the_dialled_phone_shows_a_number_that_twilio_takes(
    configured: str, caller: str, called: str, shown: str
) -> None:
    assert caller_id(configured, caller, called) == shown


texts = st.text(st.characters(), max_size=60) | st.just(HOSTILE)


@given(texts, texts, texts, st.dictionaries(texts, texts, max_size=4))
def test_nothing_becomes_markup(
    host: str, action: str, words: str, parameters: dict[str, str]
) -> None:
    host = host.replace("?", "").replace("#", "")
    document = twiml.connect_stream(f"wss://{host}/m", action=action, parameters=parameters)
    response = ElementTree.fromstring(document)
    (connect,) = response
    (stream,) = connect
    assert (response.tag, connect.tag, stream.tag) == ("Response", "Connect", "Stream")
    assert {p.tag for p in stream} <= {"Parameter"}
    assert {name for p in stream for name in p.keys()} <= {"name", "value"}  # noqa: SIM118
    assert {child.tag for child in ElementTree.fromstring(twiml.hang_up(words))} <= {
        "Say",
        "Hangup",
    }


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=99))
def test_what_xml_can_say_arrives_unchanged(value: str) -> None:
    document = twiml.connect_stream("wss://h/m", action="a", parameters={"Name": value})
    found = [p.get("value") for p in ElementTree.fromstring(document).iter("Parameter")]
    assert found == ([value] if value else [])


def test_a_parameter_keeps_to_twilios_limit() -> None:
    document = twiml.connect_stream("wss://h/m", action="a", parameters={"CallerName": "x" * 900})
    (parameter,) = ElementTree.fromstring(document).iter("Parameter")
    assert len((parameter.get("name") or "") + (parameter.get("value") or "")) == 499


@pytest.mark.parametrize("url", ["wss://h/m?a=1", "wss://h/m#x"])
def test_a_query_string_twilio_would_drop_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no query string"):
        twiml.connect_stream(url, action="a", parameters={})
