"""Twilio's REST API over real sockets."""

from __future__ import annotations

import pytest
import trio

from bridge.twilio import twiml
from bridge.twilio.rest import TwilioRest, TwilioUnreachable
from tests.twilio_standin import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    OWN_NUMBER,
    Lost,
    TwilioStandIn,
)

TO = "+15551234567"

HOOK = "https://voice.example.com/incoming-call"


async def test_a_call_from_first_to_last_on_real_sockets() -> None:
    standin = TwilioStandIn()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            base_url = await nursery.start(standin.serve)
            async with TwilioRest(ACCOUNT_SID, AUTH_TOKEN, base_url) as twilio:
                call = await twilio.create_call(TO, OWN_NUMBER, twiml=twiml.hang_up("Hi"))
                standin.calls[call.call_sid].status = "in-progress"
                assert await twilio.hang_up(call.call_sid) is True
                assert await twilio.hang_up(call.call_sid) is False
                standin.faults.append(Lost())
                with pytest.raises(TwilioUnreachable) as caught:
                    await twilio.create_call(TO, OWN_NUMBER, url=HOOK)
                assert caught.value.may_have_arrived
                assert len(standin.calls) == 2
            nursery.cancel_scope.cancel()


async def test_nobody_there_on_real_sockets() -> None:
    async with trio.open_nursery() as nursery:
        base_url = await nursery.start(TwilioStandIn().serve)
        nursery.cancel_scope.cancel()
    with trio.fail_after(20):
        async with TwilioRest(ACCOUNT_SID, AUTH_TOKEN, base_url) as twilio:
            with pytest.raises(TwilioUnreachable) as caught:
                await twilio.create_call(TO, OWN_NUMBER, url=HOOK)
    assert not caught.value.may_have_arrived
