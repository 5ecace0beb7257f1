"""Twilio's REST API: what each request says, what is tried again, how failures read.

Against the stand-in, which follows Twilio's published description and refuses what that does not
have.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

import httpx
import pytest
import trio
from twilio.rest import Client

from bridge.config.secrets import Secrets
from bridge.twilio import twiml
from bridge.twilio.login import api_url
from bridge.twilio.rest import PhoneNumber, PlacedCall, TwilioError, TwilioRest, TwilioUnreachable
from tests.twilio_standin import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    OWN_NUMBER,
    Answer,
    Lost,
    TwilioStandIn,
    error,
    number,
)

TO = "+15551234567"
UNKNOWN_SID = "CA" + "f" * 32
HOOK = "https://voice.example.com/incoming-call"


def rest(standin: TwilioStandIn, **options: Any) -> TwilioRest:
    return TwilioRest(ACCOUNT_SID, AUTH_TOKEN, transport=standin.transport(), **options)


async def placed(standin: TwilioStandIn) -> str:
    async with rest(standin) as twilio:
        return (await twilio.create_call(TO, OWN_NUMBER, url=HOOK)).call_sid


# ---- what a request says ------------------------------------------------------------------------


async def test_a_call_with_everything() -> None:
    standin = TwilioStandIn()
    document = twiml.hang_up("Grüße & <goodbye>")
    async with rest(standin) as twilio:
        call = await twilio.create_call(
            TO,
            OWN_NUMBER,
            twiml=document,
            status_callback="https://voice.example.com/call-status",
            machine_detection="DetectMessageEnd",
            machine_detection_timeout=20,
            async_amd=True,
            async_amd_status_callback="https://voice.example.com/amd?message=a+%26+b",
            timeout=30,
            time_limit=3600,
            send_digits="W1234#",
            call_reason="Your table tonight",
            record=True,
            fallback_url="https://example.com/sorry.xml",
        )
    assert call == PlacedCall("CA" + "0" * 31 + "1", "queued")
    assert standin.calls[call.call_sid].form == [
        ("To", TO),
        ("From", OWN_NUMBER),
        ("Twiml", document.decode()),
        ("StatusCallback", "https://voice.example.com/call-status"),
        ("StatusCallbackMethod", "POST"),
        ("StatusCallbackEvent", "initiated"),
        ("StatusCallbackEvent", "ringing"),
        ("StatusCallbackEvent", "answered"),
        ("StatusCallbackEvent", "completed"),
        ("MachineDetection", "DetectMessageEnd"),
        ("AsyncAmd", "true"),
        ("MachineDetectionTimeout", "20"),
        ("AsyncAmdStatusCallback", "https://voice.example.com/amd?message=a+%26+b"),
        ("AsyncAmdStatusCallbackMethod", "POST"),
        ("Timeout", "30"),
        ("TimeLimit", "3600"),
        ("SendDigits", "W1234#"),
        ("CallReason", "Your table tonight"),
        ("Record", "true"),
        ("FallbackUrl", "https://example.com/sorry.xml"),
        ("FallbackMethod", "POST"),
    ]


async def test_a_call_with_nothing_more_than_it_needs() -> None:
    standin = TwilioStandIn()
    sid = await placed(standin)
    assert standin.calls[sid].form == [("To", TO), ("From", OWN_NUMBER), ("Url", HOOK)]


@pytest.mark.parametrize("status", ["queued", "ringing", "in-progress"])
async def test_hanging_up_twice_is_hanging_up(status: str) -> None:
    standin = TwilioStandIn()
    sid = await placed(standin)
    standin.calls[sid].status = status
    async with rest(standin) as twilio:
        assert await twilio.hang_up(sid) is True
        assert await twilio.hang_up(sid) is False
    assert standin.calls[sid].updates == [[("Status", "completed")]]


async def test_hanging_up_a_call_that_never_was() -> None:
    async with rest(TwilioStandIn()) as twilio:
        assert await twilio.hang_up(UNKNOWN_SID) is False


async def test_a_live_call_is_given_other_twiml() -> None:
    standin = TwilioStandIn()
    sid = await placed(standin)
    standin.calls[sid].status = "in-progress"
    document = twiml.dial("+15559876543", words="One moment.", caller_id=OWN_NUMBER)
    async with rest(standin) as twilio:
        await twilio.update_call(sid, twiml=document)
        assert standin.calls[sid].twiml == document.decode()
        standin.calls[sid].status = "completed"
        with pytest.raises(TwilioError) as caught:
            await twilio.update_call(sid, twiml=document)
    assert caught.value.call_is_over
    assert caught.value.code == 21220


async def test_a_number_is_found_and_not_one_that_contains_it() -> None:
    longer = number("+155576543219", 2)
    own = number(OWN_NUMBER, 1, voice_url="https://old.example/", trunk_sid=None)
    standin = TwilioStandIn(longer, own)
    async with rest(standin) as twilio:
        assert await twilio.find_number(OWN_NUMBER) == PhoneNumber(
            number_sid="PN" + "0" * 31 + "1",
            number=OWN_NUMBER,
            name="Office",
            voice_url="https://old.example/",
            voice_method="POST",
            application_sid="",
            trunk_sid="",
            status_callback="",
        )
        assert await twilio.find_number("+15557654") is None
    assert standin.requests[0][2] == [("PhoneNumber", OWN_NUMBER), ("PageSize", "50")]


async def test_a_webhook_is_set_and_an_application_in_its_way_taken_off() -> None:
    own = number(OWN_NUMBER, voice_application_sid="AP" + "0" * 32, status_callback="https://s/")
    standin = TwilioStandIn(own)
    async with rest(standin) as twilio:
        now = await twilio.set_voice_webhook(own["sid"], HOOK)
        assert (now.voice_url, now.voice_method, now.application_sid) == (HOOK, "POST", "")
        assert now.status_callback == "https://s/"
        now = await twilio.set_voice_webhook(own["sid"], HOOK, status_callback="https://t/")
        assert now.status_callback == "https://t/"


# ---- what never becomes a request ---------------------------------------------------------------


@pytest.mark.parametrize(
    "sid",
    [
        "",
        "CA1",
        "CA" + "g" * 32,
        "CA" + "0" * 33,
        "../Calls",
        "CA" + "0" * 32 + "\n",
        "PN" + "0" * 32,
    ],
)
async def test_a_sid_that_could_change_the_path_is_refused(sid: str) -> None:
    standin = TwilioStandIn()
    async with rest(standin) as twilio:
        with pytest.raises(ValueError, match="a call's SID"):
            await twilio.hang_up(sid)
        with pytest.raises(ValueError, match="a call's SID"):
            await twilio.update_call(sid, twiml="<Response/>")
        if not sid.startswith("PN"):
            with pytest.raises(ValueError, match="phone number's SID"):
                await twilio.set_voice_webhook(sid, HOOK)
    assert standin.requests == []


@pytest.mark.parametrize(
    "bad", ["", "15551234567", "+0555", "+1555123456x", "+1 555 123", "+1" * 9]
)
async def test_a_number_not_in_e164_is_refused_with_the_remedy(bad: str) -> None:
    standin = TwilioStandIn()
    async with rest(standin) as twilio:
        for arguments in ((bad, OWN_NUMBER), (TO, bad)):
            with pytest.raises(ValueError, match="country code"):
                await twilio.create_call(*arguments, url=HOOK)
        with pytest.raises(ValueError, match="country code"):
            await twilio.find_number(bad)
    assert standin.requests == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "either twiml or url"),
        ({"twiml": "<Response/>", "url": HOOK}, "either twiml or url"),
        ({"twiml": "x" * 4001}, "4000"),
        ({"url": HOOK, "timeout": 601}, "timeout"),
        ({"url": HOOK, "timeout": 0}, "timeout"),
        ({"url": HOOK, "time_limit": 0}, "time_limit"),
    ],
)
async def test_a_call_that_cannot_be_is_not_asked_for(options: dict[str, Any], why: str) -> None:
    standin = TwilioStandIn()
    async with rest(standin) as twilio:
        with pytest.raises(ValueError, match=why):
            await twilio.create_call(TO, OWN_NUMBER, **options)
    assert standin.requests == []


@pytest.mark.parametrize(
    ("account_sid", "token", "base_url", "why"),
    [
        ("AC123", AUTH_TOKEN, "https://api.twilio.com", "TWILIO_ACCOUNT_SID"),
        (ACCOUNT_SID + "/", AUTH_TOKEN, "https://api.twilio.com", "TWILIO_ACCOUNT_SID"),
        (ACCOUNT_SID, "", "https://api.twilio.com", "TWILIO_AUTH_TOKEN"),
        (ACCOUNT_SID, AUTH_TOKEN, "http://api.twilio.com", "https"),
    ],
)
def test_credentials_that_cannot_be(account_sid: str, token: str, base_url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TwilioRest(account_sid, token, base_url)


def test_a_malformed_api_key_is_named() -> None:
    with pytest.raises(ValueError, match="TWILIO_API_KEY"):
        TwilioRest(ACCOUNT_SID, "secret", api_key="SK/")
    with pytest.raises(ValueError, match="TWILIO_API_SECRET"):
        TwilioRest(ACCOUNT_SID, "", api_key="SK" + "1" * 32)


@pytest.mark.parametrize("region", ["", "ie1", "au1", "us1"])
@pytest.mark.parametrize("edge", ["", "dublin", "sydney", "ashburn"])
def test_a_region_and_an_edge_have_the_host_of_twilios_own_client(region: str, edge: str) -> None:
    theirs = Client("SK1", "secret", ACCOUNT_SID, region=region, edge=edge)
    assert api_url(region, edge) == theirs.get_hostname("https://api.twilio.com")


async def test_an_api_key_logs_in_for_the_account() -> None:
    asked: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(401, json={"code": 20003, "message": "Authenticate"})

    environment = {
        "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
        "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
        "TWILIO_API_KEY": "SK" + "1" * 32,
        "TWILIO_API_SECRET": "api-secret",
        "TWILIO_REGION": "ie1",
        "TWILIO_EDGE": "dublin",
    }
    login = Secrets.from_environment(environment).twilio_login()
    assert login is not None
    account_sid, secret, options = login
    transport = httpx.MockTransport(answer)
    async with TwilioRest(account_sid, secret, transport=transport, **options) as twilio:
        with pytest.raises(TwilioError) as caught:
            await twilio.hang_up(UNKNOWN_SID)
    where = "TWILIO_API_KEY and TWILIO_API_SECRET, which must be those of api.dublin.ie1.twilio.com"
    assert str(caught.value).endswith(f"; check {where}")
    (request,) = asked
    assert request.url.host == "api.dublin.ie1.twilio.com"
    assert f"/Accounts/{ACCOUNT_SID}/" in request.url.path
    basic = httpx.BasicAuth("SK" + "1" * 32, "api-secret")._auth_header
    assert request.headers["Authorization"] == basic


def test_the_signing_keys_never_log_in() -> None:
    environment = {"TWILIO_ACCOUNT_SID": ACCOUNT_SID, "TWILIO_SIGNING_KEYS": "name=secret"}
    assert Secrets.from_environment(environment).twilio_login() is None


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, b"<html>nginx</html>", "text/html"),
        Answer(404, b"{}"),
        error(404, 20001, "Unknown edge"),
    ],
)
async def test_a_404_of_something_else_is_not_the_end_of_the_call(answer: Answer) -> None:
    """A wrong region or edge, or a proxy: the call may well be on."""
    standin = TwilioStandIn()
    standin.faults.append(answer)
    async with rest(standin) as twilio:
        with pytest.raises(TwilioError) as caught:
            await twilio.hang_up(UNKNOWN_SID)
        assert not caught.value.call_is_over
        assert await twilio.hang_up(UNKNOWN_SID) is False


# ---- how failures read --------------------------------------------------------------------------


async def test_a_refusal_has_twilios_code_and_words() -> None:
    async with rest(TwilioStandIn()) as twilio:
        with pytest.raises(TwilioError) as caught:
            await twilio.create_call(TO, "+15550000001", url=HOOK)
    refusal = caught.value
    assert (refusal.code, refusal.status) == (21210, 400)
    assert refusal.more_info == "https://www.twilio.com/docs/errors/21210"
    assert str(refusal) == (
        "Twilio error 21210: The source phone number provided, +15550000001, is not yet verified "
        "for your account. (HTTP 400); see https://www.twilio.com/docs/errors/21210"
    )


async def test_wrong_credentials_name_the_variables() -> None:
    standin = TwilioStandIn()
    wrong = TwilioRest(ACCOUNT_SID, "another-token", transport=standin.transport())
    async with wrong as twilio:
        with pytest.raises(TwilioError) as caught:
            await twilio.find_number(OWN_NUMBER)
    assert caught.value.code == 20003
    assert "check TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN" in str(caught.value)
    assert len(standin.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(502, b"<html>Bad gateway</html>", "text/html"),
        Answer(500, b"[1]"),
        Answer(503, b"[" * 100_000),
        Answer(500, b'{"code": "x", "message": 7, "more_info": null}'),
        Answer(400, b'{"message": "two\\nlines\\u001b[31m"}'),
        Answer(301, b""),
    ],
)
async def test_an_answer_that_is_not_twilios_is_one_clear_line(answer: Answer) -> None:
    standin = TwilioStandIn()
    standin.faults.append(answer)
    async with rest(standin) as twilio:
        with pytest.raises(TwilioError) as caught:
            await twilio.create_call(TO, OWN_NUMBER, url=HOOK)
    assert caught.value.status == answer.status
    assert str(caught.value).isprintable()
    assert f"(HTTP {answer.status})" in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"sid": "../x"}', b'{"sid": 7}', b"null"])
async def test_a_success_without_a_call_is_none(body: bytes) -> None:
    standin = TwilioStandIn()
    standin.faults.append(Answer(201, body))
    async with rest(standin) as twilio:
        with pytest.raises(TwilioError, match="may have been placed"):
            await twilio.create_call(TO, OWN_NUMBER, url=HOOK)


async def test_secrets_are_in_no_repr_error_traceback_or_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Twilio's own 404 has the account's SID in its words, httpx's log the address, and a wrapped
    exception the request with its Authorization header."""
    standin = TwilioStandIn()
    caught: list[BaseException] = []
    with caplog.at_level(logging.DEBUG):
        async with rest(standin) as twilio:
            assert ACCOUNT_SID not in repr(twilio)
            with pytest.raises(TwilioError) as not_found:
                await twilio.update_call(UNKNOWN_SID, twiml="<Response/>")
            standin.faults.extend([httpx.ReadError(f"{AUTH_TOKEN} {ACCOUNT_SID}")] * 3)
            with pytest.raises(TwilioError) as lost:
                await twilio.find_number(OWN_NUMBER)
    assert "/Calls/" in str(not_found.value)
    error_: BaseException | None
    for error_ in (not_found.value, lost.value):
        while error_ is not None:
            caught.append(error_)
            error_ = error_.__cause__ or error_.__context__
    texts = [caplog.text, *(repr(e) + str(e.__dict__) for e in caught)]
    texts += ["".join(traceback.format_exception(e)) for e in caught]
    for text in texts:
        assert ACCOUNT_SID not in text
        assert AUTH_TOKEN not in text
    assert not any(isinstance(e, httpx.HTTPError) for e in caught)
    assert logging.getLogger("httpx").level == logging.WARNING


# ---- what is tried again ------------------------------------------------------------------------

NEVER_SENT = [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")]
PERHAPS_SENT = [
    httpx.ReadError("reset"),
    httpx.ReadTimeout("slow"),
    httpx.WriteError("reset"),
    httpx.RemoteProtocolError("closed"),
]
FOR_THE_MOMENT = [error(429, 20429, "Too Many Requests"), error(503, 20503, "Service Unavailable")]


@pytest.mark.parametrize("fault", NEVER_SENT, ids=repr)
async def test_what_never_left_is_tried_again(fault: Exception, autojump_clock: Any) -> None:
    standin = TwilioStandIn()
    standin.faults.extend([fault, fault])
    sid = await placed(standin)
    assert list(standin.calls) == [sid]
    assert len(standin.requests) == 3
    standin.calls[sid].status = "in-progress"
    standin.faults.append(fault)
    async with rest(standin) as twilio:
        await twilio.update_call(sid, twiml="<Response/>")
    assert len(standin.calls[sid].updates) == 1


@pytest.mark.parametrize("fault", [*PERHAPS_SENT, *FOR_THE_MOMENT, Lost()], ids=repr)
async def test_a_call_is_never_placed_twice(fault: Any, autojump_clock: Any) -> None:
    standin = TwilioStandIn()
    standin.faults.append(fault)
    async with rest(standin) as twilio:
        with pytest.raises(TwilioError) as caught:
            await twilio.create_call(TO, OWN_NUMBER, url=HOOK)
    assert len(standin.requests) == 1
    if not isinstance(fault, Answer):
        assert isinstance(caught.value, TwilioUnreachable)
        assert caught.value.may_have_arrived
        assert "may have been carried out" in str(caught.value)


@pytest.mark.parametrize("fault", [*PERHAPS_SENT, *FOR_THE_MOMENT, Lost()], ids=repr)
async def test_a_transfer_is_never_begun_twice(fault: Any, autojump_clock: Any) -> None:
    standin = TwilioStandIn()
    sid = await placed(standin)
    standin.calls[sid].status = "in-progress"
    standin.faults.append(fault)
    async with rest(standin) as twilio:
        with pytest.raises(TwilioError):
            await twilio.update_call(sid, twiml="<Response/>")
    assert len(standin.requests) == 2


@pytest.mark.parametrize("fault", [*NEVER_SENT, *PERHAPS_SENT, *FOR_THE_MOMENT, Lost()], ids=repr)
async def test_what_may_be_done_twice_is_tried_again(fault: Any, autojump_clock: Any) -> None:
    standin = TwilioStandIn()
    sid = await placed(standin)
    standin.faults.extend([fault, fault])
    async with rest(standin) as twilio:
        await twilio.hang_up(sid)
        assert standin.calls[sid].status == "canceled"
        standin.faults.extend([fault, fault])
        assert await twilio.find_number(OWN_NUMBER) is not None
        standin.faults.extend([fault, fault])
        await twilio.set_voice_webhook("PN" + "0" * 31 + "1", HOOK)
    assert len(standin.requests) == 1 + 3 * 3


async def test_it_is_tried_three_times_and_no_more(autojump_clock: Any) -> None:
    standin = TwilioStandIn()
    standin.faults.extend(FOR_THE_MOMENT * 3)
    async with rest(standin) as twilio:
        with pytest.raises(TwilioError, match="20429"):
            await twilio.find_number(OWN_NUMBER)
    assert len(standin.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501])
async def test_a_refusal_for_good_is_not_tried_again(status: int) -> None:
    standin = TwilioStandIn()
    standin.faults.append(error(status, 20000 + status, "No."))
    async with rest(standin) as twilio:
        with pytest.raises(TwilioError, match="No"):
            await twilio.find_number(OWN_NUMBER)
    assert len(standin.requests) == 1


@pytest.mark.parametrize("deadline", [10.0, 3.0])
async def test_every_request_ends_by_its_deadline(deadline: float, autojump_clock: Any) -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    transport = httpx.MockTransport(silent)
    async with TwilioRest(
        ACCOUNT_SID, AUTH_TOKEN, transport=transport, deadline=deadline
    ) as twilio:
        for request in (
            twilio.find_number(OWN_NUMBER),
            twilio.hang_up(UNKNOWN_SID),
            twilio.create_call(TO, OWN_NUMBER, url=HOOK),
        ):
            began = trio.current_time()
            with pytest.raises(TwilioUnreachable, match=f"within {deadline:g} seconds"):
                await request
            assert trio.current_time() - began == pytest.approx(deadline)


async def test_cancelled_a_request_is_cancelled(autojump_clock: Any) -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with TwilioRest(ACCOUNT_SID, AUTH_TOKEN, transport=httpx.MockTransport(silent)) as twilio:
        with trio.move_on_after(1) as scope:
            await twilio.find_number(OWN_NUMBER)
        assert scope.cancelled_caught
