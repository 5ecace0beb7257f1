"""TwiML, judged as Twilio would."""

from __future__ import annotations

import pytest

from bridge.check.webhook import judge_twiml
from bridge.twilio import twiml

URL = "https://voice.example.com/incoming-call"


def judge(inside: str, url: str = URL, kind: str = "text/xml"):
    return judge_twiml(f"<Response>{inside}</Response>".encode(), kind, url)


def test_our_own_is_good():
    document = twiml.connect_stream(
        "wss://voice.example.com/media-stream",
        action="https://voice.example.com/call-ended",
        parameters={"From": "+15550100001"},
    )
    finding, stream = judge_twiml(document, twiml.CONTENT_TYPE, URL)
    assert finding.status == "ok"
    assert stream is not None
    assert stream.url == "wss://voice.example.com/media-stream"


@pytest.mark.parametrize(
    "inside",
    [
        '<Start><Stream url="wss://voice.example.com/media-stream"/></Start>',
        '<Say>Hello</Say><Start><Stream url="wss://a/b"/></Start><Pause length="40"/>',
    ],
)
def test_start_in_place_of_connect(inside):
    finding, stream = judge(inside)
    assert (finding.status, stream) == ("wrong", None)
    assert "<Start><Stream>" in finding.what
    assert "<Connect><Stream>" in finding.remedy


@pytest.mark.parametrize(
    ("inside", "kind", "words"),
    [
        ("<Say>Hello</Say", "text/xml", "error 12100"),
        ('<Connect><Stream url="wss://a/b?c=d"/></Connect>', "text/xml", "query string"),
        ('<Connect><Stream url="wss://a/b"/></Connect>', "text/html", "error 12300"),
        ('<Connect><Stream url="ws://voice.example.com/m"/></Connect>', "text/xml", "wss://"),
    ],
)
def test_what_twilio_refuses(inside, kind, words):
    finding, _ = judge(inside, kind=kind)
    assert finding.status == "wrong"
    assert words in finding.line


def test_a_stream_at_the_address_a_proxy_has_inside():
    finding, _ = judge('<Connect><Stream url="wss://10.0.0.7:5000/media-stream"/></Connect>')
    assert finding.status == "wrong"
    assert "wss://10.0.0.7:5000/media-stream" in finding.what
    assert "server.public_url to https://voice.example.com" in finding.remedy


def test_a_server_that_takes_no_calls_now():
    finding, _ = judge("<Say>All our lines are busy.</Say><Hangup/>")
    assert finding.status == "warning"
    assert "All our lines are busy." in finding.why


def test_a_document_for_something_else():
    finding, _ = judge("<Dial>+15550001111</Dial>")
    assert finding.status == "wrong"
    assert "no <Connect><Stream>" in finding.why


def test_on_this_machine_a_plain_socket_will_do():
    inside = '<Connect><Stream url="ws://127.0.0.1:5000/media-stream"/></Connect>'
    assert judge(inside, "http://127.0.0.1:5000/incoming-call")[0].status == "ok"
