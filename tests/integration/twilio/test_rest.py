"""Twilio's REST API over real sockets."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path

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


async def test_a_closed_port_on_real_sockets() -> None:
    async with trio.open_nursery() as nursery:
        base_url = await nursery.start(TwilioStandIn().serve)
        nursery.cancel_scope.cancel()
    with trio.fail_after(20):
        async with TwilioRest(ACCOUNT_SID, AUTH_TOKEN, base_url) as twilio:
            with pytest.raises(TwilioUnreachable) as caught:
                await twilio.create_call(TO, OWN_NUMBER, url=HOOK)
    assert not caught.value.may_have_arrived


def open_sockets() -> int:
    descriptors = Path("/proc/self/fd")
    links = []
    for one in descriptors.iterdir():
        with suppress(OSError):  # the one that lists them
            links.append(str(one.readlink()))
    return sum(link.startswith("socket:") for link in links)


async def test_a_request_given_up_during_tls_leaves_no_socket() -> None:
    """httpcore's own clean-up is its garbage's: so none is collected meanwhile."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    accepted: list[trio.SocketStream] = []
    arrived, arrival = trio.open_memory_channel[None](10)

    async def accept() -> None:
        while True:
            accepted.append(await listener.accept())
            assert await accepted[-1].receive_some()  # TLS has begun
            await arrived.send(None)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        gc.disable()
        try:
            async with TwilioRest(ACCOUNT_SID, AUTH_TOKEN, f"https://127.0.0.1:{port}") as twilio:
                before = open_sockets()
                for _ in range(5):
                    async with trio.open_nursery() as given_up:
                        given_up.start_soon(twilio.hang_up, "CA" + "0" * 32)
                        await arrival.receive()
                        given_up.cancel_scope.cancel(reason="given up")
                assert open_sockets() - before - len(accepted) == 0
        finally:
            gc.enable()
        nursery.cancel_scope.cancel(reason="the test is over")
    for stream in accepted:
        await trio.aclose_forcefully(stream)
