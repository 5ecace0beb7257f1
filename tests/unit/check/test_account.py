"""The Twilio account, asked through the stand-in for its REST API."""

from __future__ import annotations

import httpx
import pytest

from bridge.check.account import check_account
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN, OWN_NUMBER, TwilioStandIn, number
from tests.world import settings

PUBLIC = "https://voice.example.com"
HOOK = f"{PUBLIC}/incoming-call"
STATUS = f"{PUBLIC}/call-status"
GOOD = Secrets(twilio_account_sid=ACCOUNT_SID, twilio_auth_tokens=(AUTH_TOKEN,))
USING = settings(server={"public_url": PUBLIC})


async def check(
    twilio: TwilioStandIn, secrets: Secrets = GOOD, asked: str = "", using: Settings = USING
):
    def open_rest(sid: str, token: str) -> TwilioRest:
        return TwilioRest(sid, token, transport=twilio.transport(), deadline=5)

    return list(await check_account(secrets, using, asked, open_rest))


async def test_good_credentials():
    twilio = TwilioStandIn()
    assert [found.status for found in await check(twilio)] == ["ok"]
    # Reading is all that is done to an account.
    assert {method for method, _, _ in twilio.requests} == {"GET"}


async def test_a_wrong_token():
    wrong = Secrets(twilio_account_sid=ACCOUNT_SID, twilio_auth_tokens=("another-token",))
    [found] = await check(TwilioStandIn(), wrong)
    assert found.status == "wrong"
    assert "check TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN" in found.why
    assert "another-token" not in found.line


async def test_a_sid_that_is_none():
    [found] = await check(
        TwilioStandIn(), Secrets(twilio_account_sid="AC1", twilio_auth_tokens=("x",))
    )
    assert found.status == "wrong"
    assert "32 hexadecimal digits" in found.why


async def test_twilio_cannot_be_reached():
    twilio = TwilioStandIn()
    twilio.faults += [httpx.ConnectError("no route")] * 3
    [found] = await check(twilio)
    assert found.status == "wrong"
    assert "api.twilio.com" in found.remedy


@pytest.mark.parametrize(
    ("secrets", "missing"),
    [
        (Secrets(), "TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"),
        (Secrets(twilio_auth_tokens=("x",)), "TWILIO_ACCOUNT_SID"),
    ],
)
async def test_without_credentials(secrets, missing):
    unsigned = settings(twilio={"validate_signatures": False})
    [found] = await check(TwilioStandIn(), secrets, using=unsigned)
    assert (found.status, found.what) == ("skipped", f"{missing}: not set")
    [found] = await check(TwilioStandIn(), secrets, OWN_NUMBER, unsigned)
    assert found.status == "wrong"


async def test_without_a_token_the_server_does_not_start():
    [found] = await check(TwilioStandIn(), Secrets())
    assert found.status == "wrong"
    assert "TWILIO_AUTH_TOKEN" in found.what
    assert "twilio.validate_signatures = false" in found.remedy


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"voice_url": HOOK, "status_callback": STATUS}, "ok", "is answered by"),
        (
            {"voice_url": HOOK, "status_callback": STATUS, "voice_method": "GET"},
            "ok",
            "is answered by",
        ),
        ({"voice_url": HOOK}, "warning", "status callback is not set"),
        ({"voice_url": HOOK, "status_callback": "https://old/s"}, "warning", "https://old/s"),
        ({"voice_url": "https://old.example/voice"}, "wrong", "https://old.example/voice"),
        ({}, "wrong", "has no voice webhook"),
        ({"voice_url": HOOK, "trunk_sid": "TK" + "0" * 32}, "wrong", "trunk"),
        ({"voice_url": HOOK, "voice_application_sid": "AP" + "0" * 32}, "wrong", "application"),
    ],
)
async def test_what_answers_a_number(fields, status, words):
    found = (await check(TwilioStandIn(number(OWN_NUMBER, **fields)), asked=OWN_NUMBER))[1]
    assert (found.check, found.status) == ("number", status)
    assert words in found.line


async def test_a_number_of_somebody_else():
    found = (await check(TwilioStandIn(), asked="+15550000001"))[1]
    assert found.status == "wrong"
    assert "no number +15550000001" in found.what


async def test_without_a_public_address_the_number_cannot_be_judged():
    twilio = TwilioStandIn(number(OWN_NUMBER, voice_url=HOOK))
    found = (await check(twilio, asked=OWN_NUMBER, using=Settings()))[1]
    assert found.status == "warning"
    assert "server.public_url" in found.remedy
