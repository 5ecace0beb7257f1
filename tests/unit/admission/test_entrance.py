"""Admission as one: a reservation at the webhook, a ticket, and `start` on the media socket."""

from __future__ import annotations

import pytest
import trio

from bridge.admission.entrance import RESERVED_BRIEFLY, Entrance
from bridge.admission.slots import RESERVED_SECONDS, NotAdmitted
from bridge.config.settings import LimitSettings, ServerSettings, Settings, TwilioSettings

SID = "CA" + "0f" * 16
ONE = Settings(server=ServerSettings(max_calls=1))
CALLER = "+15551234567"


def start(entrance: Entrance, settings: Settings, sid: str = SID, ticket: str = "") -> int:
    """Open a media socket that sends `start`, and return how many slots are taken meanwhile."""
    with entrance.socket(settings) as entry:
        entrance.admit(settings, entry, "phone", call_sid=sid, caller=CALLER, ticket=ticket)
        return len(entrance.slots)


async def test_a_call_takes_its_slot_from_the_webhook_to_the_end() -> None:
    entrance = Entrance()
    await entrance.reserve(ONE, SID, CALLER)
    assert entrance.is_full(ONE)
    assert start(entrance, ONE, ticket=entrance.ticket(SID)) == 1
    assert not entrance.is_full(ONE)


async def test_a_server_that_drains_soon_admits_no_new_calls_and_carries_announced_ones() -> None:
    """It says at once that it drains; who has not heard yet may still send calls (A2)."""
    two = Settings(server=ServerSettings(max_calls=2))
    entrance = Entrance()
    await entrance.reserve(two, SID, CALLER)
    assert not entrance.draining
    entrance.drain(3)
    assert entrance.draining
    await trio.sleep(2.9)
    await entrance.reserve(two, "CA2", CALLER)
    await trio.sleep(0.2)
    with pytest.raises(NotAdmitted, match="stopping"):
        await entrance.reserve(two, "CA3", CALLER)
    assert start(entrance, two, ticket=entrance.ticket(SID)) == 2


async def test_to_drain_again_prolongs_nothing() -> None:
    entrance = Entrance()
    entrance.drain()
    entrance.drain(3)
    with pytest.raises(NotAdmitted, match="stopping"):
        await entrance.reserve(ONE, SID, CALLER)


async def test_a_call_is_expected_while_it_may_be_admitted_or_has_a_slot() -> None:
    entrance = Entrance()
    assert entrance.expects_calls
    await entrance.reserve(ONE, SID, CALLER)
    entrance.drain()
    await trio.sleep(RESERVED_SECONDS - 0.1)
    assert entrance.expects_calls
    await trio.sleep(0.2)
    assert not entrance.expects_calls


@pytest.mark.parametrize("ticket", ["", "another call's", "used"])
async def test_a_bad_ticket_is_not_admitted_and_its_slot_stays_reserved(ticket: str) -> None:
    entrance = Entrance()
    await entrance.reserve(ONE, SID, CALLER)
    given = {"": "", "another call's": entrance.ticket("CA2"), "used": entrance.ticket(SID)}[ticket]
    if ticket == "used":
        start(entrance, ONE, ticket=given)
        await entrance.reserve(ONE, SID, CALLER)
    with pytest.raises(NotAdmitted, match="ticket"):
        start(entrance, ONE, ticket=given)
    assert len(entrance.slots) == 1


async def test_without_required_tickets_the_limits_decide() -> None:
    using = Settings(
        server=ServerSettings(max_calls=1), twilio=TwilioSettings(require_ticket=False)
    )
    entrance = Entrance()
    assert start(entrance, using) == 1
    await entrance.reserve(using, "CA2", "")
    with pytest.raises(NotAdmitted, match=r"server\.max_calls"):
        start(entrance, using)


@pytest.mark.parametrize(("workers", "seconds"), [(1, RESERVED_SECONDS), (2, RESERVED_BRIEFLY)])
async def test_a_slot_is_reserved_briefly_where_another_process_may_carry_the_call(
    workers: int, seconds: float
) -> None:
    using = Settings(server=ServerSettings(max_calls=1, workers=workers))
    entrance = Entrance()
    await entrance.reserve(using, SID, CALLER)
    await trio.sleep(seconds - 0.1)
    assert len(entrance.slots) == 1
    await trio.sleep(0.2)
    assert len(entrance.slots) == 0


async def test_a_ticket_of_another_process_admits_beyond_the_limits() -> None:
    """The call was admitted there: it is not dropped because this process is full."""
    using = Settings(
        server=ServerSettings(max_calls=1, workers=2), limits=LimitSettings(calls_per_minute=1)
    )
    entrance, other = Entrance(), Entrance()
    other.tickets = entrance.tickets
    await entrance.reserve(using, "CA2", "")
    assert start(entrance, using, ticket=other.ticket(SID)) == 2
