"""The record: what is kept, cut and cleaned, and which of two writings stays."""

from __future__ import annotations

import json
import math
from datetime import UTC

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.call.story import Line
from bridge.config.settings import CostSettings
from bridge.records import record as records
from bridge.records.record import CallRecord, cost_of, decode, encode, merge, snapshot, tidy
from tests.unit.records.samples import NASTY, SID, any_record, record, whole_record


@given(any_record)
def test_any_record_survives_tidying_and_the_spool(one: CallRecord) -> None:
    """Whatever is in it: it can be written as one line, and comes back as it was written."""
    tidied = tidy(snapshot(one))
    line = encode(tidied)
    assert line.count(b"\n") == 1
    assert decode(line) == tidied
    assert tidy(snapshot(tidied)) == tidied
    text = line.decode()
    assert "\\u0000" not in text.replace("\\\\", "")
    assert tidied.started_at.tzinfo is UTC


def test_an_ordinary_record_is_left_as_it_is():
    assert tidy(snapshot(whole_record())) == whole_record()
    assert not tidy(snapshot(whole_record())).shortened


def test_a_snapshot_is_a_copy():
    one = whole_record()
    copy = snapshot(one)
    one.transcript[0].heard = "unheard"
    one.turns[0].latencies["x"] = 1.0
    one.transcript.append(Line(words="later"))
    assert tidy(copy) == whole_record()


def test_without_words_the_timings_stay():
    one = whole_record(words_kept=False)
    kept = tidy(snapshot(one))
    assert [(line.at, line.role, line.words) for line in kept.transcript] == [
        (line.at, line.role, "") for line in one.transcript
    ]
    assert [line.heard for line in kept.transcript] == [line.heard for line in one.transcript]
    assert kept.turns == one.turns
    (function,) = kept.functions
    assert (function.name, function.seconds) == ("look_up", 0.2)
    assert (function.arguments, function.answer) == ("", "")
    text = encode(kept).decode()
    assert not [line.words for line in one.transcript if line.words in text]


def test_a_record_is_bounded(monkeypatch):
    monkeypatch.setattr(records, "TEXT_LIMIT", 1000)
    monkeypatch.setattr(records, "WORDS_LIMIT", 300)
    monkeypatch.setattr(records, "ITEMS_LIMIT", 50)
    one = record(
        caller="9" * 10_000, transcript=[Line(at=float(i), words="w" * 1000) for i in range(1000)]
    )
    kept = tidy(snapshot(one))
    assert len(kept.caller) == records.FIELD_LIMIT
    assert [len(line.words) for line in kept.transcript] == [300, 300, 300, 100] + [0] * 46
    assert kept.shortened


def test_what_is_no_number_is_left_out():
    one = record(seconds=math.nan, cost=math.inf, setup_seconds=-math.inf)
    one.turns = [records.Turn(heard_at=math.nan, latencies={"good": 1.0, "bad": math.nan})]
    kept = tidy(snapshot(one))
    assert (kept.seconds, kept.cost, kept.setup_seconds) == (0.0, None, None)
    assert kept.turns == [records.Turn(latencies={"good": 1.0})]


def test_languages_are_tidied_like_other_words():
    one = record(transcript=[Line(languages=["es", "\x00\ud800", "x" * 1000] + ["en"] * 100)])
    (line,) = tidy(snapshot(one)).transcript
    assert line.languages[:3] == ["es", "\ufffd\ufffd", "x" * records.FIELD_LIMIT]
    assert len(line.languages) == 20


def test_a_line_of_a_newer_version_can_be_read():
    line = encode(record())[:-2] + b',"invented_later":[1]}\n'
    assert decode(line) == record()


@pytest.mark.parametrize("name", ["caller_stopped_at", "caller_said_at"])
def test_the_confirmation_of_a_turn_had_other_names(name: str) -> None:
    """Two of them, both of which sounded like the end of the speech."""
    turn = {name: 2.0, "first_audio_sent_at": 2.5}
    line = {"call_sid": SID, "started_at": "2126-03-01T12:00:00Z", "turns": [turn, {}]}
    (old, empty) = decode(json.dumps(line).encode()).turns
    assert (old.confirmed_at, old.speech_ended_at, old.reply_seconds) == (2.0, None, None)
    assert empty.confirmed_at is None


def test_half_a_line_cannot():
    with pytest.raises(msgspec.MsgspecError):
        decode(encode(whole_record())[:-20])


# ---- merging -------------------------------------------------------------------------------------


def merged(*writings: CallRecord) -> CallRecord:
    result = snapshot(writings[0])
    for writing in writings[1:]:
        result = merge(result, snapshot(writing))
    return tidy(result)


def test_the_higher_revision_stays_in_either_order():
    begun, ended = record(revision=1), whole_record(revision=2)
    assert merged(begun, ended) == merged(ended, begun) == ended


def test_an_equal_revision_replaces():
    """A worker that dials and one that carries the call both begin at 1; the later knows more."""
    assert merged(record(revision=1), whole_record(revision=1)) == whole_record(revision=1)


@given(st.permutations(["initiated", "ringing", "in-progress", "completed"]))
def test_the_last_status_stays_in_any_order(order: list[str]) -> None:
    sequence = {"initiated": 0, "ringing": 1, "in-progress": 2, "completed": 3}
    notes = [record(status=status, status_sequence=sequence[status]) for status in order]
    result = merged(whole_record(revision=1, status="", status_sequence=-1), *notes)
    assert (result.status, result.status_sequence) == ("completed", 3)
    assert result.outcome == "transferred"


def test_a_record_does_not_forget_a_status_it_does_not_know():
    note = record(status="in-progress", status_sequence=2, answered_by="human")
    result = merged(note, record(revision=1, outcome="idle"))
    assert (result.status, result.answered_by, result.outcome) == ("in-progress", "human", "idle")


# ---- cost ----------------------------------------------------------------------------------------


def test_cost_is_by_exact_fractions_of_a_minute():
    costs = CostSettings(agent_per_minute=0.08, phone_per_minute=0.0085)
    assert cost_of(90.0, 60.0, costs) == pytest.approx(0.08 + 1.5 * 0.0085)
    assert cost_of(0.0, 0.0, costs) == 0.0


def test_without_rates_there_is_no_cost():
    assert cost_of(90.0, 60.0, CostSettings()) is None


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_is_kept_but_for_what_no_database_takes(text):
    kept = tidy(snapshot(record(transcript=[Line(words=text)]))).transcript[0].words
    expected = "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)
    assert kept == expected
