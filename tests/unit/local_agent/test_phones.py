"""Whether two recognisers heard the same sounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.local_agent.phones import MAX_DISTANCE, Pronunciations, distance, is_phones


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("AH", "AH", 0.0),
        ("AH B", "AH", 0.5),
        ("AH B K", "AH M K", 1 / 3),
        ("AH B K", "AH D K", 0.6 / 3),  # both are stops
        ("AH B K", "AH P K", 0.3 / 3),  # the same, with voice and without
        ("AH B K D", "B K D", 0.25),
        ("AH", "B", 1.0),
        ("", "AH", 1.0),
        ("", "", 1.0),
    ],
)
def test_distance(one: str, other: str, apart: float) -> None:
    assert distance(one.split(), other.split()) == pytest.approx(apart)
    assert distance(other.split(), one.split()) == pytest.approx(apart)


def test_the_dictionary(tmp_path: Path) -> None:
    file = tmp_path / "some.dict"
    file.write_text("read R IY D\nread(2) R EH D\ntable T EY B AH L\n\nodd\n", encoding="utf-8")
    known = Pronunciations.read(file, {"gnocchi": "N Y OW K IY"})
    assert known.phones("read") == ["R", "IY", "D"]
    assert known.of_text("read gnocchi unknown") == ["R", "IY", "D", "N", "Y", "OW", "K", "IY"]
    assert not known.phones("odd")


def test_other_words_with_the_same_sounds_are_near_and_other_sounds_are_not(tmp_path: Path) -> None:
    file = tmp_path / "some.dict"
    file.write_text(
        "for F AO R\nfour F AO R\ntable T EY B AH L\nkitchen K IH CH AH N\nbright B R AY T\n",
        encoding="utf-8",
    )
    known = Pronunciations.read(file, {})
    table = known.of_text("table for")
    assert distance(table, known.of_text("table four")) == 0
    assert distance(table, known.of_text("kitchen bright")) > MAX_DISTANCE


@pytest.mark.parametrize(
    ("text", "good"), [("N Y OW K IY", True), ("nyoki", False), ("", False), ("N  Y", False)]
)
def test_what_is_written_as_sounds(text: str, good: bool) -> None:
    assert is_phones(text) is good
