"""The simulated phone against a little fake server over streams in memory, on a mock clock."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from twilio.request_validator import RequestValidator

from bridge.testing.phone import twiml
from bridge.testing.phone.media_socket import CLOSE_SECONDS, OPEN_SECONDS
from bridge.testing.phone.media_stream import SEND_SECONDS
from bridge.testing.phone.phone import (
    CallEndedError,
    PhoneFault,
    PhoneTimeoutError,
    SimulatedPhone,
    TwimlError,
    UnreachableError,
    WebhookError,
)
from bridge.testing.phone.strict import Clear, Mark, Media, MessageError, read_message
from bridge.testing.phone.webhook import WEBHOOK_SECONDS, sign

BASE = "http://bridge.test"
STREAM = "wss://media.test/media-stream"
TOKEN = "12345"
SECOND = bytes(range(160)) * 50  # a second of audio in which every frame and byte has its place

Handler = Callable[["FakeSocket"], Awaitable[None]]


def connect_to(url: str, inside: str = "", action: str | None = None, after: str = "") -> str:
    attribute = "" if action is None else f' action="{action}"'
    stream = f'<Stream url="{url}">{inside}</Stream>'
    return f"<Response><Connect{attribute}>{stream}</Connect>{after}</Response>"


@dataclass
class FakeSocket:
    """The server's end of a media socket, with what has come over it."""

    websocket: WebSocketConnection
    received: list[dict] = field(default_factory=list)
    sid: str = ""

    async def receive(self) -> dict:
        message = json.loads(await self.websocket.get_message())
        self.received.append(message)
        if message["event"] == "start":
            self.sid = message["streamSid"]
        return message

    async def until(self, event: str) -> dict:
        while (message := await self.receive())["event"] != event:
            pass
        return message

    async def send(self, message: dict) -> None:
        await self.websocket.send_message(json.dumps(message))

    async def media(self, audio: bytes) -> None:
        payload = base64.b64encode(audio).decode()
        await self.send({"event": "media", "streamSid": self.sid, "media": {"payload": payload}})

    async def mark(self, name: str) -> None:
        await self.send({"event": "mark", "streamSid": self.sid, "mark": {"name": name}})

    async def clear(self) -> None:
        await self.send({"event": "clear", "streamSid": self.sid})

    def of(self, event: str) -> list[dict]:
        return [message for message in self.received if message["event"] == event]

    def audio(self) -> bytes:
        return b"".join(base64.b64decode(m["media"]["payload"]) for m in self.of("media"))


async def listen(socket: FakeSocket) -> None:
    """A server that only listens until the phone has gone."""
    while True:
        await socket.receive()


@dataclass
class FakeServer:
    """Answers webhooks with `pages` by path, and hands media sockets to `handler`."""

    nursery: trio.Nursery
    pages: dict[str, str]
    handler: Handler = listen
    content_type: str = "text/xml"
    status: int = 200
    reject: int | None = None
    requests: list[tuple[str, dict[str, str], list[tuple[str, str]]]] = field(default_factory=list)
    upgrades: list[dict[str, str]] = field(default_factory=list)
    sockets: list[FakeSocket] = field(default_factory=list)

    async def open_stream(self, host: str, port: int, tls: bool) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        serve = self._serve_http if host == "bridge.test" else self._serve_socket
        self.nursery.start_soon(serve, server)
        return client

    async def _serve_http(self, stream: trio.abc.Stream) -> None:
        connection = h11.Connection(h11.SERVER)
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        target = head.target.decode()
        headers = {name.decode(): value.decode() for name, value in head.headers}
        form = parse_qsl(body.decode(), keep_blank_values=True)
        self.requests.append((head.method.decode() + " " + target, headers, form))
        page = self.pages[urlsplit(target).path].encode()
        answer = h11.Response(
            status_code=self.status,
            headers=[("Content-Type", self.content_type), ("Content-Length", str(len(page)))],
        )
        for event in (answer, h11.Data(data=page), h11.EndOfMessage()):
            await stream.send_all(connection.send(event))
        await stream.aclose()

    async def _serve_socket(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream, message_queue_size=64)
            self.upgrades.append({name.decode(): value.decode() for name, value in request.headers})
            if self.reject is not None:
                await request.reject(self.reject, body=b"no")
                await stream.aclose()
                return
            socket = FakeSocket(await request.accept())
            self.sockets.append(socket)
            try:
                await self.handler(socket)
            except ConnectionClosed:
                pass
            else:
                await socket.websocket.aclose()


@dataclass
class Scene:
    server: FakeServer
    phone: SimulatedPhone


@pytest.fixture
async def scene(nursery: trio.Nursery):
    """A way to set up a server and a phone that calls it."""

    def build(handler: Handler = listen, page: str | None = None, **options) -> Scene:
        pages = options.pop("pages", {}) | {"/incoming-call": page or connect_to(STREAM)}
        names = ("content_type", "status", "reject")
        server_options = {name: options.pop(name) for name in names if name in options}
        server = FakeServer(nursery, pages, handler, **server_options)
        return Scene(server, SimulatedPhone(open_stream=server.open_stream, **options))

    return build


# The webhook


async def test_webhook_carries_the_documented_form_with_unknown_geography_empty(
    scene, autojump_clock
):
    s = scene(from_number="+14155550100", to_number="+18005551212", caller_name="Ann & Bob")
    async with s.phone.place_call(BASE):
        pass
    [(line, headers, form)] = s.server.requests
    fields = dict(form)
    assert line == "POST /incoming-call"
    assert headers["content-type"].startswith("application/x-www-form-urlencoded")
    assert headers["host"] == "bridge.test"
    assert "x-twilio-signature" not in headers
    assert len(fields["CallSid"]) == len(fields["AccountSid"]) == 34
    assert fields["CallSid"].startswith("CA")
    assert fields["AccountSid"].startswith("AC")
    assert fields["From"] == fields["Caller"] == "+14155550100"
    assert fields["To"] == fields["Called"] == "+18005551212"
    assert fields["CallerName"] == "Ann & Bob"
    assert (fields["CallStatus"], fields["Direction"]) == ("ringing", "inbound")
    assert fields["ApiVersion"] == "2010-04-01"
    assert fields["FromCity"] == fields["CalledCountry"] == ""


async def test_webhook_and_media_socket_are_signed_as_the_official_validator_expects(
    scene, autojump_clock
):
    page = connect_to(STREAM, action="/after?x=1")
    after = "<Response><Hangup/></Response>"
    s = scene(close_at_once, page, pages={"/after": after}, auth_token=TOKEN)
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    validator = RequestValidator(TOKEN)
    for line, headers, form in s.server.requests:
        url = BASE + line.removeprefix("POST ")
        assert validator.validate(url, dict(form), headers["x-twilio-signature"])
    assert len(s.server.requests) == 2
    [upgrade] = s.server.upgrades
    assert upgrade["x-twilio-signature"] == RequestValidator(TOKEN).compute_signature(STREAM, {})


async def close_at_once(socket: FakeSocket) -> None:
    await socket.until("start")


U = "https://mycompany.com/myapp.php?foo=1&bar=2"
P = [
    ("CallSid", "CA1234567890ABCDE"),
    ("Digits", "1234"),
    ("From", "+14158675309"),
    ("To", "+18005551212"),
    ("Caller", "+14158675309"),
]
BODY_HASH = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
VECTORS = [
    (U, P, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
    ("http://mycompany.com:1234/myapp.php?foo=1&bar=2", P, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
    ("https://mycompany.com:443/myapp.php?foo=1&bar=2", P, "kvajT1Ptam85bY51eRf/AJRuM3w="),
    ("http://mycompany.com:80/myapp.php?foo=1&bar=2", P, "0ZXoZLH/DfblKGATFgpif+LLRf4="),
    (
        U,
        [
            ("Sid", "CA123"),
            ("SidAccount", "AC123"),
            ("Digits", "5678"),
            ("Digits", "1234"),
            ("Digits", "1234"),
        ],
        "IK+Dwps556ElfBT0I3Rgjkr1wJU=",
    ),
    (f"{U}&bodySHA256={BODY_HASH}", [], "a9nBmqA0ju/hNViExpshrM61xv4="),
    (
        f"https://mycompany.com/myapp.php?bodySHA256={BODY_HASH}",
        [],
        "y77kIzt2vzLz71DgmJGsen2scGs=",
    ),
    (
        "https://mycompany.com:443/myapp.php?foo=1&bar=2&bodySHA256="
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        [],
        "Ldidvp12m26NI7eqEvxnEpkd9Hc=",
    ),
    (
        "https://user:pass@mycompany.com/myapp.php?foo=1&bar=2",
        P,
        "CukzLTc1tT5dXEDIHm/tKBanW10=",
    ),
    (f"{U}&Body=It%27s+amazing", P, "TfZzewPq8wqrGlMfyAud8+/IvJ0="),
    (
        U,
        [
            ("CallSid", "CA1234567890ABCDE"),
            ("Caller", "+12349013030"),
            ("Digits", "1234"),
            ("From", "+12349013030"),
            ("To", "+18005551212"),
        ],
        "0/KCTR6DLpKmkAf8muzZqo1nDgQ=",
    ),
]


@pytest.mark.parametrize(("url", "params", "signature"), VECTORS)
def test_official_signature_vectors(url, params, signature):
    assert sign(url, params, TOKEN) == signature


@given(
    st.dictionaries(st.text(min_size=1), st.text(), max_size=8),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
)
def test_signatures_agree_with_the_official_library(params, token):
    ours = sign("https://example.com/a?b=%20", params.items(), token)
    theirs = RequestValidator(token).compute_signature("https://example.com/a?b=%20", params)
    assert ours == theirs


async def test_a_closed_port_is_unreachable(autojump_clock):
    async def refuse(host: str, port: int, tls: bool) -> trio.abc.Stream:
        raise ConnectionRefusedError(111, "Connection refused")

    phone = SimulatedPhone(open_stream=refuse)
    with pytest.raises(UnreachableError, match="Connection refused"):
        async with phone.place_call(BASE):
            pass


async def test_a_webhook_that_never_answers_is_given_up_after_fifteen_seconds(autojump_clock):
    peers = []

    async def silent(host: str, port: int, tls: bool) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        peers.append(server)
        return client

    began = trio.current_time()
    with pytest.raises(WebhookError, match="no answer within 15 s"):
        async with SimulatedPhone(open_stream=silent).place_call(BASE):
            pass
    assert trio.current_time() - began == pytest.approx(WEBHOOK_SECONDS)


@pytest.mark.parametrize("pause", [0.0, 3.0])
async def test_the_body_of_a_webhook_comes_after_its_head(nursery, autojump_clock, pause):
    """Servers and proxies must not take them for one segment (A2)."""
    received: list[tuple[float, bytes]] = []

    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        nursery.start_soon(refuse_at_the_end, server)
        return client

    async def refuse_at_the_end(stream: trio.abc.Stream) -> None:
        for _ in range(2):
            segment = await stream.receive_some()
            received.append((trio.current_time(), segment))
        await stream.send_all(b"HTTP/1.1 403 \r\nContent-Length: 0\r\n\r\n")

    phone = SimulatedPhone(open_stream=open_stream, webhook_pause=pause)
    with pytest.raises(WebhookError, match="HTTP status 403"):
        async with phone.place_call(BASE):
            pass
    (head_at, head), (body_at, body) = received
    assert body_at - head_at == pytest.approx(pause)
    assert head.endswith(b"\r\n\r\n")
    assert dict(parse_qsl(body.decode()))["CallStatus"] == "ringing"


async def test_a_webhook_that_is_refused_by_its_head_alone(nursery, autojump_clock):
    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        nursery.start_soon(refuse, server)
        return client

    async def refuse(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 403 \r\nContent-Length: 0\r\n\r\n")
        await stream.aclose()

    phone = SimulatedPhone(open_stream=open_stream, webhook_pause=1)
    with pytest.raises(WebhookError, match="HTTP status 403"):
        async with phone.place_call(BASE):
            pass


@pytest.mark.parametrize(
    ("page", "options", "code"),
    [
        ("this is not XML", {}, 12100),
        ("<!DOCTYPE x><Response/>", {}, 12100),
        ("<Reply/>", {}, 12100),
        ("<Response><Dance/></Response>", {}, 12200),
        ("<Response/>", {"content_type": "application/json"}, 12300),
        ("<Response/>", {"status": 500}, 11200),
        ("<Response><Connect/></Response>", {}, 12200),
        (connect_to(""), {}, 31923),
        (connect_to(STREAM + "?token=1"), {}, 31923),
        (connect_to("https://media.test/media-stream"), {}, 31922),
        (connect_to(STREAM, '<Parameter name="a"/>'), {}, 12200),
        (connect_to(STREAM, f'<Parameter name="a" value="{"x" * 499}"/>'), {}, 12200),
        (connect_to(STREAM).replace("<Stream ", '<Stream track="both_tracks" '), {}, 31941),
        (connect_to(STREAM).replace("<Stream ", '<Stream color="red" '), {}, 12200),
    ],
)
async def test_twiml_that_twilio_refuses(scene, autojump_clock, page, options, code):
    s = scene(page=page, **options)
    with pytest.raises((TwimlError, WebhookError)) as caught:
        async with s.phone.place_call(BASE):
            pass
    assert caught.value.code == code


def test_wss_to_the_called_host_is_opened_without_tls_and_said_so():
    address, note = twiml.dialled_address("wss://127.0.0.1:5000/m", "http://127.0.0.1:5000")
    assert (address.host, address.port, address.tls, address.target) == (
        "127.0.0.1",
        5000,
        False,
        "/m",
    )
    assert "opened as ws://" in note


@pytest.mark.parametrize(
    ("stream", "base", "port", "tls"),
    [
        ("wss://other.test/m", "http://bridge.test", 443, True),
        ("wss://bridge.test/m", "https://bridge.test", 443, True),
        ("wss://bridge.test/m", "http://bridge.test", 80, False),
        ("wss://bridge.test:444/m", "http://bridge.test", 444, True),
        ("ws://localhost:9/m", "https://bridge.test", 9, False),
        ("ws://[::1]:9/m", "https://bridge.test", 9, False),
        ("ws://bridge.test:81/m", "http://bridge.test:81", 81, False),
    ],
)
def test_where_a_stream_is_opened(stream, base, port, tls):
    address, _ = twiml.dialled_address(stream, base)
    assert (address.port, address.tls) == (port, tls)


@pytest.mark.parametrize("base", ["http://bridge.test", "https://other.test:81"])
def test_plain_ws_to_elsewhere_is_refused(base):
    with pytest.raises(TwimlError) as caught:
        twiml.dialled_address("ws://other.test:81/m", base)
    assert caught.value.code == 31922


# What the phone sends


async def test_messages_have_the_order_and_types_of_a_real_trace(scene, autojump_clock):
    inside = '<Parameter name="who" value="&quot;A&quot; &amp; &lt;B&gt;"/>'
    s = scene(page=connect_to(STREAM, inside))
    async with s.phone.place_call(BASE) as phone:
        await phone.say(SECOND[:320])
        await phone.press("1#")
    [socket] = s.server.sockets
    connected, start, first, second, *_ = socket.received
    sid, call = socket.sid, s.phone.call_sid
    account = dict(s.server.requests[0][2])["AccountSid"]
    assert connected == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    assert start == {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": account,
            "streamSid": sid,
            "callSid": call,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"who": '"A" & <B>'},
        },
        "streamSid": sid,
    }
    assert first == {
        "event": "media",
        "sequenceNumber": "2",
        "media": {
            "track": "inbound",
            "chunk": "1",
            "timestamp": "155",
            "payload": base64.b64encode(SECOND[:160]).decode(),
        },
        "streamSid": sid,
    }
    assert (second["sequenceNumber"], second["media"]["chunk"]) == ("3", "2")
    assert second["media"]["timestamp"] == "175"
    assert [m["dtmf"] for m in socket.of("dtmf")] == [
        {"track": "inbound_track", "digit": "1"},
        {"track": "inbound_track", "digit": "#"},
    ]
    last = socket.received[-1]
    assert last["event"] == "stop"
    assert last["stop"] == {"accountSid": account, "callSid": call}
    numbers = [int(m["sequenceNumber"]) for m in socket.received[1:]]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_frames_keep_to_the_clock_without_drift(scene, autojump_clock):
    arrivals = []

    async def note_arrivals(socket: FakeSocket) -> None:
        while True:
            if (await socket.receive())["event"] == "media":
                arrivals.append(trio.current_time())

    s = scene(note_arrivals)
    async with s.phone.place_call(BASE) as phone:
        await phone.say(SECOND * 10)
    assert len(arrivals) >= 500
    for n, at in enumerate(arrivals):
        assert at == pytest.approx(arrivals[0] + n * 0.02, abs=1e-9)


async def test_speech_arrives_complete_in_order_and_padded_to_whole_frames(scene, autojump_clock):
    s = scene(silence_frames=False)
    async with s.phone.place_call(BASE) as phone:
        await phone.say(SECOND[:1000])
        await phone.say(SECOND[:160])
    expected = SECOND[:1000] + b"\xff" * 120 + SECOND[:160]
    assert s.server.sockets[0].audio() == expected == s.phone.sent_audio


async def test_silence_is_sent_while_the_caller_says_nothing(scene, autojump_clock):
    s = scene()
    async with s.phone.place_call(BASE) as phone:
        await trio.sleep(0.99)
        assert phone.sent_audio == b"\xff" * 160 * 50
    assert s.server.sockets[0].audio() == s.phone.sent_audio


async def test_without_silence_frames_the_timestamps_still_follow_the_clock(scene, autojump_clock):
    s = scene(silence_frames=False)
    async with s.phone.place_call(BASE) as phone:
        await trio.sleep(2.01)
        await phone.say(SECOND[:320])
    media = [m["media"] for m in s.server.sockets[0].of("media")]
    assert [m["chunk"] for m in media] == ["1", "2"]
    assert [m["timestamp"] for m in media] == [str(155 + 2020), str(155 + 2040)]


async def test_a_caller_cancelled_in_mid_sentence_falls_silent(scene, autojump_clock):
    s = scene()
    async with s.phone.place_call(BASE) as phone:
        with trio.move_on_after(0.5):
            await phone.say(SECOND)
        await trio.sleep(0.5)
    sent = s.server.sockets[0].audio()
    assert sent.startswith(SECOND[: 25 * 160])
    assert set(sent[26 * 160 :]) == {0xFF}


async def test_strange_keys_are_refused(scene, autojump_clock):
    async with scene().phone.place_call(BASE) as phone:
        with pytest.raises(ValueError, match="no key"):
            await phone.press("1x")


# What the phone plays


async def test_marks_come_back_when_the_audio_before_them_has_played(scene, autojump_clock):
    echoes = []

    async def agent(socket: FakeSocket) -> None:
        await socket.until("start")
        began = trio.current_time()
        await socket.mark("nothing")
        await socket.media(SECOND)
        await socket.mark("first")
        await socket.media(SECOND[:4000])
        await socket.mark("second")
        for _ in range(3):
            echo = await socket.until("mark")
            echoes.append((echo["mark"]["name"], trio.current_time() - began))

    s = scene(agent, strict=True)
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_stream_closed()
    assert echoes == [
        ("nothing", pytest.approx(0, abs=1e-6)),
        ("first", pytest.approx(1.0, abs=1e-6)),
        ("second", pytest.approx(1.5, abs=1e-6)),
    ]
    assert phone.received_audio == SECOND + SECOND[:4000]


async def test_clear_stops_the_audio_and_sends_all_pending_marks_back_in_order(
    scene, autojump_clock
):
    echoes = []

    async def agent(socket: FakeSocket) -> None:
        await socket.until("start")
        await socket.media(SECOND)
        await socket.mark("a")
        await socket.media(SECOND)
        await socket.mark("b")
        await trio.sleep(0.25)
        began = trio.current_time()
        await socket.clear()
        await socket.mark("c")
        for _ in range(3):
            echo = await socket.until("mark")
            echoes.append((echo["mark"]["name"], trio.current_time() - began))

    s = scene(agent, silence_frames=False, strict=True)
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert [name for name, _ in echoes] == ["a", "b", "c"]
    assert all(after == pytest.approx(0, abs=1e-6) for _, after in echoes)
    assert phone.heard.startswith(SECOND[:2000])
    assert set(phone.heard[2000:]) <= {0xFF}
    assert [event.size for event in phone.events if event.kind == "clear"] == [14000]
    assert phone.heard_stretches == [(0.0, pytest.approx(0.25))]


async def test_waiting_for_the_agent(scene, autojump_clock):
    async def agent(socket: FakeSocket) -> None:
        await socket.until("start")
        await trio.sleep(1)
        await socket.media(SECOND)
        await trio.sleep(2)
        await socket.media(SECOND)
        await listen(socket)

    s = scene(agent, silence_frames=False)
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_heard(0.5)
        assert phone.elapsed == pytest.approx(1.5, abs=0.001)
        assert phone.queued == pytest.approx(0.5, abs=0.001)
        await phone.wait_played()
        assert phone.elapsed == pytest.approx(2.0)
        await phone.wait_quiet(1.5)
        assert phone.elapsed == pytest.approx(5.5)
        with pytest.raises(PhoneTimeoutError, match="9 s of audio"):
            await phone.wait_heard(9.0, timeout=3)
        assert phone.elapsed == pytest.approx(8.5)
    assert phone.heard_seconds == 2.0
    assert phone.heard[:8000] == b"\xff" * 8000
    assert phone.heard[8000:16000] == SECOND


# How calls end


async def test_after_the_server_closes_the_action_is_requested_and_carried_out(
    scene, autojump_clock
):
    after = "<Response><Say>Goodbye &amp; thanks</Say><Pause length='3'/><Hangup/></Response>"
    page = connect_to(STREAM, action="/after")
    s = scene(close_at_once, page, pages={"/after": after})
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert phone.verbs[1:] == [twiml.Say("Goodbye & thanks"), twiml.Pause(3.0), twiml.Hangup()]
    assert phone.ending == "completed"
    assert phone.elapsed == pytest.approx(3.0)
    line, _, form = s.server.requests[1]
    assert line == "POST /after"
    assert dict(form)["CallSid"] == phone.call_sid
    assert dict(form)["CallStatus"] == "in-progress"
    assert phone.faults == []
    assert [e.text for e in phone.events if e.kind == "closed"] == ["1000"]


async def test_without_an_action_the_next_verb_is_carried_out(scene, autojump_clock):
    s = scene(close_at_once, connect_to(STREAM, after="<Dial>+15551112222</Dial>"))
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert (phone.verbs[-1], phone.ending) == (twiml.Dial("+15551112222"), "dialled")


@pytest.mark.parametrize(
    ("result", "seconds", "ending", "told"),
    [
        ("completed", 45.0, "dialled", {"DialCallStatus": "completed", "DialCallDuration": "45"}),
        ("busy", 0.0, "completed", {"DialCallStatus": "busy"}),
        ("no-answer", 20.0, "completed", {"DialCallStatus": "no-answer"}),
        ("failed", 0.0, "completed", {"DialCallStatus": "failed"}),
    ],
)
async def test_the_result_of_a_dial_is_told_to_its_action(
    scene, autojump_clock, result, seconds, ending, told
):
    dial = "<Dial action='/dialled' timeout='20'><Number>+15551112222</Number></Dial>"
    pages = {"/dialled": "<Response><Say>That was it.</Say></Response>"}
    s = scene(
        close_at_once, connect_to(STREAM, after=dial), pages=pages, dials=[result], talk_seconds=45
    )
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert phone.verbs[-1] == twiml.Say("That was it.")
    assert (phone.ending, phone.elapsed) == (ending, pytest.approx(seconds))
    line, _, form = s.server.requests[-1]
    facts = {name: text for name, text in form if name.startswith("Dial") and name != "DialCallSid"}
    assert (line, facts, dict(form)["CallStatus"]) == ("POST /dialled", told, "in-progress")


@pytest.mark.parametrize("result", ["completed", "no-answer"])
async def test_a_caller_who_hangs_up_while_another_phone_is_dialled(scene, autojump_clock, result):
    """Its action is requested all the same, and its TwiML comes too late."""
    dial = "<Dial action='/dialled'>+15551112222</Dial>"
    page = f"<Response><Pause/>{dial}</Response>"
    pages = {"/dialled": "<Response><Say>Too late.</Say></Response>"}
    s = scene(listen, page, pages=pages, dials=[result], talk_seconds=60)
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_event("twiml", "dials +15551112222")
        await trio.sleep(5)
        await phone.hang_up()
    _, _, form = s.server.requests[-1]
    assert (dict(form)["DialCallStatus"], dict(form)["CallStatus"]) == (result, "completed")
    assert (phone.verbs[-1].number, phone.ending) == ("+15551112222", "caller_hung_up")


@pytest.mark.parametrize(
    ("dial", "shown"),
    [
        ("<Dial><Sip>sip:a@b.example</Sip></Dial>", twiml.Dial("sip:a@b.example")),
        ("<Dial><Client>ann</Client></Dial>", twiml.Dial("client:ann")),
        (
            "<Dial callerId='+15550001111' timeout='9'>"
            "<Number sendDigits='w1'>+15551112222</Number></Dial>",
            twiml.Dial("+15551112222", "+15550001111", 9.0, send_digits="w1"),
        ),
    ],
)
async def test_dial_is_read_with_its_noun(scene, autojump_clock, dial, shown):
    s = scene(listen, f"<Response>{dial}</Response>")
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert phone.verbs == [shown]


@pytest.mark.parametrize(
    "dial",
    [
        "<Dial/>",
        "<Dial caller='x'>+15551112222</Dial>",
        "<Dial><Queue>q</Queue></Dial>",
        "<Dial><Sip sendDigits='1'>sip:a@b</Sip></Dial>",
        "<Dial timeout='soon'>+15551112222</Dial>",
    ],
)
async def test_a_dial_that_twilio_refuses(scene, autojump_clock, dial):
    s = scene(listen, f"<Response>{dial}</Response>")
    with pytest.raises(TwimlError):
        async with s.phone.place_call(BASE):
            pass


async def test_a_caller_without_a_number_needs_a_caller_id(scene, autojump_clock):
    s = scene(listen, "<Response><Dial>+15551112222</Dial></Response>", from_number="client:ada")
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert [fault.code for fault in phone.faults] == [twiml.INVALID_CALLER_ID]
    assert phone.ending == "completed"


async def test_other_twiml_over_rest_takes_the_place_of_the_stream(scene, autojump_clock):
    s = scene(listen, connect_to(STREAM, action="/after"))
    async with s.phone.place_call(BASE) as phone:
        await phone.update("<Response><Say>Instead.</Say></Response>", BASE)
        await phone.wait_ended()
    assert phone.verbs[1:] == [twiml.Say("Instead.")]
    assert [line for line, _, _ in s.server.requests] == ["POST /incoming-call"]


async def test_a_redirect_to_the_webhook_opens_a_second_stream_of_the_same_call(
    scene, autojump_clock
):
    page = connect_to(STREAM, after="<Redirect>/incoming-call</Redirect>")
    s = scene(close_at_once, page)
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_event("started", count=2)
    first, second = s.server.sockets[:2]
    assert first.sid != second.sid
    assert {socket.received[1]["start"]["callSid"] for socket in (first, second)} == {
        phone.call_sid
    }


async def test_a_redirect_that_never_ends_fails_the_call(scene, autojump_clock):
    s = scene(page="<Response><Redirect method='GET'/></Response>")
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert phone.ending == "failed"
    assert "TwiML documents" in phone.faults[0].detail
    assert s.server.requests[1][0].startswith("GET /incoming-call?AccountSid=AC")


async def test_when_the_caller_hangs_up_nothing_more_is_requested(scene, autojump_clock):
    s = scene(page=connect_to(STREAM, action="/after"))
    async with s.phone.place_call(BASE) as phone:
        await phone.hang_up()
        assert phone.ending == "caller_hung_up"
        with pytest.raises(CallEndedError):
            await phone.say(SECOND)
        with pytest.raises(CallEndedError):
            await phone.wait_heard(1.0)
    assert len(s.server.requests) == 1
    assert s.server.sockets[0].received[-1]["event"] == "stop"
    assert s.server.sockets[0].websocket.closed.code == 1000


async def test_dropping_sends_no_stop_and_no_close(scene, autojump_clock):
    s = scene()
    async with s.phone.place_call(BASE) as phone:
        await phone.drop()
        assert phone.ending == "dropped"
    [socket] = s.server.sockets
    await trio.testing.wait_all_tasks_blocked()
    assert not socket.of("stop")
    assert socket.websocket.closed.code == 1006


async def test_hanging_up_while_twilio_pauses(scene, autojump_clock):
    s = scene(page="<Response><Pause length='40'/></Response>")
    with trio.fail_after(1):
        async with s.phone.place_call(BASE) as phone:
            pass
    assert phone.ending == "caller_hung_up"
    assert phone.stream_sid is None


async def test_a_call_refused_by_its_twiml(scene, autojump_clock):
    async with scene(page="<Response><Reject reason='busy'/></Response>").phone.place_call(
        BASE
    ) as phone:
        await phone.wait_ended()
    assert (phone.ending, phone.verbs) == ("rejected", [twiml.Reject("busy")])


async def test_a_refused_media_socket_is_a_fault_and_the_twiml_goes_on(scene, autojump_clock):
    s = scene(page=connect_to(STREAM, after="<Say>Sorry</Say>"), reject=403)
    async with s.phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert [fault.code for fault in phone.faults] == [31920]
    assert "403" in phone.faults[0].detail
    assert phone.verbs[-1] == twiml.Say("Sorry")


async def test_saying_fails_when_the_server_closes_in_mid_sentence(scene, autojump_clock):
    async def agent(socket: FakeSocket) -> None:
        for _ in range(10):
            await socket.until("media")

    s = scene(agent)
    async with s.phone.place_call(BASE) as phone:
        with pytest.raises(CallEndedError):
            await phone.say(SECOND)
        await phone.wait_ended()


async def test_a_server_that_never_answers_the_close_holds_the_phone_only_so_long(
    nursery, autojump_clock
):
    server = FakeServer(nursery, {"/incoming-call": connect_to(STREAM)})
    ends = []

    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        if host == "bridge.test":
            return await server.open_stream(host, port, tls)
        client, end = trio.testing.memory_stream_pair()
        nursery.start_soon(accept_and_ignore, end)
        ends.append(end)
        return client

    async def accept_and_ignore(end: trio.abc.Stream) -> None:
        async with trio.open_nursery() as inner:
            request = await wrap_server_stream(inner, end)
            await request.accept()
            inner.cancel_scope.cancel()

    phone = SimulatedPhone(open_stream=open_stream)
    async with phone.place_call(BASE):
        began = trio.current_time()
        await phone.hang_up()
        assert trio.current_time() - began == pytest.approx(CLOSE_SECONDS)


async def test_a_server_that_stays_silent_at_the_handshake_is_given_up(nursery, autojump_clock):
    server = FakeServer(nursery, {"/incoming-call": connect_to(STREAM)})
    ends = []

    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        if host == "bridge.test":
            return await server.open_stream(host, port, tls)
        client, end = trio.testing.memory_stream_pair()
        ends.append(end)
        return client

    async with SimulatedPhone(open_stream=open_stream).place_call(BASE) as phone:
        await phone.wait_ended()
    assert phone.elapsed == pytest.approx(OPEN_SECONDS)
    assert [fault.code for fault in phone.faults] == [31901]


async def test_a_server_that_stops_reading_loses_the_call(nursery, autojump_clock):
    async def agent(socket: FakeSocket) -> None:
        await trio.sleep_forever()

    server = FakeServer(nursery, {"/incoming-call": connect_to(STREAM)}, agent)
    stuck = trio.Event()

    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        stream = await server.open_stream(host, port, tls)
        if host == "media.test":
            deliver = stream.send_stream.send_all_hook

            async def hook() -> None:
                if stuck.is_set():
                    await trio.sleep_forever()
                await deliver()

            stream.send_stream.send_all_hook = hook
        return stream

    async with SimulatedPhone(open_stream=open_stream).place_call(BASE) as phone:
        began = trio.current_time()
        stuck.set()
        await phone.wait_ended()
    assert trio.current_time() - began == pytest.approx(SEND_SECONDS, abs=0.1)
    assert phone.faults[0].code == 31930
    nursery.cancel_scope.cancel()


async def test_a_connection_that_breaks_is_a_fault(scene, autojump_clock):
    async def agent(socket: FakeSocket) -> None:
        await socket.until("start")
        await trio.aclose_forcefully(socket.websocket._stream)

    async with scene(agent).phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert [fault.code for fault in phone.faults] == [31903]


async def test_cancelled_from_outside_the_socket_is_still_closed_properly(scene, autojump_clock):
    s = scene()
    with trio.move_on_after(1):
        async with s.phone.place_call(BASE):
            await trio.sleep_forever()
    assert s.server.sockets[0].websocket.closed.code == 1000
    assert s.phone.elapsed == pytest.approx(1.0)


async def test_an_error_in_the_callers_script_comes_out_bare(scene, autojump_clock):
    s = scene()
    with pytest.raises(ZeroDivisionError):
        async with s.phone.place_call(BASE):
            _ = 1 / 0
    assert s.phone.ending == "caller_hung_up"


async def test_one_phone_places_one_call(scene, autojump_clock):
    phone = scene().phone
    async with phone.place_call(BASE):
        pass
    with pytest.raises(RuntimeError):
        async with phone.place_call(BASE):
            pass


async def test_a_call_takes_its_time_on_trios_clock(scene, autojump_clock):
    s = scene(silence_frames=False)
    async with s.phone.place_call(BASE) as phone:
        await trio.sleep(600)
    assert phone.elapsed == pytest.approx(600)


# Strictness

SID = "MZ" + "0" * 32
MEDIA = {"event": "media", "streamSid": SID, "media": {"payload": "/w=="}}
MARK = {"event": "mark", "streamSid": SID, "mark": {"name": "m"}}
CLEAR = {"event": "clear", "streamSid": SID}


def test_exactly_the_documented_messages_are_taken():
    assert read_message(json.dumps(MEDIA), SID) == Media(b"\xff")
    assert read_message(json.dumps(MARK), SID) == Mark("m")
    assert read_message(json.dumps(CLEAR), SID) == Clear()


WAV_HEADER = base64.b64encode(b"RIFF\x24\x00\x00\x00WAVEfmt ").decode()


@pytest.mark.parametrize(
    ("message", "code", "why"),
    [
        (b"{}", 31950, "binary"),
        ("{", 31951, "not JSON"),
        ("[" * 100_000, 31951, "not JSON"),
        ("[]", 31951, "not a JSON object"),
        ("{}", 31951, "unknown event None"),
        (CLEAR | {"event": "Clear"}, 31951, "unknown event 'Clear'"),
        (CLEAR | {"event": ["clear"]}, 31951, "unknown event"),
        ({"event": "clear"}, 31951, "lacks `streamSid`"),
        ({"event": "clear", "stream_sid": SID}, 31951, "lacks `streamSid`"),
        (CLEAR | {"streamSid": "MZ1"}, 31951, "not this stream's"),
        (CLEAR | {"streamSid": None}, 31951, "not this stream's"),
        (CLEAR | {"sequenceNumber": "1"}, 31951, "extra `sequenceNumber`"),
        (MARK | {"mark": {}}, 31951, "`mark.name` is missing"),
        (MARK | {"mark": {"name": 1}}, 31951, "not a string"),
        (MARK | {"mark": {"name": "a", "at": 1}}, 31951, "extra `at`"),
        (MARK | {"mark": "a"}, 31951, "not an object"),
        (MEDIA | {"media": {"payload": "/w==", "track": "outbound"}}, 31951, "extra `track`"),
        (MEDIA | {"media": {"payload": "/w"}}, 31951, "not base64"),
        (MEDIA | {"media": {"payload": "/w==\n"}}, 31951, "not base64"),
        (MEDIA | {"media": {"payload": "é"}}, 31951, "not base64"),
        (MEDIA | {"media": {"payload": ""}}, 31951, "empty"),
        (MEDIA | {"media": {"payload": None}}, 31951, "not a string"),
        (MEDIA | {"media": {"payload": WAV_HEADER}}, 31951, "WAV header"),
    ],
)
def test_everything_else_is_twilios_warning(message, code, why):
    data = json.dumps(message) if isinstance(message, dict) else message
    with pytest.raises(MessageError, match=why) as caught:
        read_message(data, SID)
    assert caught.value.code == code


def test_before_start_nothing_is_valid():
    with pytest.raises(MessageError, match="before `start`"):
        read_message(json.dumps(CLEAR), None)


@given(st.one_of(st.text(), st.binary(), st.dictionaries(st.text(), st.text()).map(json.dumps)))
def test_no_message_breaks_the_reader(message):
    with pytest.raises(MessageError):
        read_message(message, SID)


async def test_faults_are_recorded_the_call_goes_on_and_strict_raises_at_its_end(
    scene, autojump_clock
):
    async def agent(socket: FakeSocket) -> None:
        await socket.until("start")
        await socket.websocket.send_message(b"binary")
        await socket.send({"event": "hello"})
        await socket.media(SECOND)
        await listen(socket)

    s = scene(agent, strict=True)
    with pytest.raises(PhoneFault, match="binary") as caught:
        async with s.phone.place_call(BASE) as phone:
            await phone.wait_heard(1.0)
    assert [fault.code for fault in caught.value.faults] == [31950, 31951]
    assert s.phone.received_audio == SECOND


async def fault_of(phone: SimulatedPhone) -> str:
    return (await phone.wait_event("fault")).text


async def test_strict_does_not_hide_the_error_of_the_script(scene, autojump_clock):
    async def agent(socket: FakeSocket) -> None:
        await socket.until("start")
        await socket.websocket.send_message(b"binary")
        await listen(socket)

    s = scene(agent, strict=True)
    with pytest.raises(ZeroDivisionError):
        async with s.phone.place_call(BASE) as phone:
            _ = len(await fault_of(phone)) / 0


async def test_a_broken_websocket_is_a_protocol_error(scene, autojump_clock):
    async def agent(socket: FakeSocket) -> None:
        await socket.until("start")
        await socket.websocket._stream.send_all(b"\x81\x02\xff\xff")  # text that is not UTF-8
        await listen(socket)

    async with scene(agent).phone.place_call(BASE) as phone:
        await phone.wait_ended()
    assert [fault.code for fault in phone.faults] == [31924], phone.events
