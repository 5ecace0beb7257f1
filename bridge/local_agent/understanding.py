"""Which turn of a dialogue a text is, and what it says for the slots. Pure.

Spoken and typed text come the same way. A whole phrase is best; then a phrase somewhere in the
text, the longest; then a keyword, and whatever answers to its slots are in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bridge.local_agent.dialogue import Dialogue, TurnEntry
from bridge.local_agent.grammar import Phrase, normal

# Of what somebody types, so much is looked at: the work grows with it, and it is done on the loop.
MAX_TEXT = 300  # characters


@dataclass(frozen=True)
class Meaning:
    """A turn of the dialogue, and the words said for slots."""

    turn: TurnEntry
    slots: dict[str, str] = field(default_factory=dict)


class Understanding:
    """Understands text in terms of one dialogue."""

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
        """The turn that `text` is; None if it is none."""
        said = normal(text[:MAX_TEXT])
        bare = self._bare(said)
        for candidate in dict.fromkeys((said, bare)):
            for turn, pattern in self._patterns:
                if found := pattern.fullmatch(candidate):
                    return Meaning(turn, self._slots(found))
        return self._somewhere(said) or self._by_keyword(said)

    def answer(self, text: str, slots: Iterable[str]) -> dict[str, str]:
        """What `text` answers when asked for one of `slots`, the first one first; empty if it is
        no answer."""
        bare = self._bare(normal(text[:MAX_TEXT]))
        for name in slots:
            for pattern in self._answers[name]:
                if found := pattern.fullmatch(bare):
                    return self._slots(found)
        return {}

    def _compiled(self, phrase: Phrase) -> re.Pattern[str]:
        return re.compile(phrase.pattern(self._dialogue.slot_words))

    def _bare(self, said: str) -> str:
        """Without what may surround any phrase, unless that is all there is."""
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
                # A lone "yes" or "help" in a long sentence says little of what the rest meant.
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
        """Answers to the turn's slots, wherever they are in the text; a bare word is none, since
        seven may be a time or a number of people."""
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
    """Matches that begin where a word does; patterns end where one does by themselves."""
    starts = [0, *(found.end() for found in re.finditer(" ", said))]
    return [found for start in starts if (found := pattern.match(said, start))]
