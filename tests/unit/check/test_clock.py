"""The clock, judged by the Date header of others."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from bridge.check.clock import check_clock, judge, skew

NOON = 1_800_000_000.0


@pytest.mark.parametrize(
    ("theirs", "asked", "answered", "ahead"),
    [
        (NOON, NOON, NOON + 1, 0.0),
        # The header has whole seconds, and was written at any time in between.
        (NOON, NOON + 0.9, NOON + 1.2, 0.0),
        (NOON + 2, NOON, NOON + 5, 0.0),
        (NOON, NOON + 61, NOON + 62, 60.0),
        (NOON + 60, NOON, NOON + 2, -58.0),
    ],
)
def test_skew(theirs, asked, answered, ahead):
    date = formatdate(theirs, usegmt=True)
    assert skew(date, asked, answered) == pytest.approx(ahead)


@pytest.mark.parametrize("date", ["", "yesterday", "Tue, 99 Foo 2026 00:00:00 GMT"])
def test_what_is_no_date(date):
    assert skew(date, NOON, NOON) is None


@pytest.mark.parametrize(("ahead", "words"), [(300.0, "300 s ahead of"), (-31.0, "31 s behind")])
def test_a_clock_that_is_wrong(ahead, words):
    found = judge(ahead, "agent.example")
    assert found.status == "wrong"
    assert words in found.what
    assert "NTP" in found.remedy


async def test_nobody_to_ask():
    [found] = await check_clock([])
    assert found.status == "skipped"
