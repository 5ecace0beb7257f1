"""What may be asked for in `POST /calls`, and what a call takes with it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.addresses import PublicAddress
from bridge.http.dialling import (
    OutboundCall,
    check_request,
    message_address,
    outbound_parameters,
    read_request,
    webhook_address,
)
from bridge.http.json_api import BadRequest

TO, FROM = "+15551234567", "+15557654321"
ADDRESS = PublicAddress("https://voice.example.com", "wss://voice.example.com")
AGENTS = {"sales": [FROM], "night": ["+15550000002"], "mute": []}


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
    ("fields", "field"),
    [
        ({"to": "5551234567"}, "to"),
        ({"to": "+15551234567\n"}, "to"),
        ({"to": "sip:a@b"}, "to"),
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


def test_the_message_goes_with_the_address() -> None:
    assert message_address(ADDRESS, "") == "https://voice.example.com/call-status/answered-by"
    url = message_address(ADDRESS, "Grüße & <bye>?")
    assert parse_qs(urlsplit(url).query) == {"message": ["Grüße & <bye>?"]}
    with pytest.raises(BadRequest, match="4000"):
        message_address(ADDRESS, "山" * 600)
