"""Phrases: how they are written, what matches them, how they look."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.local_agent.grammar import PhraseError, grammar, normal, parse, written

SLOTS = {"guests": ["two", "four"], "time": ["seven", "half past six", "seven thirty"]}


def matches(phrase: str, text: str) -> dict[str, str | None] | None:
    found = re.fullmatch(parse(phrase).pattern(SLOTS), normal(text))
    return None if found is None else found.groupdict()


@pytest.mark.parametrize(
    ("phrase", "text", "slots"),
    [
        ("goodbye", "Goodbye!", {}),
        ("goodbye", "good buy", None),
        ("help [me]", "help", {}),
        ("help [me]", "help me", {}),
        ("help [me]", "help us", None),
        ("(can | could) you [please] help", "Could you help?", {}),
        ("(can | could) you [please] help", "Would you help?", None),
        (
            "a table for {guests} at {time}",
            "A table for 4, at 7:30 pm",
            {"guests": "four ", "time": "seven thirty "},
        ),
        ("at {time} [o'clock]", "at 7 o’clock", {"time": "seven "}),
        ("at {time}", "at 18:30", None),
        ("at {time}", "at half past six", {"time": "half past six "}),
        ("at {time}", "at sevenish", None),
        ("what's on", "what is on", {}),
        ("what is on", "What's on?", {}),
        ("[i would like | (yes | no)] tea", "no tea", {}),
        ("yes | no thanks", "no thanks", {}),
    ],
)
def test_what_matches(phrase: str, text: str, slots: dict[str, str] | None) -> None:
    assert matches(phrase, text) == slots


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("", "nothing where words should be"),
        ("[please]", "nothing that must be said"),
        ("(a | )", "nothing where words should be"),
        ("help [me", r"a \[ without its \]"),
        ("help me)", r"a \) that closes nothing"),
        ("(help me]", r"a \( without its \)"),
        ("at 7", r'"7"; write words in lower case'),
        ("Hello there", '"Hello"; write words'),
        ("hello, there", '"hello,"'),
        ("at {the time}", "cannot be read at"),
        ("at {Time}", "a slot's name"),
        ("from {time} to {time}", "{time} more than once"),
        ("very " * 100, "longer than 300"),
    ],
)
def test_what_is_no_phrase(phrase: str, words: str) -> None:
    with pytest.raises(PhraseError, match=words):
        parse(phrase)


@given(st.text(max_size=60))
def test_anything_is_a_phrase_or_an_error(text: str) -> None:
    with suppress(PhraseError):
        phrase = parse(text)
        re.compile(phrase.pattern({name: ["x"] for name in phrase.slots()}))


@given(st.text(max_size=60))
def test_normal_text_is_words_each_with_a_space(text: str) -> None:
    assert re.fullmatch(r"(\S+ )*", normal(text))
    assert normal(normal(text)) == normal(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("19:30", "seven thirty "),
        ("7.05", "seven five "),
        ("7 p.m.", "seven "),
        ("42", "forty two "),
        ("555 1234", "five five five one two three four "),
        ("I'd say OK", "i would say okay "),
        ("…", ""),
    ],
)
def test_numbers_and_contractions(text: str, words: str) -> None:
    assert normal(text) == words


def test_the_grammar_of_a_recogniser() -> None:
    rules = {"book": [parse("a table for {guests} [please]")], "bye": [parse("bye | so long")]}
    assert grammar(rules, {"guests": ["two", "four"]}, before=[parse("hello")]).splitlines() == [
        "#JSGF V1.0;",
        "grammar dialogue;",
        "public <dialogue> = [ hello ] ( <book> | <bye> ) ;",
        "<book> = a table for <slot_guests> [ please ] ;",
        "<bye> = ( bye | so long ) ;",
        "<slot_guests> = two | four ;",
    ]


def test_as_people_read_and_write_it() -> None:
    phrase = parse("(i want | i'd like) a table for {guests} [please]")
    assert phrase.readable({"guests": "four"}) == "I want a table for ⟨four⟩"
    assert written("when will i'd say i come") == "When will I'd say I come"
