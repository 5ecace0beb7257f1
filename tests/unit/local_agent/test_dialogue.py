"""A dialogue's file: the one that comes with bridge, and each mistake with its remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bridge.local_agent import phrases
from bridge.local_agent.dialogue import DialogueError, dialogue_of, load_dialogue
from bridge.local_agent.restaurant import Book, book_table

GOOD = """
[slots.guests]
ask = "How many?"
answers = ["{guests}"]
words = { two = 2, four = 4 }

[[turns]]
name = "book"
phrases = ["a table for {guests}"]
needs = ["guests"]
call = { name = "book_table", arguments = { guests = "{guests}" } }
reply = "Table {result.table}."

[[turns]]
name = "bye"
phrases = ["goodbye"]
reply = "Bye."
end = true
"""


def test_the_restaurant_is_in_order() -> None:
    dialogue = load_dialogue()
    assert dialogue.file.greeting
    shown = phrases()
    assert "a table for ⟨four⟩ at ⟨seven⟩" in shown
    assert "goodbye" in shown
    assert len(set(shown)) == len(shown)
    setup = dialogue.setup(voice="espeak-ng")
    assert setup.grammar.startswith("#JSGF")
    assert {"table", "half", "monday", "please", "anna"} <= set(setup.words)
    ways = {name for turn in dialogue.file.turns if turn.call for name in [turn.call.name]}
    assert ways == {"book_table", "transfer_call"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ('[[turns]]\nname = "bye"', '[[turn]]\nname = "bye"'),
            "turn: unknown key; did you mean turns",
        ),
        (("end = true", "ends = true"), r"turns\[1\].ends: unknown key; did you mean end\?"),
        (("ask =", "asks ="), r"slots.guests.asks: unknown key; did you mean ask\?"),
        (('{ name = "book_table",', '{ nme = "book_table",'), r"turns\[0\].call.nme: unknown"),
        (("end = true", 'end = "yes"'), r"turns\[1\].end: Expected `bool`, got `str`"),
        (('phrases = ["goodbye"]', "phrases = []"), r"turns\[1\].phrases"),
        (('["goodbye"]', '["Goodbye!"]'), r'turns\[1\].phrases\[0\]: has "Goodbye!"'),
        (
            ("for {guests}", "for {guest}"),
            r"turns\[0\].phrases\[0\]: there is no slot {guest}; did you mean",
        ),
        (
            ('needs = ["guests"]', 'needs = ["time"]'),
            r"turns\[0\].needs\[0\]: there is no slot {time}",
        ),
        (('ask = "How many?"\n', ""), r"turns\[0\].needs\[0\]: slots.guests lacks ask"),
        (
            ('answers = ["{guests}"]', 'answers = ["many"]'),
            r"slots.guests.answers\[0\]: has no {guests}",
        ),
        (("two = 2", '"2" = 2'), 'slots.guests.words: "2" is not a spoken form'),
        (('reply = "Bye."', 'reply = "Bye {name}."'), r"turns\[1\].reply: there is no slot {name}"),
        (
            ('reply = "Bye."', 'reply = "{result.x}"'),
            r"turns\[1\].reply: has {result.x}, but the turn has no call",
        ),
        (('reply = "Bye."\n', ""), r"turns\[1\].reply: is missing"),
        (('name = "bye"', 'name = "book"'), r'turns\[1\].name: "book" is taken'),
        (("needs =", "end = true\nneeds ="), r"turns\[0\].end: a turn either ends"),
        (
            ('ask = "How', 'default = "three"\nask = "How'),
            'slots.guests.default: "three" is not one of its words',
        ),
        (("[slots.guests]", "unknown = []\n[slots.guests]"), "unknown: Expected `array` of length"),
        (
            ("[slots.guests]", '[pronunciations]\nnyoki = "nyoki"\n[slots.guests]'),
            "pronunciations.nyoki: expected sounds",
        ),
        (
            ("[slots.guests]", 'before = ["for {guests}"]\n[slots.guests]'),
            r"before\[0\]: slots are not allowed",
        ),
    ],
)
def test_a_mistake(change: tuple[str, str], words: str) -> None:
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    with pytest.raises(DialogueError, match=words) as error:
        dialogue_of(tomllib.loads(text))
    assert "\n" not in str(error.value)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    with pytest.raises(DialogueError, match=r"mine\.toml: cannot be read: No such file"):
        load_dialogue(file)
    file.write_text("turns = [", encoding="utf-8")
    with pytest.raises(DialogueError, match=r"mine\.toml: not TOML"):
        load_dialogue(file)
    file.write_text(GOOD, encoding="utf-8")
    assert phrases(file) == ["a table for ⟨two⟩", "goodbye"]
    file.write_text("", encoding="utf-8")
    with pytest.raises(DialogueError, match=r"mine\.toml: .*turns"):
        load_dialogue(file)


def test_the_restaurants_book() -> None:
    book = Book({1: 2, 2: 4})
    assert [book.take(2, "19:00", "today", "") for _ in range(3)] == [1, 2, None]
    assert book.take(2, "19:00", "tomorrow", "") == 1
    assert book.take(5, "20:00", "today", "") is None
    assert book_table.__name__ == "book_table"
