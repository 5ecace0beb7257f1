"""The distance in sounds between a phrase and what was said.

A recogniser that knows only the dialogue's phrases hears one in everything. Its result is accepted
when recognisers without phrases heard similar sounds, even as other words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

# Above this distance a phrase is rejected. Tuned with two synthetic voices: 92 of 102 known phrases
# were accepted, and 3 of 54 other sentences, each of them close to a phrase.
MAX_DISTANCE = 0.56

# Substituting similar sounds costs less: those of one class, and those easily confused.
_KINDS = (
    "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW",
    "P B T D K G",
    "F V TH DH S Z SH ZH CH JH HH",
    "M N NG",
    "L R W Y",
)
_ALIKE = (
    "P B",
    "T D",
    "K G",
    "F V",
    "TH DH",
    "S Z",
    "SH ZH",
    "CH JH",
    "M N NG",
    "IY IH EY Y",
    "AH ER AE EH IH",
    "AA AO OW AH AW",
    "UW UH OW",
    "L W OW",
    "D DH",
    "F TH",
)


def _costs() -> dict[tuple[str, str], float]:
    costs: dict[tuple[str, str], float] = {}
    for cost, groups in ((0.6, _KINDS), (0.3, _ALIKE)):
        for group in groups:
            sounds = group.split()
            costs |= {(one, other): cost for one in sounds for other in sounds if one != other}
    return costs


_COSTS = _costs()


class Pronunciations:
    """The pronunciations of words, in ARPAbet as in the CMU dictionary."""

    def __init__(self, entries: Mapping[str, Sequence[str]]) -> None:
        self._entries = dict(entries)

    @classmethod
    def read(cls, path: Path, more: Mapping[str, str]) -> Pronunciations:
        """Read a dictionary of lines such as `hello HH AH L OW`; `more` adds to it. Blocks."""
        entries: dict[str, Sequence[str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            word, _, phones = line.partition(" ")
            # "read(2)" is an alternative; the first pronunciation is enough for comparing.
            if phones and not word.endswith(")"):
                entries[word] = phones.split()
        entries.update({word: phones.split() for word, phones in more.items()})
        return cls(entries)

    def phones(self, word: str) -> Sequence[str]:
        """Return the sounds of one word; empty if it is unknown."""
        return self._entries.get(word, ())

    def of_text(self, text: str) -> list[str]:
        """Return the sounds of all words in order; unknown words are skipped."""
        return [phone for word in text.split() for phone in self.phones(word)]


def distance(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the weighted edit distance divided by the longer length: 0 equal, 1 unrelated."""
    if not one or not other:
        return 1.0
    before = [float(column) for column in range(len(other) + 1)]
    for row, left in enumerate(one, 1):
        now = [float(row)]
        for column, right in enumerate(other, 1):
            cost = 0.0 if left == right else _COSTS.get((left, right), 1.0)
            now.append(min(before[column - 1] + cost, before[column] + 1, now[-1] + 1))
        before = now
    return before[-1] / max(len(one), len(other))


def is_phones(text: str) -> bool:
    """Return whether `text` is a pronunciation in the dictionary's notation."""
    return bool(re.fullmatch(r"[A-Z]{1,2}( [A-Z]{1,2})*", text))
