"""Matches a text to a turn of the dialogue and to its slots. Sans-I/O.

Spoken and typed text are treated alike. In order of preference: the text is a phrase; it contains a
phrase (the longest wins); it contains a keyword, and perhaps answers for the turn's slots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bridge.local_agent.dialogue import Dialogue, TurnEntry
from bridge.local_agent.grammar import Phrase, normal

# Longer typed text is cut: the work grows with the length and runs in the event loop.
MAX_TEXT = 300  # characters


@dataclass(frozen=True)
class Meaning:
    """A turn of the dialogue, and the words said for its slots."""

    turn: TurnEntry
    slots: dict[str, str] = field(default_factory=dict)


class Understanding:
    """Matches text to the phrases of one dialogue."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._turns = list(zip(dialogue.file.turns, dialogue.phrases, strict=True))
        self._patterns = [
            (turn, self._compiled(phrase)) for turn, phrases in self._turns for phrase in phrases
        ]
        self._answers = {
            name: [self._compiled(phrase) for phrase in phrases]
            for name, phrases in dialogue.answers.items()
        }
        self._keywords = [
            (turn, f" {normal(keyword)}") for turn, _ in self._turns for keyword in turn.keywords
        ]
        lead = "|".join(phrase.pattern({}) for phrase in dialogue.before)
        trail = "|".join(phrase.pattern({}) for phrase in dialogue.after)
        self._lead = re.compile(f"(?:{lead})+") if lead else None
        self._trail = re.compile(f"(?:^|(?<= ))(?:{trail})+$") if trail else None

    def meaning(self, text: str) -> Meaning | None:
        """Return the turn that matches `text`, or None."""
        said = normal(text[:MAX_TEXT])
        bare = self._bare(said)
        for candidate in dict.fromkeys((said, bare)):
            for turn, pattern in self._patterns:
                if found := pattern.fullmatch(candidate):
                    return Meaning(turn, self._slots(found))
        return self._somewhere(said) or self._by_keyword(said)

    def answer(self, text: str, slots: Iterable[str]) -> dict[str, str]:
        """Return the slots that `text` answers, trying `slots` in order; empty if none."""
        bare = self._bare(normal(text[:MAX_TEXT]))
        for name in slots:
            for pattern in self._answers[name]:
                if found := pattern.fullmatch(bare):
                    return self._slots(found)
        return {}

    def _compiled(self, phrase: Phrase) -> re.Pattern[str]:
        return re.compile(phrase.pattern(self._dialogue.slot_words))

    def _bare(self, said: str) -> str:
        """Strip what may surround any phrase, unless nothing else is left."""
        bare = said
        if self._lead and (found := self._lead.match(bare)):
            bare = bare[found.end() :]
        if self._trail and (found := self._trail.search(bare)):
            bare = bare[: found.start()]
        return bare or said

    def _slots(self, found: re.Match[str]) -> dict[str, str]:
        return {
            name: self._dialogue.spoken(name, value)
            for name, value in found.groupdict().items()
            if value is not None
        }

    def _somewhere(self, said: str) -> Meaning | None:
        best: tuple[int, Meaning] | None = None
        for turn, pattern in self._patterns:
            for found in _at_words(pattern, said):
                # A lone "yes" or "help" in a long sentence says little about its meaning.
                if found[0].count(" ") > 1 and (best is None or len(found[0]) > best[0]):
                    best = len(found[0]), Meaning(turn, self._slots(found))
        return best and best[1]

    def _by_keyword(self, said: str) -> Meaning | None:
        hits = [(len(word), turn) for turn, word in self._keywords if word in f" {said}"]
        if not hits:
            return None
        _, turn = max(hits, key=lambda hit: hit[0])
        return Meaning(turn, self._gathered(said, turn))

    def _gathered(self, said: str, turn: TurnEntry) -> dict[str, str]:
        """Find answers for the turn's slots anywhere in the text; a bare word does not count, since
        "seven" may be a time or a number of people."""
        gathered: dict[str, str] = {}
        for name in turn.needs:
            for phrase, pattern in zip(
                self._dialogue.answers[name], self._answers[name], strict=True
            ):
                if phrase.words():
                    for found in _at_words(pattern, said):
                        if found[0] != f"{found[name]}":
                            gathered |= {name: self._slots(found)[name]}
        return gathered


def _at_words(pattern: re.Pattern[str], said: str) -> Sequence[re.Match[str]]:
    """Find matches at the starts of words; the patterns themselves end at word ends."""
    starts = [0, *(found.end() for found in re.finditer(" ", said))]
    return [found for start in starts if (found := pattern.match(said, start))]
