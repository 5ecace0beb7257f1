"""What may be asked for in `POST /calls`, and what a call takes with it."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twilio.rest.api.v2010.account.call import CallList

from bridge.addresses import PublicAddress
from bridge.http.dialling import (
    DialRequest,
    OutboundCall,
    check_request,
    outbound_parameters,
    read_request,
    verdict_address,
    webhook_address,
    words_for,
)
from bridge.http.json_api import BadRequest

MDT = "machine_detection_timeout"
TO, FROM = "+15551234567", "+15557654321"
ADDRESS = PublicAddress("https://voice.example.com", "wss://voice.example.com")
AGENTS = {"sales": [FROM], "night": ["sip:night@example.com", "+15550000002"], "mute": []}


def checked(**fields: Any) -> OutboundCall:
    body = json.dumps({"to": TO, "from": FROM, **fields}).encode()
    return check_request(read_request(body), AGENTS)


def refused(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        checked(**fields)
    assert str(caught.value).isprintable()
    return caught.value


def test_a_request_becomes_the_call_that_it_describes() -> None:
    call = checked(
        agent="sales",
        variables={"name": "Ann <&> 山田", "age": 30, "rate": 1.5, "vip": True},
        machine_detection="DetectMessageEnd",
        message="Please call back.",
    )
    assert call == OutboundCall(
        to=TO,
        from_=FROM,
        agent="sales",
        variables={"name": "Ann <&> 山田", "age": "30", "rate": "1.5", "vip": "true"},
        machine_detection="DetectMessageEnd",
        on_machine="message",
        message="Please call back.",
    )


def test_an_agents_own_number_is_the_one_to_call_from() -> None:
    assert checked(**{"from": "", "agent": "night"}).from_ == "+15550000002"
    assert checked(**{"from": ""}).from_ == FROM
    assert refused(**{"from": "", "agent": "mute"}).field == "from"


def test_a_message_implies_waiting_for_its_turn() -> None:
    assert checked(message="Hi").machine_detection == "DetectMessageEnd"
    assert checked().machine_detection is None
    assert refused(message="Hi", machine_detection="Enable").field == "machine_detection"


@pytest.mark.parametrize(
    ("fields", "detection", "on_machine"),
    [
        ({}, None, "stay"),
        ({"machine_detection": "Enable"}, "Enable", "hang_up"),
        ({"on_machine": "hang_up"}, "Enable", "hang_up"),
        ({"on_machine": "stay"}, "Enable", "stay"),
        ({"machine_detection": "DetectMessageEnd"}, "DetectMessageEnd", "hang_up"),
        (
            {"machine_detection": "DetectMessageEnd", "on_machine": "stay"},
            "DetectMessageEnd",
            "stay",
        ),
        ({"message": "Hi"}, "DetectMessageEnd", "message"),
        ({"message": "Hi", "on_machine": "message"}, "DetectMessageEnd", "message"),
    ],
)
def test_what_a_machine_gets(
    fields: dict[str, Any], detection: str | None, on_machine: str
) -> None:
    call = checked(**fields)
    assert (call.machine_detection, call.on_machine) == (detection, on_machine)


def test_what_twilio_has_too_is_named_as_its_own_client_names_it() -> None:
    ours = {field.encode_name for field in msgspec.structs.fields(DialRequest)}
    theirs = set(inspect.signature(CallList.create).parameters)
    assert ours - theirs - {"from"} == {"variables", "agent", "on_machine", "message"}


def test_what_only_twilio_needs_to_know_is_passed_on() -> None:
    given = {"call_reason": "Your table", "record": True, "fallback_url": "https://a.example/x"}
    call = checked(**given)
    assert {name: getattr(call, name) for name in given} == given


@pytest.mark.parametrize("to", ["sip:desk@example.com;transport=tls", "client:alice", TO])
def test_who_can_be_called(to: str) -> None:
    assert checked(to=to).to == to
    assert checked(to=to, send_digits="W12#*AwD").send_digits == "W12#*AwD"


def test_a_client_calls_no_number() -> None:
    assert checked(**{"to": "client:bob", "from": "client:alice"}).from_ == "client:alice"
    assert refused(**{"from": "client:alice"}).field == "from"


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, 60),
        ({"timeout": 20}, 20),
        ({"machine_detection": "Enable"}, 90),
        ({"machine_detection": "Enable", "machine_detection_timeout": 10, "timeout": 20}, 30),
        ({"machine_detection": "Enable", "async_amd": True}, 60),
    ],
)
def test_how_long_the_webhook_may_be_away(fields: dict[str, Any], seconds: int) -> None:
    assert checked(**fields).seconds_to_answer == seconds


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"to": "5551234567"}, "to"),
        ({"to": "+15551234567\n"}, "to"),
        ({"to": "sip:a"}, "to"),
        ({"to": "sip:a@b c"}, "to"),
        ({"to": "client:"}, "to"),
        ({"to": "mailto:a@b"}, "to"),
        ({"to": ""}, "to"),
        ({"to": 15551234567}, "to"),
        ({"from": "anonymous"}, "from"),
        ({"from": None}, "from"),
        ({"agent": "nobody"}, "agent"),
        ({"agent": ["sales"]}, "agent"),
        ({"variables": []}, "variables"),
        ({"variables": {"name": None}}, "variables[...]"),
        ({"variables": {"name": {"x": 1}}}, "variables[...]"),
        ({"variables": {"": "x"}}, "variables."),
        ({"variables": {"a b": "x"}}, "variables.a b"),
        ({"variables": {"1a": "x"}}, "variables.1a"),
        ({"variables": {"a" * 65: "x"}}, "variables." + "a" * 65),
        ({"variables": {"From": "x"}}, "variables.From"),
        ({"variables": {"from": "x"}}, "variables.from"),
        ({"variables": {"CALLSID": "x"}}, "variables.CALLSID"),
        ({"variables": {"ticket": "x"}}, "variables.ticket"),
        ({"variables": {"direction": "x"}}, "variables.direction"),
        ({"variables": {"a": "x" * 499}}, "variables.a"),
        ({"variables": {f"v{n}": "x" for n in range(21)}}, "variables"),
        ({"machine_detection": "Maybe"}, "machine_detection"),
        ({"message": "x" * 601}, "message"),
        ({"message": "x", "on_machine": "hang_up"}, "message"),
        ({"on_machine": "message"}, "message"),
        ({"on_machine": "run"}, "on_machine"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 601}, "timeout"),
        ({"send_digits": "1x"}, "send_digits"),
        ({"send_digits": "1" * 33}, "send_digits"),
        ({"send_digits": "1", "machine_detection": "Enable"}, "send_digits"),
        ({"machine_detection_timeout": 2, "machine_detection": "Enable"}, MDT),
        ({"machine_detection_timeout": 60, "machine_detection": "Enable"}, MDT),
        ({"machine_detection_timeout": 10}, "machine_detection"),
        ({"async_amd": True}, "machine_detection"),
        ({"call_reason": "x" * 101}, "call_reason"),
        ({"record": "yes"}, "record"),
        ({"fallback_url": "voice.example.com"}, "fallback_url"),
        ({"fallback_url": "https://a b"}, "fallback_url"),
        ({"number": "+1"}, "number"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(
    fields: dict[str, Any], field: str
) -> None:
    problem = refused(**fields)
    assert problem.field == field
    assert problem.status == 422


def test_a_call_needs_a_number_to_call() -> None:
    with pytest.raises(BadRequest) as caught:
        read_request(b"{}")
    assert caught.value.field == "to"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"[" * 50_000)
@example(b'{"to": ' + b"[" * 50_000)
@example(b'{"variables": {"a": ' + b"9" * 5000 + b"}}")
@example(b'{"variables": {"a": 1e999}, "to": "x"}')
@example(b'{"to": "\\ud800"}')
@example(b'\xff\xfe{"to"')
@example(b'{"\x00\x1b": 1}')
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with suppress(BadRequest):
        check_request(read_request(body), AGENTS)


# ---- what the call takes with it ----------------------------------------------------------------

CALL = OutboundCall(
    to=TO, from_=FROM, agent="sales", variables={"name": "Ann <&> 山田", "x": "a=b&c+d%20"}
)


def test_the_webhook_gets_the_variables_with_its_address() -> None:
    url = webhook_address(ADDRESS, CALL)
    assert url.startswith("https://voice.example.com/incoming-call?")
    assert url.isascii()
    query = dict(parse_qsl(urlsplit(url).query, strict_parsing=True))
    assert outbound_parameters(query) == {**CALL.variables, "agent": "sales"}
    plain = webhook_address(ADDRESS, OutboundCall(TO, FROM))
    assert plain == "https://voice.example.com/incoming-call"
    with pytest.raises(BadRequest, match="4000"):
        webhook_address(ADDRESS, checked(variables={f"v{n}": "山" * 200 for n in range(5)}))


def test_only_what_could_have_been_put_into_an_address_is_read_from_it() -> None:
    query = {"var.name": "Ann", "var.From": "+1", "var.ticket": "x", "var.a b": "x", "name": "x"}
    assert outbound_parameters(query) == {"name": "Ann"}


@pytest.mark.parametrize("async_amd", [False, True])
def test_what_a_machine_gets_goes_with_the_address(async_amd: bool) -> None:
    """Of the webhook, which is told the verdict; or of the report, where that comes later."""

    def query(**fields: Any) -> dict[str, list[str]]:
        call = checked(**fields, async_amd=async_amd)
        webhook = parse_qs(urlsplit(webhook_address(ADDRESS, call)).query)
        report = parse_qs(urlsplit(verdict_address(ADDRESS, call)).query)
        if not async_amd:
            return webhook
        assert webhook == {}
        return report

    assert query(message="Grüße & <bye>?") == {"message": ["Grüße & <bye>?"]}
    assert query(on_machine="hang_up") == {"on_machine": ["hang_up"]}
    assert query(on_machine="stay") == {}
    with pytest.raises(BadRequest, match="4000"):
        query(message="山" * 600)


@pytest.mark.parametrize(
    ("answered_by", "with_message", "hanging_up", "staying"),
    [
        ("human", None, None, None),
        ("unknown", None, None, None),
        ("", None, None, None),
        ("machine_start", None, "", None),
        ("machine_end_beep", "Hi", "", None),
        ("machine_end_silence", "Hi", "", None),
        ("machine_end_other", "Hi", "", None),
        ("fax", "", "", None),
    ],
)
def test_who_is_told_what(
    answered_by: str, with_message: str | None, hanging_up: str | None, staying: str | None
) -> None:
    assert words_for(answered_by, {"message": "Hi"}) == with_message
    assert words_for(answered_by, {"on_machine": "hang_up"}) == hanging_up
    assert words_for(answered_by, {"on_machine": "stay"}) == staying
    assert words_for(answered_by, {}) == staying
