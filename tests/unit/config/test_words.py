"""What bridge says in other languages: each shipped file is whole, and can be used."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import msgspec
import pytest

from bridge.config.toml import parse
from bridge.config.words import Words

LANGUAGES = {
    file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
    for file in sorted((files("bridge.config") / "languages").iterdir(), key=str)
}
ENGLISH = msgspec.structs.asdict(Words())


def test_there_are_six() -> None:
    assert LANGUAGES.keys() == {"de", "en", "es", "fr", "it", "pt"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_has_every_key_in_order_and_can_be_used(language: str) -> None:
    assert list(tomllib.loads(LANGUAGES[language])["words"]) == list(ENGLISH)
    words = parse(LANGUAGES[language]).words
    assert words.language.startswith(f"{language}-")
    assert f".{words.voice}".startswith(".Polly.")


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
def test_nothing_in_it_is_left_in_english(language: str) -> None:
    words = msgspec.structs.asdict(parse(LANGUAGES[language]).words)
    assert {key for key in ENGLISH if words[key] == ENGLISH[key]} == set()
    assert all(text.count("{") == ENGLISH[key].count("{") for key, text in words.items())


def test_the_english_ones_are_the_defaults() -> None:
    words = parse(LANGUAGES["en"]).words
    assert msgspec.structs.replace(words, voice="") == Words()


def test_pressed_keys_stand_where_the_sentence_has_them() -> None:
    assert Words(keypad="J'ai tapé {digits}.").pressed("1*4") == "J'ai tapé 1*4."
