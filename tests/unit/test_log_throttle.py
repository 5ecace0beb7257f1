"""A line that strangers could cause at will is due once in a while, and counts the others."""

from __future__ import annotations

from bridge.log_throttle import LogThrottle


def test_a_line_is_due_once_in_a_while() -> None:
    now = 0.0
    seldom = LogThrottle(5.0, lambda: now)
    assert seldom.due() == 0
    assert [seldom.due() for _ in range(3)] == [None, None, None]
    now = 4.9
    assert seldom.due() is None
    now = 5.0
    assert seldom.due() == 4
    assert seldom.due() is None
    now = 100.0
    assert seldom.due() == 1
