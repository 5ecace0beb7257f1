"""The two ends of a call as Twilio writes them: numbers, other addresses, and no number at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.twilio.numbers import check_line, counted_as, known_caller, line_of

# https://help.twilio.com/articles/223179988, and the words that Twilio passes on.
WITHHELD = [
    *("", "Anonymous", "anonymous", "ANONYMOUS", "Restricted", "unavailable", "Unknown", "Private"),
    *("+266696687", "+7378742833", "+86282452253", "+2562533", "+8656696", "+8566696", "+464"),
    *("sip:anonymous@anonymous.invalid", "sip:Anonymous@10.0.0.7:5060;transport=udp"),
]


@pytest.mark.parametrize("caller", WITHHELD)
def test_all_who_withhold_their_number_are_one_caller(caller: str) -> None:
    assert known_caller(caller) == ""
    assert counted_as(caller) == "withheld"


@pytest.mark.parametrize(
    "caller",
    [
        *("+15551234567", "+26669668", "+86282452254", "+17378742833", "911"),
        *("client:anonymous", "client:Ann", "whatsapp:+15551234567", "softphone"),
        *("sip:ann@example.com", "sip:+266696687x@example.com"),
    ],
)
def test_all_others_are_known(caller: str) -> None:
    assert known_caller(caller) == counted_as(caller) == caller


def test_a_sip_caller_is_one_caller_whatever_the_parameters() -> None:
    for form in ("sip:ann@Example.com", "sip:ann@example.com:5061;x=y", "SIPS:ann@example.com"):
        assert counted_as(form) == "sip:ann@example.com"


@pytest.mark.parametrize(
    "address", ["", "5551234567", "sip:", "sip:@x", "sip:a b@x", "client:", "whatsapp:1", "tel:+1"]
)
def test_what_cannot_be_called_is_refused_with_the_forms_that_can(address: str) -> None:
    with pytest.raises(ValueError, match=r"expected a phone number .* or sip:name@host"):
        check_line(address)


@given(st.text())
def test_any_text_has_a_form(address: str) -> None:
    assert line_of(line_of(address)) == line_of(address)
    known_caller(address)
