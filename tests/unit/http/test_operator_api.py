"""The control API over HTTP, with the stand-in for Twilio behind it: dial, list, show, hang up,
and the reports that come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import httpx
import pytest
from structlog.testing import capture_logs

from bridge.records.store import StoreUnavailable
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say, read_twiml
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN, OWN_NUMBER, Answer, Lost, error
from tests.unit.http.world import BASE, HOST, SID, TO, TOKEN, ControlWorld, FakeCall


@pytest.fixture
async def world() -> AsyncIterator[ControlWorld]:
    world = ControlWorld()
    yield world
    await world.twilio_side.aclose()


async def dialled(world: ControlWorld, **fields: Any) -> Any:
    """A call that was placed, as the stand-in has it."""
    response = await world.dial(**fields)
    assert response.status_code == 201, response.text
    return world.standin.calls[response.json()["call_sid"]]


# ---- dialling -----------------------------------------------------------------------------------


async def test_a_call_is_placed(world: ControlWorld) -> None:
    response = await world.dial(variables={"name": "Ann & Bob"}, agent="sales")
    assert response.status_code == 201
    (call,) = world.standin.calls.values()
    assert response.json() == {"call_sid": call.sid, "status": "queued"}
    assert len(world.bridge.entrance.slots) == 1
    assert response.headers["Location"] == f"/calls/{call.sid}"
    form = dict(call.form)
    url = urlsplit(form.pop("Url"))
    assert (url.netloc, url.path) == (HOST, "/incoming-call")
    assert dict(parse_qsl(url.query)) == {"var.name": "Ann & Bob", "agent": "sales"}
    assert form.pop("Method", "POST") == "POST"
    assert form == {
        "To": TO,
        "From": OWN_NUMBER,
        "StatusCallback": f"{BASE}/call-status",
        "StatusCallbackMethod": "POST",
        "StatusCallbackEvent": "completed",
        "TimeLimit": "3660",
    }
    assert call.events == ["initiated", "ringing", "answered", "completed"]
    document = await world.standin.answer(world.twilio_side, call)
    (verb,) = read_twiml(document, "text/xml", BASE)
    assert isinstance(verb, ConnectStream)
    assert verb.url == f"wss://{HOST}/media-stream"
    assert dict(verb.parameters) | {"ticket": ""} == {
        "name": "Ann & Bob",
        "From": OWN_NUMBER,
        "To": TO,
        "CallSid": call.sid,
        "direction": "outbound-api",
        "agent": "sales",
        "ticket": "",
    }


async def test_a_socket_that_opens_before_the_answer_finds_everything(world: ControlWorld) -> None:
    """What the call is about is in its address already, and no callback is lost."""
    seen: list[Any] = []

    async def answered(call: Any) -> None:
        document = await world.standin.answer(world.twilio_side, call)
        (verb,) = read_twiml(document, "text/xml", BASE)
        assert isinstance(verb, ConnectStream)
        seen.append(dict(verb.parameters)["name"])
        forms = world.standin.reports(call, ["initiated", "ringing", "answered"])
        await world.standin.report(world.twilio_side, call, forms)

    world.standin.before_answer = answered
    response = await world.dial(variables={"name": "Ann"})
    assert seen == ["Ann"]
    assert response.json()["status"] == "in-progress"
    known = world.bridge.progress.get(response.json()["call_sid"])
    assert known is not None
    assert known.status == "in-progress"


async def test_the_audit_line(world: ControlWorld) -> None:
    with capture_logs() as logs:
        sid = (await world.dial(variables={"pin": "98760"})).json()["call_sid"]
        refused = (await world.dial(**{"from": "+15550000009"})).json()
        await world.ask("DELETE", f"/calls/{sid}")
    lines = [line for line in logs if line["event"].startswith("operator")]
    facts = {"peer": "203.0.113.9", "log_level": "info"}
    assert lines == [
        {
            "event": "operator dialled",
            "result": sid,
            "to": TO,
            "from_": OWN_NUMBER,
            "agent": "",
            **facts,
        },
        {
            "event": "operator dialled",
            "result": refused["error"],
            "to": TO,
            "from_": "+15550000009",
            "agent": "",
            **facts,
        },
        {"event": "operator hung up", "result": "ended", "call_sid": sid, **facts},
    ]
    assert "98760" not in str(logs)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[" * 10_000, 422, None),
        (b"{}", 422, "to"),
        (b'{"to": "12"}', 422, "to"),
        (b'{"to": "+15551234567", "x": 1}', 422, "x"),
        (b" " * 65_537, 413, None),
    ],
)
async def test_a_bad_body_is_answered_with_the_field(
    world: ControlWorld, body: bytes, status: int, field: str | None
) -> None:
    response = await world.ask(
        "POST", "/calls", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status
    assert response.json().get("field") == field
    assert response.json()["error"]
    assert world.standin.requests == []


async def test_a_body_without_end_is_refused_at_its_limit(world: ControlWorld) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    response = await world.ask(
        "POST", "/calls", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 413
    assert response.json()["error"]


async def test_a_body_that_never_ends_is_given_up(world: ControlWorld, autojump_clock: Any) -> None:
    client = world.app.test_client()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": "10",
        "Authorization": f"Bearer {TOKEN}",
    }
    async with client.request("/calls", method="POST", headers=headers) as connection:
        await connection.send(b"{")
        response = await connection.as_response()
    assert response.status_code == 408


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_only_json_is_taken(world: ControlWorld, kind: str) -> None:
    """What a page of another site may send without being asked is no JSON."""
    response = await world.ask(
        "POST", "/calls", content=b'{"to": "+15551234567"}', headers={"Content-Type": kind}
    )
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]
    assert world.standin.requests == []


async def test_no_call_while_the_rules_are_against_it(world: ControlWorld) -> None:
    world.bridge.entrance.admits_until = 0
    response = await world.dial()
    assert response.status_code == 503
    assert response.json()["error"] == "no call may be placed now: the server is stopping"
    assert world.standin.requests == []


async def test_no_call_without_credentials() -> None:
    world = ControlWorld(credentials=False)
    response = await world.dial()
    assert response.status_code == 503
    assert "TWILIO_ACCOUNT_SID" in response.json()["error"]


async def test_no_call_that_twilio_could_not_connect() -> None:
    """Requested by a loopback address, without a public one: Twilio could ring, but not connect."""
    world = ControlWorld(public_url="")
    async with world.client(peer="127.0.0.1", host="127.0.0.1:5000") as client:
        response = await client.post("/calls", json={"to": TO, "from": OWN_NUMBER})
    assert response.status_code == 503
    assert "server.public_url" in response.json()["error"]
    assert world.standin.requests == []


async def test_without_a_public_url_twilio_is_sent_where_the_operator_asked() -> None:
    world = ControlWorld(public_url="")
    call = await dialled(world)
    assert call.asked("StatusCallback") == f"{BASE}/call-status"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (None, 422, 21210),
        (error(401, 20003, "Authenticate"), 502, 20003),
        (error(403, 20403, "Forbidden"), 502, 20403),
        (error(429, 20429, "Too Many Requests"), 503, 20429),
        (error(500, 20500, "Internal Server Error"), 502, 20500),
        (Answer(502, b"<html>"), 502, 0),
    ],
)
async def test_twilios_refusal_comes_with_its_code_and_words(
    world: ControlWorld, fault: Answer | None, status: int, code: int
) -> None:
    world.standin.faults.append(fault)
    response = await world.dial(**{"from": "+15550000009"})
    assert response.status_code == status
    assert response.json()["twilio"]["code"] == code
    assert response.json()["twilio"]["message"] in response.json()["error"]
    assert ("Retry-After" in response.headers) == (status == 503)


async def test_an_answer_that_was_lost_says_that_the_phone_may_ring(world: ControlWorld) -> None:
    world.standin.faults.append(Lost())
    response = await world.dial()
    assert response.status_code == 502
    assert len(world.bridge.entrance.slots) == 0
    assert "may have been carried out" in response.json()["error"]
    assert len(world.standin.calls) == 1


async def test_no_secret_comes_out(world: ControlWorld) -> None:
    answers = [
        await world.ask("DELETE", f"/calls/{SID}"),
        await world.ask("GET", "/calls"),
        await world.dial(**{"from": "+15550000009"}),
        await world.ask("GET", "/calls", headers={"Authorization": "Bearer x"}),
    ]
    for answer in answers:
        for secret in (ACCOUNT_SID, AUTH_TOKEN, TOKEN):
            assert secret not in answer.text + str(answer.headers)


# ---- who may ------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/calls"),
    ("GET", "/calls"),
    ("GET", f"/calls/{SID}"),
    ("DELETE", f"/calls/{SID}"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_the_token_nothing_is_done(
    world: ControlWorld, method: str, path: str
) -> None:
    live = FakeCall()
    world.live.append(live)
    for peer in ("127.0.0.1", "203.0.113.9"):
        for token in ("", "wrong"):
            async with world.client(peer=peer, token=token) as client:
                response = await client.request(method, path, json={"to": TO, "from": OWN_NUMBER})
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert list(response.json()) == ["error"]
    assert live.reasons == []
    assert world.standin.requests == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_token_of_the_server_s_own_is_needed_where_none_is_set(
    method: str, path: str
) -> None:
    world = ControlWorld(token="")
    world.live.append(FakeCall())
    body = {"to": TO, "from": OWN_NUMBER}
    for peer, host in (("127.0.0.1", "127.0.0.1:5000"), ("127.0.0.1", HOST), ("", "localhost")):
        async with world.client(peer=peer, host=host) as client:
            response = await client.request(method, path, json=body)
        assert response.status_code == 401
    assert world.standin.requests == []
    async with world.client(token=world.bridge.api_token) as client:
        response = await client.request(method, path, json=body)
    assert response.status_code in (200, 201)


# ---- listing and showing ------------------------------------------------------------------------


async def test_live_and_recent_calls(world: ControlWorld) -> None:
    ringing = await dialled(world)
    over, stored = "CA" + "b" * 32, "CA" + "c" * 32
    world.live.append(FakeCall())
    world.records.stored = {
        SID: {"call_sid": SID, "outcome": None},
        over: {"call_sid": over, "outcome": "agent_ended", "transcript": ["Hi"]},
        stored: {"call_sid": stored, "status": "busy"},
    }
    answer = (await world.ask("GET", "/calls")).json()
    assert answer["live"] == [
        {
            "call_sid": SID,
            "live": True,
            "status": "in-progress",
            "seconds": 12.346,
            "caller": TO,
            "called": OWN_NUMBER,
        }
    ]
    assert answer["recent"] == [
        {
            "call_sid": ringing.sid,
            "live": False,
            "status": "queued",
            "caller": OWN_NUMBER,
            "called": TO,
        },
        {
            "call_sid": over,
            "live": False,
            "status": "completed",
            "outcome": "agent_ended",
            "transcript": ["Hi"],
        },
        {"call_sid": stored, "live": False, "status": "busy"},
    ]
    assert len((await world.ask("GET", "/calls?limit=1")).json()["recent"]) == 1


async def test_a_database_that_is_away_is_no_empty_list(
    world: ControlWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding C3: the answer says why calls may be missing; those that are known are listed."""
    assert (await world.ask("GET", "/calls")).json()["records_error"] == ""

    async def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("no answer within 3 s")

    monkeypatch.setattr(world.records, "list_calls", away)
    ringing = await dialled(world)
    answer = await world.ask("GET", "/calls")
    assert (answer.status_code, answer.json()["records_error"]) == (200, "no answer within 3 s")
    assert [call["call_sid"] for call in answer.json()["recent"]] == [ringing.sid]


async def test_a_call_of_another_process_is_listed_as_elsewhere(world: ControlWorld) -> None:
    """By its record, which has no end; not one that only rings, and not one of ours."""
    ringing, over = "CA" + "b" * 32, "CA" + "c" * 32
    world.records.stored[SID] = {"call_sid": SID, "revision": 1}
    world.records.stored[ringing] = {"call_sid": ringing, "status": "ringing"}
    world.records.stored[over] = {"call_sid": over, "revision": 2, "outcome": "caller_hung_up"}
    listed = (await world.ask("GET", "/calls")).json()
    assert listed["live"] == []
    assert [call["call_sid"] for call in listed["recent"] if call.get("elsewhere")] == [SID]
    assert (await world.ask("GET", f"/calls/{SID}")).json()["elsewhere"] is True
    world.live.append(FakeCall())
    listed = (await world.ask("GET", "/calls")).json()
    assert not any("elsewhere" in call for call in listed["live"] + listed["recent"])


@pytest.mark.parametrize("limit", ["0", "-1", "501", "x", "", "1e2", "\u0661", "9" * 5000])
async def test_a_limit_that_is_none(world: ControlWorld, limit: str) -> None:
    response = await world.ask("GET", "/calls", params={"limit": limit})
    assert (response.status_code, response.json()["field"]) == (422, "limit")


async def test_one_call_from_ringing_to_its_record(world: ControlWorld) -> None:
    call = await dialled(world)

    async def shown() -> Any:
        return (await world.ask("GET", f"/calls/{call.sid}")).json()

    assert (await shown())["status"] == "queued"
    live = FakeCall(call_sid=call.sid, caller=OWN_NUMBER, called=TO)
    world.live.append(live)
    assert (await shown())["live"] is True
    world.live.remove(live)
    world.records.stored[call.sid] = {"call_sid": call.sid, "outcome": "caller_hung_up"}
    forms = world.standin.reports(call)
    await world.standin.report(world.twilio_side, call, reversed(forms))
    assert await shown() == {
        "call_sid": call.sid,
        "live": False,
        "status": "completed",
        "outcome": "caller_hung_up",
        "caller": OWN_NUMBER,
        "called": TO,
        "seconds": 42,
        "sip_code": 200,
    }


@pytest.mark.parametrize(
    "sid",
    [SID, "CA1", "x", "..%2F..%2Fetc", "%00", "' OR 1=1 --", SID + "'", "CA" + "g" * 32],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_there_is_no_such_call(world: ControlWorld, method: str, sid: str) -> None:
    response = await world.ask(method, f"/calls/{sid}")
    assert response.status_code == 404
    if sid != SID:
        assert world.standin.requests == []


async def test_nothing_is_kept_by_caches(world: ControlWorld) -> None:
    assert (await world.ask("GET", "/calls")).headers["Cache-Control"] == "no-store"


# ---- saying something in the caller's place -----------------------------------------------------


async def say(world: ControlWorld, body: Any, sid: str = SID) -> Any:
    return await world.ask("POST", f"/calls/{sid}/say", json=body)


async def test_written_words_go_into_the_call(world: ControlWorld) -> None:
    live = FakeCall()
    world.live.append(live)
    response = await say(world, {"text": "  Do you\n\thave\x00 a table? \u202e"})
    assert (response.status_code, response.json()) == (202, {"call_sid": SID})
    assert live.said == ["Do you have a table?"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"text": ""}, 422, "text"),
        ({"text": " \x00 "}, 422, "text"),
        ({"text": "x" * 1001}, 422, "text"),
        ({"text": 5}, 400, None),
        ({}, 400, None),
        ([], 400, None),
        ({"text": "Hello", "behavior": "interrupt"}, 400, None),
    ],
)
async def test_words_that_cannot_be_said(
    world: ControlWorld, body: Any, status: int, field: str | None
) -> None:
    live = FakeCall()
    world.live.append(live)
    response = await say(world, body)
    assert response.status_code == status
    assert response.json().get("field") == field
    assert live.said == []
    assert (await say(world, {"text": "x" * 1000})).status_code == 202


async def test_a_call_may_not_take_the_words(world: ControlWorld) -> None:
    world.live.append(FakeCall(deaf="the call is ending"))
    response = await say(world, {"text": "Hello?"})
    assert (response.status_code, response.json()) == (409, {"error": "the call is ending"})


async def test_words_for_no_call_and_for_one_elsewhere(world: ControlWorld) -> None:
    assert (await say(world, {"text": "Hello?"})).status_code == 404
    world.records.stored[SID] = {"call_sid": SID, "outcome": ""}
    assert (await say(world, {"text": "Hello?"})).status_code == 409


async def test_what_is_said_in_a_call_is_not_logged(world: ControlWorld) -> None:
    world.live.append(FakeCall())
    with capture_logs() as logs:
        await say(world, {"text": "my card is 4111"})
    assert "4111" not in str(logs)
    assert any(line["event"] == "operator wrote to a call" for line in logs)


# ---- hanging up ---------------------------------------------------------------------------------


async def test_a_live_call_ends_here_first_and_then_at_twilio(world: ControlWorld) -> None:
    call = await dialled(world)
    call.status = "in-progress"
    live = FakeCall(call_sid=call.sid)
    world.live.append(live)
    response = await world.ask("DELETE", f"/calls/{call.sid}")
    assert response.status_code == 200
    assert response.json() == {"call_sid": call.sid, "status": "completed"}
    assert live.reasons == ["an operator hung up"]
    assert call.status == "completed"
    assert (await world.ask("DELETE", f"/calls/{call.sid}")).status_code == 200


async def test_a_ringing_call_ends_at_twilio(world: ControlWorld) -> None:
    call = await dialled(world)
    call.status = "ringing"
    assert (await world.ask("DELETE", f"/calls/{call.sid}")).status_code == 200
    assert call.status == "canceled"


async def test_a_live_call_ends_even_if_twilio_does_not_answer(
    world: ControlWorld, autojump_clock: Any
) -> None:
    live = FakeCall()
    world.live.append(live)
    world.standin.faults.extend([httpx.ReadError("reset")] * 3)
    assert (await world.ask("DELETE", f"/calls/{SID}")).status_code == 200
    assert live.reasons


async def test_a_call_of_another_worker_needs_twilio() -> None:
    world = ControlWorld(credentials=False)
    world.records.stored[SID] = {"call_sid": SID, "outcome": None}
    response = await world.ask("DELETE", f"/calls/{SID}")
    assert response.status_code == 409
    assert "TWILIO_AUTH_TOKEN" in response.json()["error"]
    world.records.stored[SID]["outcome"] = "handed_over"  # the caller talks to somebody else
    assert (await world.ask("DELETE", f"/calls/{SID}")).status_code == 409
    assert (await world.ask("GET", f"/calls/{SID}")).json()["status"] == "in-progress"
    world.records.stored[SID]["outcome"] = "agent_ended"
    assert (await world.ask("DELETE", f"/calls/{SID}")).status_code == 200
    live = FakeCall()
    world.live.append(live)
    assert (await world.ask("DELETE", f"/calls/{SID}")).status_code == 200
    assert live.reasons


async def test_a_call_of_another_worker_when_twilio_is_down(
    world: ControlWorld, autojump_clock: Any
) -> None:
    world.standin.faults.extend([error(503, 20503, "Service Unavailable")] * 3)
    response = await world.ask("DELETE", f"/calls/{SID}")
    assert (response.status_code, response.json()["twilio"]["code"]) == (502, 20503)


# ---- what Twilio reports ------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
async def test_reports_in_any_order_are_folded(world: ControlWorld, order: tuple[int, ...]) -> None:
    call = await dialled(world)
    forms = world.standin.reports(call, ending="no-answer")
    answers = await world.standin.report(
        world.twilio_side, call, [forms[number] for number in order]
    )
    assert [answer.status_code for answer in answers] == [204] * 4
    assert len(world.records.reports) == 5
    known = world.bridge.progress.get(call.sid)
    assert known is not None
    assert (known.status, known.sequence, known.seconds) == ("no-answer", 3, 42)
    assert (await world.ask("GET", f"/calls/{call.sid}")).json()["status"] == "no-answer"


@pytest.mark.parametrize("form", [{}, {"CallSid": ""}, {"CallSid": "CA1", "CallStatus": "ringing"}])
@pytest.mark.parametrize("path", ["/call-status", "/call-status/answered-by"])
async def test_what_twilio_would_not_send_is_refused(
    world: ControlWorld, path: str, form: dict[str, str]
) -> None:
    response = await world.webhook(path, form)
    assert response.status_code == 400
    assert world.records.reports == []


# ---- answering machines -------------------------------------------------------------------------


async def test_the_verdict_comes_before_the_greeting(world: ControlWorld) -> None:
    """Twilio detects before it asks the webhook: no agent greets a mailbox's own greeting."""
    words = "Grüße & <goodbye>? Call +1 555."
    call = await dialled(world, message=words, machine_detection_timeout=20, timeout=25)
    assert call.asked("MachineDetection") == "DetectMessageEnd"
    assert (call.asked("AsyncAmd"), call.asked("AsyncAmdStatusCallback")) == ("false", "")
    assert (call.asked("MachineDetectionTimeout"), call.asked("Timeout")) == ("20", "25")
    slots = world.bridge.entrance.slots
    assert len(slots) == 1
    document = await world.standin.answer(world.twilio_side, call, "machine_end_beep")
    assert read_twiml(document, "text/xml", BASE) == [Say(words), Hangup()]
    assert len(slots) == 0
    assert (await world.ask("GET", f"/calls/{call.sid}")).json()["answered_by"] == (
        "machine_end_beep"
    )


@pytest.mark.parametrize("answered_by", ["human", "unknown"])
async def test_a_person_gets_the_agent(world: ControlWorld, answered_by: str) -> None:
    call = await dialled(world, message="Call back.", variables={"name": "Ann"})
    document = await world.standin.answer(world.twilio_side, call, answered_by)
    (verb,) = read_twiml(document, "text/xml", BASE)
    assert isinstance(verb, ConnectStream)
    parameters = dict(verb.parameters)
    assert parameters["name"] == "Ann"
    assert "message" not in parameters
    assert len(world.bridge.entrance.slots) == 1
    assert world.records.reports[-1][-1] == answered_by


@pytest.mark.parametrize(
    ("fields", "answered_by", "verbs"),
    [
        ({"machine_detection": "Enable"}, "machine_start", [Hangup()]),
        ({"on_machine": "hang_up"}, "fax", [Hangup()]),
        ({"message": "Call back."}, "fax", [Hangup()]),
    ],
)
async def test_a_machine_is_hung_up_on(
    world: ControlWorld, fields: dict[str, Any], answered_by: str, verbs: list[Any]
) -> None:
    call = await dialled(world, **fields)
    document = await world.standin.answer(world.twilio_side, call, answered_by)
    assert read_twiml(document, "text/xml", BASE) == verbs
    assert len(world.bridge.entrance.slots) == 0


async def test_an_agent_may_talk_to_a_machine(world: ControlWorld) -> None:
    call = await dialled(world, on_machine="stay", machine_detection="DetectMessageEnd")
    document = await world.standin.answer(world.twilio_side, call, "machine_end_beep")
    (verb,) = read_twiml(document, "text/xml", BASE)
    assert isinstance(verb, ConnectStream)


async def test_an_inbound_call_has_no_verdict(world: ControlWorld) -> None:
    form = {"CallSid": SID, "AnsweredBy": "machine_start", "Direction": "inbound"}
    response = await world.webhook("/incoming-call", form, "?on_machine=hang_up")
    (verb,) = read_twiml(response.content, response.headers["Content-Type"], BASE)
    assert isinstance(verb, ConnectStream)


async def test_with_async_amd_a_machine_gets_the_message_in_the_agents_place(
    world: ControlWorld,
) -> None:
    words = "Grüße & <goodbye>? Call +1 555."
    call = await dialled(world, message=words, async_amd=True)
    assert call.asked("MachineDetection") == "DetectMessageEnd"
    assert call.asked("AsyncAmd") == "true"
    call.status = "in-progress"
    response = await world.standin.report_answerer(world.twilio_side, call, "machine_end_beep")
    assert response.status_code == 204
    assert read_twiml(call.twiml.encode(), "text/xml", BASE) == [Say(words), Hangup()]
    assert (await world.ask("GET", f"/calls/{call.sid}")).json()["answered_by"] == (
        "machine_end_beep"
    )


async def test_the_message_has_the_voice_of_its_agent(world: ControlWorld) -> None:
    call = await dialled(world, message="Call back.", agent="sales", async_amd=True)
    call.status = "in-progress"
    await world.standin.report_answerer(world.twilio_side, call, "machine_end_beep")
    told = read_twiml(call.twiml.encode(), "text/xml", BASE)
    assert told == [Say("Call back.", voice="Polly.Joanna"), Hangup()]


@pytest.mark.parametrize("answered_by", ["human", "unknown", "machine_start"])
async def test_a_person_does_not_get_it(world: ControlWorld, answered_by: str) -> None:
    call = await dialled(world, message="Call back.", async_amd=True)
    call.status = "in-progress"
    await world.standin.report_answerer(world.twilio_side, call, answered_by)
    assert call.updates == []
    assert world.records.reports[-1][-1] == answered_by


@pytest.mark.parametrize(("on_machine", "verbs"), [("hang_up", [Hangup()]), ("stay", None)])
async def test_with_async_amd_a_machine_is_hung_up_on_or_not(
    world: ControlWorld, on_machine: str, verbs: list[Any] | None
) -> None:
    call = await dialled(world, machine_detection="Enable", async_amd=True, on_machine=on_machine)
    assert call.asked("MachineDetection") == "Enable"
    call.status = "in-progress"
    await world.standin.report_answerer(world.twilio_side, call, "machine_start")
    told = read_twiml(call.twiml.encode(), "text/xml", BASE) if call.updates else None
    assert told == verbs
    assert world.records.reports[-1][-1] == "machine_start"


async def test_too_late_for_the_message_is_no_error(world: ControlWorld) -> None:
    call = await dialled(world, message="Call back.", async_amd=True)
    call.status = "completed"
    response = await world.standin.report_answerer(world.twilio_side, call, "machine_end_other")
    assert response.status_code == 204
    assert world.records.reports[-1][-1] == "machine_end_other"


async def test_a_message_longer_than_twiml_may_be_is_no_error(world: ControlWorld) -> None:
    form = {"CallSid": SID, "AnsweredBy": "machine_end_beep"}
    query = "?message=" + "%3C" * 2000
    response = await world.webhook("/call-status/answered-by", form, query)
    assert response.status_code == 204


def test_the_dial_document() -> None:
    from twilio.twiml.voice_response import Dial, VoiceResponse

    from bridge.twilio import twiml

    response = VoiceResponse()
    response.say("Sorry <&>.")
    verb = Dial(timeout=20, caller_id=OWN_NUMBER, action=f"{BASE}/after")
    verb.number(TO)
    response.append(verb)
    response.hangup()
    ours = twiml.dial(
        TO,
        words="Sorry <&>.",
        caller_id=OWN_NUMBER,
        action=f"{BASE}/after",
    )
    theirs = str(response)
    assert ElementTree.canonicalize(ours.decode()) == ElementTree.canonicalize(theirs)
    plain = VoiceResponse()
    verb = Dial(timeout=20)
    verb.number(TO)
    plain.append(verb)
    plain.hangup()
    assert ElementTree.canonicalize(twiml.dial(TO).decode()) == ElementTree.canonicalize(str(plain))


# ---- acting on a call ---------------------------------------------------------------------------


async def test_the_agent_says_words(world: ControlWorld) -> None:
    live = FakeCall()
    world.live.append(live)
    response = await world.ask("POST", f"/calls/{SID}/say-as-agent", json={"text": " I\nasked. "})
    assert (response.status_code, response.json()) == (202, {"call_sid": SID})
    assert live.actions.done == [("say", "I asked.")]


@pytest.mark.parametrize("target", ["reception", TO])
async def test_a_caller_is_transferred_after_a_word(world: ControlWorld, target: str) -> None:
    live = FakeCall()
    world.live.append(live)
    with capture_logs() as logs:
        response = await world.ask("POST", f"/calls/{SID}/transfer", json={"to": target})
    assert (response.status_code, response.json()) == (202, {"call_sid": SID})
    assert live.actions.done == [("transfer", target, "One moment, please.")]
    (line,) = [line for line in logs if line["event"] == "operator transferred a call"]
    assert (line["to"], line["call_sid"]) == (target, SID)


@pytest.mark.parametrize(
    ("route", "body", "status", "field"),
    [
        ("say-as-agent", {"text": " "}, 422, "text"),
        ("say-as-agent", {"text": "x" * 1001}, 422, "text"),
        ("say-as-agent", {"words": "Hello"}, 400, None),
        ("transfer", {"to": "nobody"}, 422, "to"),
        ("transfer", {"to": 5}, 400, None),
        ("transfer", {}, 400, None),
    ],
)
async def test_an_action_that_is_not_possible(
    world: ControlWorld, route: str, body: Any, status: int, field: str | None
) -> None:
    live = FakeCall()
    world.live.append(live)
    response = await world.ask("POST", f"/calls/{SID}/{route}", json=body)
    assert (response.status_code, response.json().get("field")) == (status, field)
    assert live.actions.done == []


@pytest.mark.parametrize(
    ("route", "body"), [("say-as-agent", {"text": "Hello."}), ("transfer", {"to": TO})]
)
async def test_an_action_on_a_call_that_is_not_here_or_ends(
    world: ControlWorld, route: str, body: Any
) -> None:
    async def ask() -> Any:
        return await world.ask("POST", f"/calls/{SID}/{route}", json=body)

    assert (await ask()).status_code == 404
    world.records.stored[SID] = {"call_sid": SID, "outcome": ""}
    assert (await ask()).status_code == 409
    world.live.append(FakeCall(deaf="the call is ending"))
    response = await ask()
    assert (response.status_code, response.json()) == (409, {"error": "the call is ending"})
