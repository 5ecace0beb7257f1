"""Text from outside: made safe for a line of a terminal or a log, and compared with known words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 with line breaks and ESC, DEL, C1
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # breaks, bidi marks, the invisible
    "\ud800-\udfff\U000e0000-\U000e007f]"  # surrogates, which UTF-8 cannot encode, and tags
)


def printable(text: str) -> str:
    r"""`text` with every character that could break, restyle or reorder a line of a terminal
    written as an escape (`\n`, `\x1b`, `\u202e`).
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def closest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that was probably meant by `word`, "" if none is similar enough."""
    # Comparing takes time in proportion to the length, and no known word is so long.
    return next(iter(difflib.get_close_matches(word[:80], list(known), n=1)), "")
