"""Pauses that grow."""

from __future__ import annotations

from itertools import islice

import pytest

from bridge.backoff import pauses


def test_each_is_twice_the_last_until_the_longest():
    assert list(islice(pauses(0.5, 3), 6)) == [0.5, 1, 2, 3, 3, 3]


def test_the_factor_can_be_another():
    assert list(islice(pauses(1, 20, factor=3), 4)) == [1, 3, 9, 20]


def test_none_is_longer_than_the_longest():
    assert next(pauses(5, 1)) == 1


@pytest.mark.parametrize("count", [10_000])
def test_they_neither_end_nor_overflow(count):
    assert list(islice(pauses(0.25, 15), count))[-1] == 15
