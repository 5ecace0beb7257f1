"""A log line that remote peers can trigger is allowed once in a while; the others are counted."""

from __future__ import annotations

from bridge.log_throttle import LogThrottle


def test_a_line_is_due_once_in_a_while() -> None:
    now = 0.0
    throttle = LogThrottle(5.0, lambda: now)
    assert throttle.due() == 0
    assert [throttle.due() for _ in range(3)] == [None, None, None]
    now = 4.9
    assert throttle.due() is None
    now = 5.0
    assert throttle.due() == 4
    assert throttle.due() is None
    now = 100.0
    assert throttle.due() == 1
