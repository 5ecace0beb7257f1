"""Words that are written instead of spoken: what `POST /calls/{sid}/say` takes. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from bridge.http.dialling import BadRequest

# What a caller might say in one breath is a fifth of this.
MAX_WORDS: Final = 1000


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of `POST /calls/{sid}/say`."""

    text: str


def read_words(body: bytes) -> str:
    """The words of `{"text": "..."}`, on one line, without characters that nobody can say.

    Raises BadRequest, with status 400 for what is not that JSON and 422 for no words or too many.
    """
    try:
        text = msgspec.json.decode(body, type=Said).text
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest("", f'expected {{"text": "..."}}: {error}', status=400) from error
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not words:
        raise BadRequest("text", "expected some words")
    if len(words) > MAX_WORDS:
        raise BadRequest("text", f"expected at most {MAX_WORDS} characters")
    return words
