"""How far a call has come, whatever the order in which Twilio's reports arrive."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.twilio.call_status import BadStatus, Progress, StatusUpdate, fold, read_status

SID = "CA" + "0123456789abcdef" * 2


def update(status: str, sequence: int | None = None, **more: object) -> StatusUpdate:
    return StatusUpdate(call_sid=SID, status=status, sequence=sequence, **more)  # type: ignore[arg-type]


ANSWERED = [
    update("queued"),  # the answer to the request that placed it
    update("initiated", 0),
    update("ringing", 1),
    update("in-progress", 2),
    StatusUpdate(call_sid=SID, answered_by="human"),
    update("completed", 3, seconds=42, sip_code=200),
]


@pytest.mark.parametrize("ending", ["completed", "busy", "failed", "no-answer", "canceled"])
def test_every_order_comes_to_the_same_end(ending: str) -> None:
    reports = [*ANSWERED[:-1], update(ending, 3, seconds=42, sip_code=200)]
    for order in permutations(reports):
        known = None
        for report in order:
            known = fold(known, report)
        assert known == StatusUpdate(
            call_sid=SID,
            status=ending,
            sequence=3,
            seconds=42,
            sip_code=200,
            answered_by="human",
        )


def test_without_its_end_the_latest_step_is_known() -> None:
    for count in range(2, 5):
        for order in permutations(ANSWERED[:count]):
            known = None
            for report in order:
                known = fold(known, report)
            assert known is not None
            assert known.status == ANSWERED[count - 1].status


def test_a_call_that_has_ended_stays_ended_whatever_the_number() -> None:
    ended = update("busy", 2)
    for late in (update("ringing", 7), update("in-progress", 9), update("completed", 10)):
        assert fold(ended, late).status == "busy"


def test_reports_without_numbers_go_by_the_steps_of_a_call() -> None:
    known = fold(update("in-progress"), update("ringing"))
    assert known.status == "in-progress"
    assert fold(update("ringing", 1), update("in-progress")).status == "in-progress"


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ({"CallStatus": "ringing", "SequenceNumber": "1"}, update("ringing", 1)),
        (
            {"CallStatus": "completed", "CallDuration": "42", "SipResponseCode": "200"},
            update("completed", seconds=42, sip_code=200),
        ),
        ({"AnsweredBy": "machine_end_beep"}, update("", answered_by="machine_end_beep")),
        ({"CallStatus": "teleported"}, update("")),
        ({"CallStatus": "ringing", "SequenceNumber": "-1"}, update("ringing")),
        ({"CallStatus": "ringing", "SequenceNumber": "\u0661"}, update("ringing")),
        ({"CallStatus": "ringing", "SequenceNumber": "9" * 5000}, update("ringing")),
        ({"AnsweredBy": "<script>"}, update("")),
        ({"From": "+1" * 90, "To": "x"}, update("", caller=("+1" * 90)[:64], called="x")),
    ],
)
def test_what_a_form_says(form: dict[str, str], read: StatusUpdate) -> None:
    assert read_status({"CallSid": SID, **form}) == read


@given(
    st.dictionaries(
        st.sampled_from(["CallSid", "CallStatus", "SequenceNumber", "AnsweredBy"]), st.text()
    )
)
def test_any_form_is_read_or_refused(form: dict[str, str]) -> None:
    try:
        read_status(form)
    except BadStatus:
        return
    assert form["CallSid"].startswith("CA")


def test_memory_is_bounded_and_the_latest_come_first() -> None:
    progress = Progress(remembered=3)
    sids = [f"CA{n:032x}" for n in range(5)]
    for sid in sids:
        progress.fold(StatusUpdate(call_sid=sid, status="queued"))
    progress.fold(StatusUpdate(call_sid=sids[2], status="ringing"))
    assert [known.call_sid for known in progress.latest()] == [sids[2], sids[4], sids[3]]
    assert progress.get(sids[0]) is None
