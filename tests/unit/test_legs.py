"""What a later leg of a call is told of the earlier ones."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bridge.call.story import FunctionUse, Line
from bridge.config.words import Words
from bridge.legs import HISTORY_ITEMS, call_ended_address, history_of
from bridge.records.record import (
    REVISIONS_OF_ONE,
    CallRecord,
    Leg,
    continued,
    merge,
    snapshot,
    tidy,
)
from tests.unit.records.samples import SID, record, whole_record

WORDS = Words(keypad="J'ai tapé {digits}.")


def texts(items: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in items if "role" in one]


def test_what_was_heard_was_said() -> None:
    call = record(
        transcript=[
            Line(at=0, role="agent", words="Hello!", heard="heard"),
            Line(at=1, role="caller", words="Sales."),
            Line(at=2, role="agent", words="One moment.", heard="cut", heard_seconds=0.5),
            Line(at=3, role="agent", words="Never heard.", heard="unheard"),
            Line(at=4, role="keypad", words="42"),
            Line(at=5, role="agent", words="Just now."),
        ]
    )
    assert texts(history_of(call, WORDS)) == [
        ("assistant", "Hello!"),
        ("user", "Sales."),
        ("assistant", "One moment."),
        ("user", "J'ai tapé 42."),
        ("assistant", "Just now."),
    ]


def test_functions_stand_where_they_were_used_and_the_last_transfer_has_its_result() -> None:
    def used(at: float, name: str) -> FunctionUse:
        return FunctionUse(at=at, name=name, arguments="{}", answer='"done"')

    names = ("transfer_call", "book", "transfer_call")
    call = record(
        transcript=[Line(at=2.5, words="Between.")],
        functions=[used(at, name) for at, name in enumerate(names, 1)],
    )
    first, second, words, third = history_of(call, WORDS, 'no-"answer')
    assert words["content"] == "Between."
    answers = [item["function_calls"][0] for item in (first, second, third)]
    assert [one["name"] for one in answers] == list(names)
    assert [json.loads(one["response"]) for one in answers] == [
        *("done", "done"),
        {"DialCallStatus": 'no-"answer'},
    ]
    assert len({one["id"] for one in answers}) == 3
    # In the shape of Deepgram's own SDK.
    from deepgram.agent.v1.types import AgentV1HistoryFunctionCalls

    for item in (first, second, third):
        AgentV1HistoryFunctionCalls(**item)


def test_words_that_are_not_kept_are_no_history() -> None:
    call = tidy(snapshot(whole_record(words_kept=False)))
    assert call.transcript
    assert history_of(call, WORDS, "busy") == []


def test_a_long_conversation_is_resumed_from_its_end() -> None:
    call = record(transcript=[Line(at=n, words=str(n)) for n in range(HISTORY_ITEMS + 7)])
    items = history_of(call, WORDS)
    assert len(items) == HISTORY_ITEMS
    assert items[0]["content"] == "7"


def test_the_address_keeps_an_outbound_calls_variables_and_nothing_else() -> None:
    query = {
        "var.name": "Ann & Bob",
        "agent": "sales",
        "leg": "9",
        "transfer": "x",
        "fallback": "1",
    }
    kept = "var.name=Ann+%26+Bob&agent=sales"
    assert call_ended_address("https://h", 1) == "https://h/call-ended"
    assert call_ended_address("", 1, query) == f"call-ended?{kept}"
    assert call_ended_address("", 2, query, transfer="a b") == (
        f"call-ended?{kept}&leg=2&transfer=a+b"
    )


def test_the_next_writer_owns_a_copy() -> None:
    old = whole_record(revision=7)
    new = continued(old)
    assert msgspec.structs.replace(new, revision=7) == old
    assert new.revision == REVISIONS_OF_ONE
    new.legs.append(Leg())
    new.transcript.clear()
    assert len(old.legs) == 2
    assert old.transcript


@given(st.integers(0, 3 * REVISIONS_OF_ONE), st.integers(0, REVISIONS_OF_ONE - 1))
def test_what_the_writer_before_still_writes_comes_too_late(revision: int, late: int) -> None:
    old = record(revision=revision, outcome="handed_over")
    new = continued(old)
    new.outcome = "transferred"
    begun = revision // REVISIONS_OF_ONE * REVISIONS_OF_ONE
    still = record(revision=begun + late, outcome="handed_over", reason="late")
    for merged in (merge(snapshot(new), snapshot(still)), merge(snapshot(still), snapshot(new))):
        assert msgspec.convert(merged, CallRecord).outcome == "transferred"
    assert new.call_sid == SID
