"""The routes: what Twilio's webhooks are answered, whatever comes in their forms and headers.

Every document is read by the simulated phone's strict reader, and compared with what Twilio's own
builder writes. No call is carried here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import pytest
import trio
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from quart_trio import QuartTrio
from twilio.twiml.voice_response import Connect, VoiceResponse

from bridge.admission.entrance import LAME_DUCK_SECONDS, RESERVED_BRIEFLY
from bridge.config.file import FixedConfig
from bridge.config.words import Words
from bridge.http.app import create_app
from bridge.http.twilio_hooks import ELSEWHERE
from bridge.outcome import Outcome
from bridge.records.record import CallRecord
from bridge.testing.phone.twiml import ConnectStream, Dial, Hangup, Redirect, Say, Verb, read_twiml
from bridge.testing.phone.webhook import sign
from tests.world import AUTH_TOKEN, SECRETS, settings

NGROK = "3f2a-198-51-100-7.ngrok-free.app"
CALL_SID = "CA" + "0123456789abcdef" * 2
FORM = {"From": "+15551234567", "To": "+15557654321", "CallSid": CALL_SID}
FORM_TYPE = {"Content-Type": "application/x-www-form-urlencoded"}

TICKET_IN_XML = re.compile(r'value="phone\.[A-Za-z0-9]{34}\.[A-Za-z0-9_.-]{60,80}"')

BUSY = [Say(Words().busy), Hangup()]

# Twilio: name and value of a <Parameter> together have fewer than 500 characters.
LIMIT = 499


def application(**tables: dict[str, Any]) -> QuartTrio:
    app = create_app(FixedConfig(settings(**tables)), SECRETS)
    app.extensions["bridge"].prepare()
    return app


async def ask(
    path: str,
    form: dict[str, str] | bytes | None = None,
    *,
    host: str = NGROK,
    app: QuartTrio | None = None,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> Any:
    """The response to one request of Twilio's, signed, as it came."""
    app = app or application()
    # Without cookies, because the client's cookie jar refuses hosts that a server may be sent.
    client = app.test_client(use_cookies=False)
    body = {"data": form} if isinstance(form, bytes) else {"form": form} if form else {}
    public_url = app.extensions["bridge"].settings_now().server.public_url
    fields: list[tuple[str, str]] = []
    if isinstance(form, bytes):
        fields = parse_qsl(form.decode(errors="replace"), keep_blank_values=True)
    elif form:
        fields = list(form.items())
    signature = sign((public_url or f"https://{host}") + path, fields, AUTH_TOKEN)
    given = {"Host": host, "X-Twilio-Signature": signature, **(headers or {})}
    return await client.open(path, method=method, headers=given, **body)


async def document(*args: Any, **options: Any) -> bytes:
    """The TwiML of a request that was answered with it."""
    response = await ask(*args, **options)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/xml; charset=utf-8"
    body: bytes = await response.get_data()
    return body


async def verbs(*args: Any, **options: Any) -> list[Verb]:
    """The verbs of that TwiML, as Twilio reads them."""
    body = await document(*args, **options)
    return read_twiml(body, "text/xml; charset=utf-8", f"https://{NGROK}/incoming-call")


async def connecting(*args: Any, **options: Any) -> ConnectStream:
    """The one verb of a call that is taken, with all of its parameters but the ticket."""
    (verb,) = await verbs(*args, **options)
    assert isinstance(verb, ConnectStream)
    return replace(verb, parameters=without_ticket(verb.parameters))


def without_ticket(parameters: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    (ticket,) = [value for name, value in parameters if name == "ticket"]
    assert TICKET_IN_XML.fullmatch(f'value="{ticket}"')
    return tuple(one for one in parameters if one[0] != "ticket")


def canonical(xml: bytes | str) -> str:
    """An XML document in the one form that equal ones have, and without a ticket's text."""
    text = xml.decode() if isinstance(xml, bytes) else xml
    return ElementTree.canonicalize(TICKET_IN_XML.sub('value="TICKET"', text), strip_text=True)


def built_by_twilio(web: str, socket: str, parameters: dict[str, str]) -> str:
    response, connect = VoiceResponse(), Connect(action=f"{web}/call-ended")
    stream = connect.stream(url=f"{socket}/media-stream")
    for name, value in {**parameters, "ticket": "TICKET"}.items():
        stream.parameter(name=name, value=value)
    response.append(connect)
    return canonical(str(response))


# ---- where Twilio is sent -----------------------------------------------------------------------

HOSTS = [
    (NGROK, "s"),
    ("voice.example.com", "s"),
    ("voice.example.com:8443", "s"),
    ("VOICE.Example.COM", "s"),
    ("198.51.100.7:5000", "s"),
    ("[2001:db8::7]:5000", "s"),
    ("localhost.example.com", "s"),
    ("127.0.0.1:5000", ""),
    ("127.0.0.1", ""),
    ("localhost:5000", ""),
    ("[::1]:5000", ""),
    # No hosts, and no markup either.
    ('a"onclick="b', "s"),
    ("a'b", "s"),
    ("a<b>c", "s"),
    ('"><Hangup>', "s"),
    ("a&b", "s"),
    ("a&amp;b", "s"),
    ("-->", "s"),
    ("a%2fb", "s"),
]


@pytest.mark.parametrize(("host", "secure"), HOSTS)
async def test_twilio_is_sent_back_to_the_host_it_asked_for(host: str, secure: str) -> None:
    """Encrypted but on this machine, escaped whatever it is, as Twilio's own builder writes it."""
    body = await document("/incoming-call", FORM, host=host)
    web, socket = f"http{secure}://{host}", f"ws{secure}://{host}"
    assert canonical(body) == built_by_twilio(web, socket, FORM)
    (verb,) = read_twiml(body, "text/xml", f"https://{NGROK}/incoming-call")
    assert isinstance(verb, ConnectStream)
    assert replace(verb, parameters=without_ticket(verb.parameters)) == ConnectStream(
        url=f"{socket}/media-stream",
        parameters=tuple(FORM.items()),
        action=f"{web}/call-ended",
        method="POST",
    )


@pytest.mark.parametrize("host", ["]]>", "<![CDATA[a", "[::1"])
async def test_a_bracket_in_a_host_is_no_markup(host: str) -> None:
    body = await document("/incoming-call", FORM, host=host)
    assert canonical(body) == built_by_twilio(f"https://{host}", f"wss://{host}", FORM)


@pytest.mark.parametrize(
    "host", ["", " ", "a b", "a\tb", "a/b", "a?b", "a?", "a#b", "a#", "a@b", "a\\b", "//a"]
)
async def test_a_host_that_would_change_the_address_is_refused(host: str) -> None:
    response = await ask("/incoming-call", FORM, host=host)
    assert response.status_code == 400
    text = await response.get_data(as_text=True)
    assert "server.public_url" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64])
@pytest.mark.parametrize("path", ["/incoming-call", "/call-ended"])
async def test_a_host_with_an_impossible_label_is_refused(host: str, path: str) -> None:
    assert (await ask(path, FORM, host=host)).status_code == 400


@pytest.mark.parametrize(
    ("public_url", "socket"),
    [
        ("https://voice.example.com", "wss://voice.example.com"),
        ("https://voice.example.com:8443", "wss://voice.example.com:8443"),
        ("https://example.com/phone/eu", "wss://example.com/phone/eu"),
        ("http://127.0.0.1:5000", "ws://127.0.0.1:5000"),
    ],
)
@pytest.mark.parametrize("host", [NGROK, "a?b", ""])
async def test_the_public_url_wins_over_any_host(public_url: str, socket: str, host: str) -> None:
    app = application(server={"public_url": public_url})
    body = await document("/incoming-call", FORM, host=host, app=app)
    assert canonical(body) == built_by_twilio(public_url, socket, FORM)


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"])
async def test_forwarding_headers_of_untrusted_peers_are_ignored(name: str) -> None:
    """No proxy is trusted unless the configuration names it."""
    verb = await connecting("/incoming-call", FORM, headers={name: "evil.example"})
    assert verb.url == f"wss://{NGROK}/media-stream"


async def test_a_query_string_of_the_webhook_does_not_reach_the_stream() -> None:
    verb = await connecting("/incoming-call?team=sales&x=%22", FORM)
    assert verb.url == f"wss://{NGROK}/media-stream"
    assert verb.action == f"https://{NGROK}/call-ended"


# ---- who calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caller",
    [
        "anonymous",
        "client:anna",
        "sip:anna@example.com;transport=tls",
        "+1 (555) 123-4567",
        '"><Hangup/><Say>',
        "'&amp;&lt;&#0;",
        "]]><!--",
        "<![CDATA[x]]>",
        "<!DOCTYPE a>",
        "Jürgen 山田 🎺",
        " both ends ",
        "two\nlines\tand\ra tab",
        "a=b&c=d%20+",
    ],
)
@pytest.mark.parametrize("field", ["From", "To"])
async def test_what_xml_can_say_comes_out_as_sent(caller: str, field: str) -> None:
    form = {**FORM, field: caller}
    verb = await connecting("/incoming-call", form)
    assert dict(verb.parameters) == form


printable = st.text(
    st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Zs"]), max_size=200
)


@given(caller=printable, called=printable)
@effort(max_examples=30)
async def test_parameters_come_out_as_sent(caller: str, called: str) -> None:
    form = {"From": caller, "To": called, "CallSid": CALL_SID}
    given_ = {name: value for name, value in form.items() if value}
    verb = await connecting("/incoming-call", form)
    assert dict(verb.parameters) == given_


@pytest.mark.parametrize("character", ["\x00", "\x08", "\x0b", "\x1b", "\x1f", "\ufffe", "\uffff"])
async def test_what_xml_cannot_say_is_replaced(character: str) -> None:
    """XML 1.0 has no way to write it; the call is worth more than the character."""
    verb = await connecting("/incoming-call", {**FORM, "From": f"a{character}b"})
    assert dict(verb.parameters) == {**FORM, "From": "a\ufffdb"}


@pytest.mark.parametrize(
    "body",
    [
        b"From=%ED%A0%80&To=%FF%FE",  # half a surrogate pair, and no UTF-8 at all
        b"From=%&To=%G0",
        b"&&&==&=&From",
        b"From[]=1&From[a]=2",
        b"",
    ],
)
async def test_a_broken_form_does_not_lose_the_call(body: bytes) -> None:
    body += f"&CallSid={CALL_SID}".encode()
    verb = await connecting("/incoming-call", body, headers=FORM_TYPE)
    assert verb.url == f"wss://{NGROK}/media-stream"


@pytest.mark.parametrize("sid", ["", "CA1", CALL_SID + "0", "CA" + "g" * 32, "<&>\x00", "\n"])
async def test_a_webhook_without_a_call_is_a_bad_request(sid: str) -> None:
    """A call's slot and ticket go by its SID."""
    for form in ({**FORM, "CallSid": sid}, {"From": "+15551234567"}):
        response = await ask("/incoming-call", form)
        assert response.status_code == 400
        assert "CallSid" in await response.get_data(as_text=True)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"From": "+15551234567"}'),
        ("text/plain", b"From=%2B15551234567"),
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\nbroken off"),
    ],
)
async def test_a_body_that_is_no_form_needs_its_hash_and_is_no_call(kind: str, body: bytes) -> None:
    """Twilio signs the address alone then, and the hash of the body in it."""
    headers = {"Content-Type": kind}
    for path, status in (
        ("/incoming-call", 401),
        (f"/incoming-call?bodySHA256={sha256(b'').hexdigest()}", 401),
        (f"/incoming-call?bodySHA256={sha256(body).hexdigest()}", 400),
    ):
        signature = sign(f"https://{NGROK}{path}", (), AUTH_TOKEN)
        response = await ask(path, body, headers={**headers, "X-Twilio-Signature": signature})
        assert response.status_code == status


@pytest.mark.parametrize("missing", ["From", "To"])
async def test_what_is_missing_or_empty_is_left_out(missing: str) -> None:
    rest = {name: value for name, value in FORM.items() if name != missing}
    assert dict((await connecting("/incoming-call", rest)).parameters) == rest
    assert dict((await connecting("/incoming-call", {**FORM, missing: ""})).parameters) == rest


async def test_only_what_a_call_needs_is_passed_on() -> None:
    """Twilio may add fields any day; what it sends is not all for the agent to see."""
    more = {"CallerName": "Anna", "AccountSid": "AC1", "FromCity": "", "StirVerstat": "A"}
    assert dict((await connecting("/incoming-call", {**more, **FORM})).parameters) == FORM


@pytest.mark.parametrize("field", ["From", "To"])
@pytest.mark.parametrize("character", ["x", "é", "🎺", "&", '"'])
async def test_a_parameter_is_cut_at_twilios_limit_and_not_before(
    field: str, character: str
) -> None:
    longest = character * (LIMIT - len(field))
    for sent in (longest, longest + character, character * 2000):
        verb = await connecting("/incoming-call", {**FORM, field: sent})
        assert dict(verb.parameters) == {**FORM, field: longest}


# ---- when there is no room ----------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["draining", "full"])
async def test_a_call_too_many_hears_busy_and_never_silence(reason: str) -> None:
    tables = {"server": {"max_calls": 1}}
    for more, expected in (
        ({}, BUSY),
        (
            {"overflow_url": "https://example.com/busy.xml?a=1&b=2"},
            [Redirect("https://example.com/busy.xml?a=1&b=2", "POST")],
        ),
    ):
        app = application(server={**tables["server"], **more})
        bridge = app.extensions["bridge"]
        bridge.prepare()
        if reason == "draining":
            bridge.entrance.drain()
        else:
            await connecting("/incoming-call", {**FORM, "CallSid": "CA" + "f" * 32}, app=app)
        assert await verbs("/incoming-call", FORM, app=app) == expected
        response = await ask("/readyz", app=app, method="GET")
        assert response.status_code == 503
        assert reason in await response.get_data(as_text=True)
        # What is on goes on.
        assert await verbs("/call-ended", FORM, app=app) == [Hangup()]
        assert (await ask("/healthz", app=app, method="GET")).status_code == 200


async def test_a_server_that_begins_to_drain_says_so_and_still_takes_calls(
    autojump_clock: Any,
) -> None:
    """Load balancers need a moment to notice, and Twilio tries no other server (A2)."""
    app = application()
    bridge = app.extensions["bridge"]
    bridge.prepare()
    bridge.begin_drain()
    assert (await ask("/readyz", app=app, method="GET")).status_code == 503
    await connecting("/incoming-call", FORM, app=app)
    await trio.sleep(LAME_DUCK_SECONDS)
    assert await verbs("/incoming-call", {**FORM, "CallSid": "CA" + "f" * 32}, app=app) == BUSY
    # A call that has a slot keeps it, also when Twilio or a proxy asks again.
    await connecting("/incoming-call", FORM, app=app)
    assert bridge.expects_calls


@pytest.mark.parametrize("step", ["begin_drain", "end_calls"])
async def test_a_server_without_time_to_drain_takes_no_more_calls(step: str) -> None:
    app = application(server={"drain_seconds": 0 if step == "begin_drain" else 60})
    bridge = app.extensions["bridge"]
    bridge.prepare()
    getattr(bridge, step)()
    assert await verbs("/incoming-call", FORM, app=app) == BUSY


@pytest.mark.parametrize("reason", ["draining", "full"])
async def test_a_proxy_that_can_ask_another_server_is_told_to(reason: str) -> None:
    """A header of its own says that it can; then the words are not for the caller yet. A proxy that
    finds no server passes them on as 200."""
    app = application(server={"max_calls": 1})
    if reason == "draining":
        app.extensions["bridge"].entrance.drain()
    else:
        await connecting("/incoming-call", {**FORM, "CallSid": "CA" + "f" * 32}, app=app)
    response = await ask("/incoming-call", FORM, app=app, headers={ELSEWHERE: "yes"})
    assert response.status_code == 503
    assert response.content_type.startswith("text/xml")
    assert Words().busy in await response.get_data(as_text=True)
    # What is on goes on, also through such a proxy.
    response = await ask("/call-ended", FORM, app=app, headers={ELSEWHERE: "yes"})
    assert response.status_code == 200


async def test_behind_such_a_proxy_the_socket_is_expected_here_or_elsewhere(
    autojump_clock: Any,
) -> None:
    """So a line is reserved briefly, and a call that another server announced is not refused."""
    app = application()
    entrance = app.extensions["bridge"].entrance
    forged = {ELSEWHERE: "yes", "X-Twilio-Signature": "forged"}
    assert (await ask("/incoming-call", FORM, app=app, headers=forged)).status_code == 401
    assert not entrance.spans_processes(settings())
    response = await ask("/incoming-call", FORM, app=app, headers={ELSEWHERE: "yes"})
    assert response.status_code == 200
    assert entrance.spans_processes(settings())
    await trio.sleep(RESERVED_BRIEFLY)
    assert len(entrance.slots) == 0


async def test_a_server_with_room_is_ready() -> None:
    assert (await ask("/readyz", method="GET")).status_code == 200


# ---- what comes after the agent -----------------------------------------------------------------


def remember(app: QuartTrio, outcome: Outcome, transfer_to: str = "") -> None:
    """As if the call had been carried here and had ended so."""
    record = CallRecord(
        call_sid=CALL_SID,
        started_at=datetime.now(UTC),
        outcome=str(outcome),
        transfer_to=transfer_to,
    )
    app.extensions["bridge"].recorder.finish(record)


APOLOGISES = {"agent_unreachable", "agent_failed", "internal_error", "server_lost"}


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_every_outcome_is_followed_by_something(
    outcome: Outcome,
) -> None:
    """An apology when it is our side's fault, and always an end: never an empty document."""
    app = application(words={"apology": "Sorry."})
    remember(app, outcome, "+15551112222")
    before: list[Verb] = [Say("Sorry.")] if outcome in APOLOGISES else []
    if outcome is Outcome.HANDED_OVER:
        action = f"https://{NGROK}/call-ended?transfer="
        before = [Dial("+15551112222", FORM["From"], 20.0, action)]
    assert await verbs("/call-ended", FORM, app=app) == [*before, Hangup()]


@pytest.mark.parametrize("form", [FORM, {"CallSid": ""}, {"CallSid": "<&>\x00"}, None])
async def test_after_an_unknown_call_comes_a_hang_up(form: dict[str, str] | None) -> None:
    assert await verbs("/call-ended", form) == [Hangup()]


@pytest.mark.parametrize(
    ("apology", "said"),
    [
        ("", []),
        ("Sorry & <goodbye>.", [Say("Sorry & <goodbye>.")]),
        ("Es tut uns leid. 申し訳ございません。", [Say("Es tut uns leid. 申し訳ございません。")]),
        ("bell\x07", [Say("bell\ufffd")]),
    ],
)
async def test_the_apology_is_said_as_configured(apology: str, said: list[Verb]) -> None:
    app = application(words={"apology": apology})
    remember(app, Outcome.AGENT_FAILED)
    assert await verbs("/call-ended", FORM, app=app) == [*said, Hangup()]


STUDIO = "https://webhooks.twilio.com/v1/Accounts/AC1/Flows/FW1?FlowEvent=return&x=1"


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_other_twiml_may_take_over_when_the_agent_is_done(outcome: Outcome) -> None:
    """Not from an apology or a transfer, and not for a call that an operator has ended."""
    app = application(call={"after_url": STUDIO})
    remember(app, outcome, "+15551112222")
    last = (await verbs("/call-ended", FORM, app=app))[-1]
    if outcome in {*APOLOGISES, "transferred", "handed_over", "operator_hung_up"}:
        assert last == Hangup()
    else:
        assert last == Redirect(STUDIO, "POST")


async def test_each_agent_has_its_own_words_and_its_own_way_on() -> None:
    words = {"language": "fr-FR", "voice": "Polly.Lea-Neural", "apology": "Désolée."}
    agent = {"numbers": [FORM["To"]], "words": words, "call": {"after_url": STUDIO}}
    app = application(agents={"accueil & co": agent})
    verb = await connecting("/incoming-call", FORM, app=app)
    assert verb.action == f"https://{NGROK}/call-ended?agent=accueil+%26+co"
    path = verb.action.removeprefix(f"https://{NGROK}")
    remember(app, Outcome.AGENT_FAILED)
    assert await verbs(path, FORM, app=app) == [
        Say("Désolée.", "fr-FR", "Polly.Lea-Neural"),
        Hangup(),
    ]
    remember(app, Outcome.AGENT_ENDED)
    assert await verbs(path, FORM, app=app) == [Redirect(STUDIO, "POST")]
    assert await verbs("/call-ended", FORM, app=app) == [Hangup()]


async def test_all_who_withhold_their_number_share_one_limit() -> None:
    for number, caller in enumerate(("", "Anonymous", "Restricted", "+266696687", "anonymous")):
        app = application(limits={"calls_per_number": 1})
        for other, expected in (("Unavailable", ConnectStream), (caller, Say)):
            sid = f"CA{number}{'a' if other == caller else 'b'}" + "0" * 30
            first, *_ = await verbs(
                "/incoming-call", {**FORM, "CallSid": sid, "From": other}, app=app
            )
            assert isinstance(first, expected)


async def test_an_agent_may_take_more_calls_of_one_caller_than_others() -> None:
    agent = {"numbers": ["+15550001111"], "limits": {"calls_per_number": 2}}
    app = application(limits={"calls_per_number": 1}, agents={"desk": agent})
    taken = []
    for number, called in enumerate([FORM["To"], FORM["To"], "+15550001111", "+15550001111"]):
        form = {**FORM, "CallSid": f"CA{number}" + "0" * 31, "To": called}
        first, *_ = await verbs("/incoming-call", form, app=app)
        taken.append(isinstance(first, ConnectStream))
    assert taken == [True, False, True, False]


async def test_what_comes_after_a_call_needs_no_host() -> None:
    """Its answer holds no address: a strange Host is no reason to leave the caller in silence."""
    assert await verbs("/call-ended", FORM, host="a?b") == [Hangup()]


# ---- health, and what is refused ----------------------------------------------------------------


@pytest.mark.parametrize("host", [NGROK, "10.0.0.7:5000", "a?b"])
async def test_healthz_answers_any_prober(host: str) -> None:
    response = await ask("/healthz", method="GET", host=host)
    assert response.status_code == 200
    assert await response.get_data(as_text=True) == "ok\n"
    assert (await ask("/healthz", method="HEAD", host=host)).status_code == 200


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/incoming-call", "PUT"),
        ("/incoming-call", "DELETE"),
        ("/call-ended", "PUT"),
        ("/", "POST"),
        ("/softphone", "POST"),
        ("/healthz", "POST"),
        ("/media-stream", "POST"),
    ],
)
async def test_a_wrong_method_is_refused(path: str, method: str) -> None:
    response = await ask(path, method=method)
    assert response.status_code == 405
    assert method not in response.headers["Allow"].split(", ")


async def test_the_media_socket_is_no_page() -> None:
    assert (await ask("/media-stream", method="GET")).status_code == 400


@pytest.mark.parametrize("path", ["/nope", "/incoming-call/", "/incoming-call/x"])
async def test_nothing_else_is_here(path: str) -> None:
    assert (await ask(path, FORM)).status_code == 404


@pytest.mark.parametrize("path", ["/incoming-call", "/call-ended"])
async def test_a_form_may_have_64_kib_and_not_a_byte_more(path: str) -> None:
    fits = f"CallSid={CALL_SID}&x=".encode().ljust(64 * 1024, b"y")
    assert (await ask(path, fits, headers=FORM_TYPE)).status_code == 200
    assert (await ask(path, fits + b"y", headers=FORM_TYPE)).status_code == 413


@pytest.mark.parametrize("path", ["/incoming-call", "/call-ended"])
async def test_a_form_without_a_signature_is_not_even_read(path: str) -> None:
    client = application().test_client(use_cookies=False)
    headers = {**FORM_TYPE, "Content-Length": "10", "Host": NGROK}
    with trio.fail_after(5):
        async with client.request(path, method="POST", headers=headers) as connection:
            response = await connection.as_response()
    assert response.status_code == 403


@pytest.mark.parametrize("path", ["/incoming-call", "/call-ended"])
async def test_a_form_that_never_ends_is_given_up(path: str, autojump_clock: Any) -> None:
    client = application().test_client(use_cookies=False)
    signature = {"X-Twilio-Signature": "of what is yet to come"}
    headers = {**FORM_TYPE, **signature, "Content-Length": "10", "Host": NGROK}
    async with client.request(path, method="POST", headers=headers) as connection:
        await connection.send(b"From=")
        response = await connection.as_response()
    assert response.status_code == 408
