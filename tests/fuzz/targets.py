"""Every parser of what a stranger can send: bytes in, and nothing out but what it promises.

A target returns when all is well and raises when a promise is broken: another exception than the
documented one, an answer out of bounds, markup where there should be text. `SEEDS` has honest
input for each, to begin from. Played by hypothesis in the suite and by atheris on demand.
"""

# ruff: noqa: PT017 - what an error says is a promise, too; there is no pytest under atheris.

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import msgspec
import trio
import trio.testing
from werkzeug.datastructures import Headers

from bridge.addresses import BadHost, PublicAddress, is_loopback, public_address
from bridge.admission.ticket import BadTicket, Tickets
from bridge.call.keypad import Keypad
from bridge.config import settings as config
from bridge.config import toml as config_text
from bridge.deepgram import messages as agent_messages
from bridge.deepgram.context_hook import _read as read_context
from bridge.deepgram.context_hook import _UnusableError
from bridge.deepgram.template import fill
from bridge.functions.errors import BadArguments
from bridge.functions.parameters import MAX_EXPLANATION, parameters_of
from bridge.http.dialling import (
    check_request,
    outbound_parameters,
    read_request,
    webhook_address,
)
from bridge.http.json_api import MAX_WORDS, BadRequest, read_words
from bridge.http.operator_auth import Gate, NotAuthorised
from bridge.http.proxies import RequestOrigin, is_same_origin, request_origin
from bridge.local_agent.dialogue import load_dialogue
from bridge.local_agent.understanding import Understanding
from bridge.log import _redactor, mask_number
from bridge.records import record as records
from bridge.testing.agent.schema import Refused, check_settings
from bridge.testing.phone.strict import MessageError, read_message
from bridge.testing.phone.twiml import TwimlError, read_twiml
from bridge.twilio import messages, signature, twiml
from bridge.twilio.call_status import BadStatus, Progress, read_status
from tests.unit.server.echo import Echo
from tests.unit.server.wire import UPGRADE, frame, serving

Target = Callable[[bytes], None]

STREAM: Final = "MZ" + "2" * 32
MEDIA: Final = f'{{"event":"media","streamSid":"{STREAM}","media":{{"payload":"f39/"}}}}'
TARGETS: Final[dict[str, Target]] = {}
SEEDS: Final[dict[str, list[bytes]]] = {}


def target(*seeds: bytes | str) -> Callable[[Target], Target]:
    def add(function: Target) -> Target:
        name = function.__name__
        TARGETS[name] = function
        SEEDS[name] = [seed.encode() if isinstance(seed, str) else seed for seed in seeds]
        return function

    return add


def text_of(data: bytes) -> str:
    return data.decode(errors="replace")


@target(
    MEDIA,
    '{"event":"start","start":{"streamSid":"MZ1","callSid":"CA1","customParameters":{"a":"b"}}}',
    '{"event":"dtmf","dtmf":{"digit":"5"}}',
    '{"event":"mark","mark":{"name":"x"}}',
    '{"event":"stop","streamSid":"MZ1"}',
)
def phone_message(data: bytes) -> None:
    for message in (data, text_of(data)):
        try:
            read = messages.parse(message)
        except messages.BadMessage as error:
            assert len(str(error)) < 500 + len(data)
            continue
        if isinstance(read, messages.Start):
            sids = (read.start.call_sid, read.start.stream_sid)
            assert all(re.fullmatch("[A-Za-z0-9]{1,64}", sid) for sid in sids)
            for said in (messages.Outbound(sids[1]).mark("m"), messages.Outbound(sids[1]).clear()):
                read_message(said, sids[1])


@target(
    '{"type":"ConversationText","role":"user","content":"hi"}',
    '{"type":"FunctionCallRequest","functions":[{"id":"1","name":"f","arguments":"{}"}]}',
    '{"type":"Error","code":"X","description":"y"}',
    '{"type":"LatencyReport","stt_latency":0.1}',
)
def agent_message(data: bytes) -> None:
    try:
        agent_messages.parse(text_of(data))
    except agent_messages.BadMessage:
        return


@target(
    '{"to":"+15551234567","from":"+15557654321","variables":{"name":"Ann"}}',
    '{"to":"+15551234567","message":"hello","machine_detection":"DetectMessageEnd"}',
)
def dial_request(data: bytes) -> None:
    try:
        call = check_request(read_request(data), {"sales": ["+15557654321"]})
        url = webhook_address(PublicAddress("https://x", "wss://x"), call)
    except BadRequest as error:
        assert error.status in (400, 422)
        return
    assert re.fullmatch(r"\+[1-9][0-9]{1,14}", call.to)
    parameters = outbound_parameters(dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)))
    assert parameters == {**call.variables, **({"agent": call.agent} if call.agent else {})}
    try:
        document = twiml.connect_stream("wss://x/y", action="https://x", parameters=parameters)
    except ValueError as error:
        raise AssertionError from error
    ElementTree.fromstring(document)


@target('{"text":"hello there"}')
def words_to_say(data: bytes) -> None:
    try:
        words = read_words(data)
    except BadRequest:
        return
    assert 0 < len(words) <= MAX_WORDS
    assert words.isprintable()


@target(
    "CallSid=CA" + "0" * 32 + "&CallStatus=completed&SequenceNumber=3&From=%2B1555",
    "CallSid=CA" + "0" * 32 + "&AnsweredBy=machine_end_beep",
)
def status_callback(data: bytes) -> None:
    form = dict(part.partition("=")[::2] for part in text_of(data).split("&"))
    try:
        update = read_status(form)
    except BadStatus:
        return
    progress = Progress(2)
    assert progress.fold(update) == update
    assert progress.fold(update).call_sid == update.call_sid
    assert len(update.caller) <= 64


@target("var.name=Ann&agent=sales&var.To=x")
def webhook_query(data: bytes) -> None:
    query = dict(part.partition("=")[::2] for part in text_of(data).split("&"))
    found = outbound_parameters(query)
    assert not {name.lower() for name in found} & {"from", "to", "callsid", "direction", "ticket"}


@target('+15551234567 <Say> & "quoted"', "\u0000\u202e\ud7ff")
def text_in_twiml(data: bytes) -> None:
    said = text_of(data)
    documents = [
        twiml.connect_stream("wss://x/y", action="https://x", parameters={"From": said, "x": said}),
        twiml.hang_up(said),
    ]
    for document in documents:
        root = ElementTree.fromstring(document)
        assert {element.tag for element in root.iter()} <= {
            "Response",
            "Connect",
            "Stream",
            "Parameter",
            "Say",
            "Hangup",
        }
        try:
            read_twiml(document, "text/xml", "https://example.com/")
        except TwimlError as error:
            # Only for what is not said here: a text that is none.
            assert not said.strip() or error.code, error


@target(
    "<Response><Say>hi</Say><Hangup/></Response>", "<Response><Redirect>/x</Redirect></Response>"
)
def twiml_read(data: bytes) -> None:
    try:
        read_twiml(data, "text/xml", "https://example.com/a")
    except TwimlError:
        return


@target(MEDIA, f'{{"event":"clear","streamSid":"{STREAM}"}}')
def strict_message(data: bytes) -> None:
    for message in (data, text_of(data)):
        try:
            read_message(message, STREAM)
        except MessageError:
            continue


@target("voice.example.com", "127.0.0.1:5000", "[::1]:5000", "a@b", "x/y?z#w")
def host_header(data: bytes) -> None:
    host = text_of(data)
    is_loopback(host)
    try:
        web, socket = public_address("", host)
    except BadHost:
        return
    assert web.partition("://")[2] == socket.partition("://")[2] == host
    assert not set("/?#@\\ \t\r\n") & set(host)


@target("10.0.0.7, 198.51.100.1", "https", "voice.example.com:443", "[2001:db8::1]:4711")
def proxy_headers(data: bytes) -> None:
    given = " ".join(text_of(data).split())
    headers = Headers([("Host", "inside"), *((name, given) for name in _FORWARDED)])
    believed = request_origin("10.0.0.7", "http", headers, ["10.0.0.0/8"])
    assert believed.client == "10.0.0.7" or ipaddress.ip_address(believed.client)
    assert believed.scheme in ("http", "https")
    assert not set("/?#@\\ ,") & set(believed.host)
    stranger = request_origin("198.51.100.1", "http", headers, ["10.0.0.0/8"])
    assert stranger == RequestOrigin("198.51.100.1", "http", "inside")
    assert not is_same_origin(given, stranger, "") or given.lower().endswith("//inside")


_FORWARDED: Final = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host")


def must_raise(expected: type[Exception], act: Callable[..., object], *arguments: object) -> None:
    with suppress(expected):
        act(*arguments)
        raise AssertionError("accepted")


@target("Bearer x", "Basic eDp5", "https://voice.example.com", "127.0.0.1:5000", "cross-site")
def credentials(data: bytes) -> None:
    """In every header that the gate reads: nobody guesses the token, and nobody far is near."""
    given = " ".join(text_of(data).split())
    gate = Gate(lambda: 0.0)
    for name in ("Authorization", "Origin", "Host", "Sec-Fetch-Site"):
        headers = Headers({"Host": "127.0.0.1", name: given})
        for token, peer in (("token-0123456789", "127.0.0.1"), ("", "198.51.100.1")):
            must_raise(NotAuthorised, gate.check, token, headers, peer)


@target("https://voice.example.com/incoming-call?x=%41&bodySHA256=00")
def signed_address(data: bytes) -> None:
    url = text_of(data)
    spelled = list(signature.spellings(url))
    assert len(spelled) < 50
    params = [("From", url), (url, "x")]
    given = signature.signature("token", url, params)
    assert signature.is_signed(["other", "token"], given, url, params)
    assert not signature.is_signed(["other"], given, url, params)
    assert not signature.is_signed(["token"], url, url, params)


@target(Tickets([b"k" * 32]).issue("CA" + "0" * 32, 0, lifetime=60))
def ticket(data: bytes) -> None:
    tickets = Tickets([b"another key of 32 bytes or so...."])
    must_raise(BadTicket, tickets.use, text_of(data), "CA" + "0" * 32, 1)


def _book(
    guests: Annotated[int, msgspec.Meta(ge=1, le=20)],
    name: str = "",
    more: dict[str, int] | None = None,
) -> None:
    """Book a table."""


_PARAMETERS: Final = parameters_of(_book, "book")


@target('{"guests":4}', '{"guests":4,"name":"x","more":{"a":1}}', "null", "")
def arguments(data: bytes) -> None:
    try:
        read = _PARAMETERS.read(text_of(data))
    except BadArguments as error:
        assert len(str(error)) < MAX_EXPLANATION + 100
        return
    assert 1 <= read["guests"] <= 20


@target(
    '{"type":"Settings","audio":{"input":{"encoding":"mulaw","sample_rate":8000}},"agent":{"think":'
    '{"provider":{"type":"open_ai","model":"m"},"functions":[{"name":"f","parameters":{}}]}}}'
)
def agents_settings(data: bytes) -> None:
    """What a client may send to `bridge agent`."""
    try:
        message = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return
    if isinstance(message, dict):
        with suppress(Refused):
            check_settings(message)


_UNDERSTANDING: Final = Understanding(load_dialogue())


@target("A table for 4 at 7:30 on Friday, please", "my name is anna", "goodbye")
def typed_words(data: bytes) -> None:
    _UNDERSTANDING.meaning(text_of(data))
    _UNDERSTANDING.answer(text_of(data), ["guests", "time", "day"])


@target("Hello {name}, {{literal}} {unknown}")
def template(data: bytes) -> None:
    given = text_of(data)
    filled, _ = fill(given, {"name": given})
    assert len(filled) <= len(given) * (1 + len(given))
    assert "{unknown}" not in fill("{name}", {"name": "{unknown}"})[1]


@target('{"name":"Ada","price":12.50,"x":null}')
def context_answer(data: bytes) -> None:
    try:
        context, ignored = read_context(data)
    except _UnusableError:
        return
    assert all(isinstance(value, str) for value in context.values())
    assert not set(context) & set(ignored)


@target(
    '[server]\nbind = "0.0.0.0:5000"\nworkers = 2\n[agent]\ngreeting = "hi"\n', "[call]\nframe_ms=1"
)
def configuration(data: bytes) -> None:
    try:
        config_text.parse(text_of(data))
    except config.ConfigError as error:
        assert config.printable(str(error)) == str(error)


@target(
    records.encode(records.CallRecord(call_sid="CA1", started_at=records.datetime.now(records.UTC)))
)
def spool_line(data: bytes) -> None:
    try:
        read = records.decode(data)
    except msgspec.DecodeError:
        return
    records.decode(records.encode(records.tidy(records.snapshot(read))))


@target("+15551234567", "call +1 555 123 4567 now", "00441234567890")
def number_in_a_log(data: bytes) -> None:
    shown = mask_number(text_of(data))
    assert not re.search(r"\+\d{8,}", shown, re.ASCII)
    secret = "secret-0123456789"
    assert secret not in _redactor([secret])(text_of(data) + secret + text_of(data))


@target("12#", "0123456789*#ABCD")
def keys(data: bytes) -> None:
    keypad = Keypad()
    for now, key in enumerate(text_of(data)):
        entered = keypad.press(key, now * 0.1)
        assert entered is None or set(entered) <= set("0123456789*#ABCD")


_HELLO: Final = UPGRADE + b"\r\n"


@target(
    _HELLO + frame(1, b"hi"),
    _HELLO + frame(1, b"h", fin=False) + frame(9, b"p") + frame(0, b"i") + frame(8, b"\x03\xe8"),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
def connection(data: bytes) -> None:
    """Bytes to the server's connection; another call beside it goes on, and nothing is left."""

    async def play() -> None:
        async with serving(Echo().app) as server:
            call = await server.live_call()
            peer = server.connect()
            half = len(data) // 2
            await peer.write(data[:half])
            await peer.write(data[half:])
            await call.say("still there?")
            heard: Any = await call.hear()
            assert heard.data == "still there?"
            peer.reset()
            await trio.sleep(100)
            assert server.connections == 1

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))
