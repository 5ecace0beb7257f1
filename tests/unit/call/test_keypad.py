"""The keypad: when an entry is complete, and what of it reaches the agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.call.keypad import MAX_KEYS, Keypad
from bridge.config.words import Words


def press_all(keypad: Keypad, digits: str, now: float = 0.0) -> list[str | None]:
    return [keypad.press(digit, now) for digit in digits]


def test_the_pound_key_completes_what_was_entered() -> None:
    keypad = Keypad()
    assert press_all(keypad, "1*4#") == [None, None, None, "1*4"]
    assert keypad.due_at is None


def test_a_pause_completes_what_was_entered() -> None:
    keypad = Keypad(pause=2.0)
    keypad.press("4", 10.0)
    keypad.press("2", 11.5)
    assert keypad.due_at == 13.5
    assert keypad.take(13.4) is None
    assert keypad.take(13.5) == "42"
    assert keypad.due_at is None
    assert keypad.take(99.0) is None


def test_nothing_is_due_before_the_first_key() -> None:
    keypad = Keypad()
    assert keypad.due_at is None
    assert keypad.take(1e9) is None


def test_the_pound_key_alone_is_a_key() -> None:
    keypad = Keypad()
    assert keypad.press("#", 0.0) == "#"
    assert press_all(keypad, "1##") == [None, "1", "#"]


def test_a_key_after_an_unnoticed_pause_begins_a_new_entry() -> None:
    keypad = Keypad(pause=2.0)
    keypad.press("1", 0.0)
    assert keypad.press("2", 2.0) == "1"
    assert keypad.due_at == 4.0
    assert keypad.take(4.0) == "2"


def test_the_pound_key_after_such_a_pause_completes_all_the_same() -> None:
    keypad = Keypad(pause=2.0)
    keypad.press("1", 0.0)
    assert keypad.press("#", 60.0) == "1"
    assert keypad.due_at is None


def test_a_key_held_down_does_not_grow_without_end() -> None:
    keypad = Keypad()
    *before, last = press_all(keypad, "7" * MAX_KEYS)
    assert before == [None] * (MAX_KEYS - 1)
    assert last == "7" * MAX_KEYS
    assert keypad.due_at is None
    assert keypad.press("8", 0.0) is None


@pytest.mark.parametrize("digit", ["", "12", "a", "E", "w", "\n", "٣", "²", "１", "##", " "])
def test_a_digit_that_no_keypad_has_changes_nothing(digit: str) -> None:
    keypad = Keypad(pause=2.0)
    keypad.press("1", 0.0)
    assert keypad.press(digit, 1.0) is None
    assert keypad.due_at == 2.0
    assert keypad.press(digit, 5.0) is None
    assert keypad.take(5.0) == "1"


@pytest.mark.parametrize("pause", [0.0, -1.0])
def test_a_pause_takes_time(pause: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Keypad(pause)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("0123456789*#ABCD"),
            st.sampled_from([0, 1, 2, 3]),
            st.booleans(),
        ),
        max_size=200,
    )
)
def test_every_key_is_in_one_entry_and_in_order(keys: list[tuple[str, int, bool]]) -> None:
    """Whether or not `take` is called when the pause has passed."""
    keypad, now = Keypad(pause=2.0), 0
    entries: list[str | None] = []
    for digit, waited, taken in keys:
        now += waited
        if taken:
            entries.append(keypad.take(now))
        entries.append(keypad.press(digit, now))
        assert keypad.due_at in (None, now + 2.0)
    entries.append(keypad.take(now + 2.0))
    whole = [entry for entry in entries if entry is not None]
    assert all(0 < len(entry) <= MAX_KEYS for entry in whole)
    pressed = "".join(digit for digit, _, _ in keys)
    assert "".join(whole).replace("#", "") == pressed.replace("#", "")
    assert all("#" not in entry or entry == "#" for entry in whole)


def test_the_agent_hears_of_it_in_the_callers_words() -> None:
    assert Words().pressed("1234") == "I pressed 1234 on my phone's keypad."
    assert Words().pressed("#") == "I pressed # on my phone's keypad."
