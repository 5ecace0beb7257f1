"""Text from outside, made safe to show on a line of a terminal or a log."""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 with line breaks and ESC, DEL, C1
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # breaks, bidi marks, the invisible
    "\ud800-\udfff\U000e0000-\U000e007f]"  # what no UTF-8 stream takes, and tag characters
)


def printable(text: str) -> str:
    r"""`text` with every character that could break, restyle or reorder a line of a terminal
    written as an escape (`\n`, `\x1b`, `\u202e`).
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
