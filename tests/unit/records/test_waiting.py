"""The backlog of records: bounded, merging, in order. Compared with a model of it, step by step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.records import waiting as module
from bridge.records.record import merge
from bridge.records.waiting import Waiting

LIMIT = 4


@pytest.fixture(autouse=True, scope="module")
def small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WAITING_CALLS", LIMIT)
        yield


def snapshot(sid: str, outcome: str = "", revision: int = 1) -> dict[str, Any]:
    return {"call_sid": sid, "outcome": outcome, "revision": revision}


def sids(waiting: Waiting) -> list[str]:
    return [one["call_sid"] for one in waiting.oldest(100)]


def test_calls_wait_in_the_order_in_which_they_came():
    waiting = Waiting()
    for sid in "CAB":
        assert waiting.add(snapshot(sid))
    assert sids(waiting) == ["C", "A", "B"]
    assert [one["call_sid"] for one in waiting.oldest(2)] == ["C", "A"]
    assert len(waiting) == 3


def test_a_newer_snapshot_is_merged_and_keeps_the_calls_place():
    waiting = Waiting()
    for sid in "AB":
        waiting.add(snapshot(sid))
    waiting.add(snapshot("A", "idle", revision=2))
    assert sids(waiting) == ["A", "B"]
    assert waiting.get("A") == snapshot("A", "idle", revision=2)
    # One that was overtaken changes nothing.
    waiting.add(snapshot("A", "", revision=1))
    assert waiting.get("A") == snapshot("A", "idle", revision=2)


def test_full_the_oldest_call_that_is_still_on_makes_room():
    waiting = Waiting()
    for sid, outcome in zip("ABCD", ("idle", "", "", "idle"), strict=True):
        waiting.add(snapshot(sid, outcome))
    assert waiting.add(snapshot("E", "idle"))
    assert sids(waiting) == ["A", "C", "D", "E"]


def test_full_of_calls_that_are_over_it_takes_no_more_but_merges():
    waiting = Waiting()
    for sid in "ABCD":
        waiting.add(snapshot(sid, "idle"))
    assert not waiting.add(snapshot("E", "idle"))
    assert waiting.add(snapshot("A", "idle", revision=2))
    assert sids(waiting) == ["A", "B", "C", "D"]


def test_what_was_written_is_removed_but_not_what_came_meanwhile():
    waiting = Waiting()
    waiting.add(snapshot("A"))
    waiting.add(snapshot("B"))
    batch = waiting.oldest(2)
    waiting.add(snapshot("A", "idle", revision=2))
    waiting.remove(batch)
    assert sids(waiting) == ["A"]
    assert waiting.get("B") is None


SIDS = st.sampled_from("ABCDEFG")
STEPS = st.one_of(
    st.tuples(st.just("add"), SIDS, st.sampled_from(["", "idle"]), st.integers(0, 5)),
    st.tuples(st.just("take"), st.integers(1, 5)),
    st.tuples(st.just("remove")),
)


@given(st.lists(STEPS, max_size=60))
def test_whatever_comes_it_stays_bounded_and_loses_only_what_it_may(steps):
    waiting, model, batch = Waiting(), {}, []
    for step in steps:
        match step:
            case ("add", sid, outcome, revision):
                new = snapshot(sid, outcome, revision)
                known = sid in model
                unfinished = [one for one, snap in model.items() if not snap["outcome"]]
                taken = waiting.add(new)
                assert taken == (known or len(model) < LIMIT or bool(unfinished))
                if known:
                    model[sid] = merge(model[sid], new)
                elif taken:
                    if len(model) == LIMIT:
                        del model[unfinished[0]]
                    model[sid] = new
            case ("take", count):
                batch = waiting.oldest(count)
                assert batch == list(model.values())[:count]
            case ("remove",):
                stale = {one["call_sid"] for one in batch if waiting.get(one["call_sid"]) is one}
                waiting.remove(batch)
                model = {sid: one for sid, one in model.items() if sid not in stale}
        assert waiting.oldest(100) == list(model.values())
        assert len(waiting) == len(model) <= LIMIT
