"""Tickets: each holds for one call, one purpose, one use, and a while."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.admission import ticket as module
from bridge.admission.ticket import (
    BadTicket,
    EpochClock,
    Purpose,
    Tickets,
    digest_of,
    ticket_keys,
)
from bridge.twilio import twiml

SID = "CA" + "0f" * 16
OTHER = "CA" + "0e" * 16
NOW = 1_780_000_000.0


def use(tickets: Tickets, ticket: str, sid: str, now: float, purpose: Purpose = "phone") -> str:
    """Use a ticket, and return the reason if it is refused, else ""."""
    try:
        tickets.use(ticket, sid, now, purpose=purpose)
    except BadTicket as error:
        return str(error)
    return ""


@pytest.fixture
def tickets() -> Tickets:
    return Tickets(ticket_keys(["auth-token"]))


def test_a_ticket_holds_for_its_call(tickets: Tickets) -> None:
    ticket = tickets.issue(SID, NOW, lifetime=30)
    assert use(tickets, ticket, SID, NOW + 29) == ""


def test_it_is_short_and_can_stand_in_an_address(tickets: Tickets) -> None:
    ticket = tickets.issue(SID, NOW, lifetime=30, purpose="softphone")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,199}", ticket)


def test_no_two_are_the_same(tickets: Tickets) -> None:
    assert tickets.issue(SID, NOW, lifetime=30) != tickets.issue(SID, NOW, lifetime=30)


def test_it_is_used_up(tickets: Tickets) -> None:
    ticket = tickets.issue(SID, NOW, lifetime=30)
    assert use(tickets, ticket, SID, NOW) == ""
    assert use(tickets, ticket, SID, NOW) == "a ticket that was used before"


def test_a_use_that_failed_does_not_use_it_up(tickets: Tickets) -> None:
    ticket = tickets.issue(SID, NOW, lifetime=30)
    assert use(tickets, ticket, OTHER, NOW) == "the ticket of another call"
    assert use(tickets, ticket, SID, NOW) == ""


def test_it_expires(tickets: Tickets) -> None:
    ticket = tickets.issue(SID, NOW, lifetime=30)
    assert use(tickets, ticket, SID, NOW + 30) == "a ticket that expired 0 seconds ago"
    assert use(tickets, ticket, SID, NOW + 90) == "a ticket that expired 60 seconds ago"


def test_it_is_for_one_purpose(tickets: Tickets) -> None:
    phones = tickets.issue(SID, NOW, lifetime=30)
    pages = tickets.issue(SID, NOW, lifetime=30, purpose="softphone")
    assert "for a softphone" in use(tickets, pages, SID, NOW)
    assert "for a phone" in use(tickets, phones, SID, NOW, purpose="softphone")
    assert use(tickets, pages, SID, NOW, purpose="softphone") == ""


def test_reading_does_not_use_it_up(tickets: Tickets) -> None:
    ticket = tickets.issue(SID, NOW, lifetime=30, purpose="softphone")
    for _ in range(2):
        read = tickets.read(ticket, NOW, purpose="softphone")
        assert (read.call_sid, read.expires) == (SID, NOW + 30)
    assert use(tickets, ticket, SID, NOW, purpose="softphone") == ""


def test_any_process_with_the_secret_can_check_it(tickets: Tickets) -> None:
    ticket = tickets.issue(SID, NOW, lifetime=30)
    assert use(Tickets(ticket_keys(["auth-token"])), ticket, SID, NOW) == ""
    assert use(Tickets(ticket_keys(["another"])), ticket, SID, NOW) != ""


def test_it_survives_the_rotation_of_the_secret() -> None:
    before = Tickets(ticket_keys(["old"])).issue(SID, NOW, lifetime=30)
    rotating = Tickets(ticket_keys(["new", "old"]))
    assert use(rotating, before, SID, NOW) == ""
    after = rotating.issue(SID, NOW, lifetime=30)
    assert use(Tickets(ticket_keys(["new"])), after, SID, NOW) == ""
    assert use(Tickets(ticket_keys(["old"])), after, SID, NOW) != ""


def test_the_first_source_with_a_secret_gives_the_keys() -> None:
    assert ticket_keys((), ["", "b"], ["c"]) == ticket_keys(["b"])
    assert ticket_keys(["b"]) != ticket_keys(["c"])
    assert b"b" not in ticket_keys(["b"])
    assert ticket_keys((), [""]) != ticket_keys((), [""])  # random


@given(position=st.integers(min_value=0, max_value=1000), flip=st.integers(1, 127))
def test_a_ticket_with_any_character_changed_does_not_hold(position: int, flip: int) -> None:
    tickets = Tickets(ticket_keys(["auth-token"]))
    ticket = tickets.issue(SID, NOW, lifetime=30)
    at = position % len(ticket)
    forged = ticket[:at] + chr(ord(ticket[at]) ^ flip) + ticket[at + 1 :]
    # Of the last of 43 characters two bits are padding; decoded, more than one text would be the
    # same MAC, so that what is compared are the texts.
    assert use(tickets, forged, SID, NOW) != ""


@given(ticket=st.text(max_size=300), call_sid=st.text(max_size=40))
def test_any_text_gets_an_answer_that_does_not_repeat_it(ticket: str, call_sid: str) -> None:
    answer = use(Tickets(ticket_keys(["auth-token"])), ticket, call_sid, NOW)
    assert answer in ("no ticket", "not a ticket")


def test_a_sid_that_would_be_read_differently_gets_none(tickets: Tickets) -> None:
    for strange in ("", "CA.1", "CA\n", "CA" * 40, "CA é"):
        with pytest.raises(ValueError, match="letters and digits"):
            tickets.issue(strange, NOW, lifetime=30)
    with pytest.raises(BadTicket):
        tickets.read("", NOW)
    with pytest.raises(ValueError, match="need a key"):
        Tickets(())


def test_memory_of_use_is_bounded(tickets: Tickets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_USED", 3)
    for number in range(3):
        ticket = tickets.issue(SID, NOW, lifetime=10 + number)
        assert use(tickets, ticket, SID, NOW) == ""
    one_more = tickets.issue(SID, NOW, lifetime=60)
    assert use(tickets, one_more, SID, NOW) == "too many tickets at once"
    # The first has expired, and is forgotten.
    assert use(tickets, one_more, SID, NOW + 10) == ""


# ---- the clock ----------------------------------------------------------------------------------


class Machine:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.steady = 100.0
        self.wall = NOW
        self.clock = EpochClock(lambda: self.wall, lambda: self.steady, patience=60)

    def wait(self, seconds: float, drift: float = 0.0) -> float:
        self.steady += seconds
        self.wall += seconds + drift
        return self.clock() - NOW


def test_the_clock_is_the_machines() -> None:
    machine = Machine()
    assert machine.clock() == NOW
    assert machine.wait(10) == 10
    # NTP's small corrections are followed.
    assert machine.wait(10, drift=0.1) == pytest.approx(20.1)
    assert machine.wait(10, drift=-0.3) == pytest.approx(29.8)


def test_a_clock_set_forward_expires_no_ticket() -> None:
    machine = Machine()
    machine.clock()
    tickets = Tickets(ticket_keys(["auth-token"]))
    ticket = tickets.issue(SID, machine.clock(), lifetime=60)
    machine.wait(1, drift=3600)
    assert use(tickets, ticket, SID, machine.clock()) == ""
    assert machine.wait(58) == 59
    assert machine.wait(2) == 3661  # when every ticket of before has had its time


def test_a_clock_set_back_is_followed_at_once() -> None:
    machine = Machine()
    machine.clock()
    assert machine.wait(1, drift=-3600) == -3599
    # And forward again, as NTP does that finds the clock wrong twice.
    assert machine.wait(1, drift=3600) == -3598
    assert machine.wait(60) == 62


# ---- who calls whom -----------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from(["From", "To", "direction", "agent"]), st.text(max_size=600))
)
def test_facts_count_as_the_stream_brings_them(parameters: dict[str, str]) -> None:
    """Cut, cleaned and without empty values, as they are written into TwiML and read from it."""
    document = twiml.connect_stream("wss://a/m", action="https://a/e", parameters=parameters)
    root = ElementTree.fromstring(document)
    brought = {one.attrib["name"]: one.attrib["value"] for one in root.iter("Parameter")}
    assert digest_of(brought) == digest_of(parameters)


@pytest.mark.parametrize("name", ["From", "To", "direction", "agent"])
def test_each_fact_counts(name: str) -> None:
    facts = {"From": "+1", "To": "+2", "direction": "", "agent": "", "name": "Ann"}
    assert digest_of({**facts, name: "other"}) != digest_of(facts)
    assert digest_of({**facts, "name": "Bob"}) == digest_of(facts)
    assert digest_of({"From": "+1", "To": "+2"}) == digest_of(facts)
