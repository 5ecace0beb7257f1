"""Phrases with slots: parsing, a recogniser's grammar, regular expressions. Sans-I/O.

A phrase is words in lower case with, in between,

    {guests}        a slot: one of its words
    [please]        what may be left out
    (a | the)       one of several

and any of these inside each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

MAX_PHRASE = 300  # characters
_TOKEN = re.compile(r"\s*(?:(?P<sign>[\[\]()|])|\{(?P<slot>[^{}\s]*)\}|(?P<word>[^\[\]()|{}\s]+))")
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*|'[a-z]+")
_NAME = re.compile(r"[a-z][a-z_]*")

# Contractions and their long forms match each other.
_CONTRACTIONS = {
    "i'd": "i would",
    "i'm": "i am",
    "i'll": "i will",
    "we'd": "we would",
    "we're": "we are",
    "what's": "what is",
    "when's": "when is",
    "where's": "where is",
    "that's": "that is",
    "it's": "it is",
    "you're": "you are",
    "can't": "cannot",
    "don't": "do not",
    "ok": "okay",
}

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"]
_DIGITS += ["eighteen", "nineteen"]
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


class PhraseError(ValueError):
    """A phrase has a syntax error; the message says what, and the remedy."""


@dataclass(frozen=True)
class Word:
    """One word."""

    text: str


@dataclass(frozen=True)
class Slot:
    """One of the words of a slot."""

    name: str


@dataclass(frozen=True)
class OneOf:
    """One of several sequences; or, if `optional`, none."""

    choices: tuple[Sequence_, ...]
    optional: bool = False


Part: TypeAlias = "Word | Slot | OneOf"
Sequence_: TypeAlias = "tuple[Part, ...]"


@dataclass(frozen=True)
class Phrase:
    """One phrase, parsed."""

    text: str
    parts: Sequence_

    def slots(self) -> list[str]:
        """The names of its slots, in order."""
        return [part.name for part in _walk(self.parts) if isinstance(part, Slot)]

    def words(self) -> set[str]:
        """All words that may occur in it, without those of its slots."""
        return {part.text for part in _walk(self.parts) if isinstance(part, Word)}

    def jsgf(self) -> str:
        """Return it as the right side of a JSGF rule (Java Speech Grammar Format)."""
        return " ".join(map(_jsgf, self.parts))

    def pattern(self, slots: Mapping[str, Sequence[str]]) -> str:
        """Return a regular expression for `normal` text, with a named group per slot; `slots` has
        their words. Every word is followed by a space."""
        return "".join(_pattern(part, slots) for part in self.parts)

    def readable(self, examples: Mapping[str, str]) -> str:
        """Return it for display: the first alternative, without optional parts, and with a marked
        example in place of each slot."""
        return " ".join(_readable(self.parts, examples))


def parse(text: str) -> Phrase:
    """Parse a phrase. Raises PhraseError."""
    if len(text) > MAX_PHRASE:
        raise PhraseError(f"is longer than {MAX_PHRASE} characters; write several phrases")
    tokens = _tokens(text)
    parts, end = _choices(tokens, 0, "")
    if end != len(tokens):
        raise PhraseError(f"has a {tokens[end][1]} that closes nothing")
    phrase = Phrase(text, parts[0] if len(parts) == 1 else (OneOf(parts),))
    if not _least(phrase.parts):
        raise PhraseError("has nothing that must be said; give it a word outside [ ]")
    slots = phrase.slots()
    if twice := {name for name in slots if slots.count(name) > 1}:
        raise PhraseError(f"has {{{twice.pop()}}} more than once; write several phrases")
    return phrase


def is_word(text: str) -> bool:
    """Return whether this is one word as allowed in phrases."""
    return bool(_WORD.fullmatch(text))


def normal(text: str) -> str:
    """Normalise text: lower case, numbers and times in words, no punctuation, contractions
    expanded, each word followed by a space."""
    text = text.lower().replace("’", "'")
    text = re.sub(r"\b(\d{1,2})[:.](\d\d)\b", _clock, text)
    text = re.sub(r"\b([ap])\.?m\b\.?", " ", re.sub(r"(\d)\s*([ap]\.?m\b\.?)", r"\1 \2", text))
    text = re.sub(r"\d+", lambda found: f" {_number(found[0])} ", text)
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text)
    return "".join(f"{_CONTRACTIONS.get(word, word)} " for word in words)


def written(said: str) -> str:
    """Format recognised words as written text: a capital at the start and for I."""
    text = " ".join(map(_capital, said.split()))
    return text[:1].upper() + text[1:]


def grammar(
    rules: Mapping[str, Sequence[Phrase]],
    slots: Mapping[str, Sequence[str]],
    before: Sequence[Phrase] = (),
    after: Sequence[Phrase] = (),
) -> str:
    """Return all phrases as one JSGF grammar; `before` and `after` may surround each."""
    lines = ["#JSGF V1.0;", "grammar dialogue;"]
    lead = f"[ {_alternatives(before)} ] " if before else ""
    trail = f" [ {_alternatives(after)} ]" if after else ""
    lines.append(f"public <dialogue> = {lead}( {' | '.join(f'<{n}>' for n in rules)} ){trail} ;")
    lines += [f"<{name}> = {_alternatives(phrases)} ;" for name, phrases in rules.items()]
    lines += [f"<slot_{name}> = {' | '.join(words)} ;" for name, words in slots.items()]
    return "\n".join(lines) + "\n"


def _alternatives(phrases: Sequence[Phrase]) -> str:
    return " | ".join(phrase.jsgf() for phrase in phrases)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise PhraseError(
                f"cannot be read at {text[at : at + 10]!r}; a slot is such as {{time}}"
            )
        kind = found.lastgroup or ""
        value = found[kind]
        if kind == "word" and not is_word(value):
            raise PhraseError(
                f'has "{value[:30]}"; write words in lower case a to z, as they are spoken, '
                "without signs"
            )
        if kind == "slot" and not _NAME.fullmatch(value):
            raise PhraseError(f"has {{{value[:30]}}}; a slot's name is of the letters a to z and _")
        tokens.append((kind, value))
        at = found.end()
    return tokens


def _choices(
    tokens: Sequence[tuple[str, str]], at: int, closing: str
) -> tuple[tuple[Sequence_, ...], int]:
    """Parse sequences separated by | up to `closing`; return them and where they end."""
    choices: list[Sequence_] = []
    parts: list[Part] = []
    while True:
        kind, value = tokens[at] if at < len(tokens) else ("end", "")
        if kind == "word":
            parts.append(Word(value))
        elif kind == "slot":
            parts.append(Slot(value))
        elif value in ("(", "["):
            wanted = ")" if value == "(" else "]"
            inner, at = _choices(tokens, at + 1, wanted)
            if at == len(tokens) or tokens[at][1] != wanted:
                raise PhraseError(f"has a {value} without its {wanted}")
            parts.append(OneOf(inner, optional=value == "["))
        else:
            if not parts:
                raise PhraseError("has nothing where words should be; remove what is empty")
            choices.append(tuple(parts))
            parts = []
            if value != "|":
                return tuple(choices), at
        at += 1


def _walk(parts: Sequence_) -> Iterator[Part]:
    for part in parts:
        yield part
        if isinstance(part, OneOf):
            for choice in part.choices:
                yield from _walk(choice)


def _least(parts: Sequence_) -> int:
    """Return the smallest number of words that match."""
    return sum(
        (0 if part.optional else min(map(_least, part.choices))) if isinstance(part, OneOf) else 1
        for part in parts
    )


def _jsgf(part: Part) -> str:
    match part:
        case Word(text):
            return text
        case Slot(name):
            return f"<slot_{name}>"
        case OneOf(choices, optional):
            inner = " | ".join(" ".join(map(_jsgf, choice)) for choice in choices)
            return f"[ {inner} ]" if optional else f"( {inner} )"


def _pattern(part: Part, slots: Mapping[str, Sequence[str]]) -> str:
    match part:
        case Word(text):
            return re.escape(normal(text))
        case Slot(name):
            # The longest first, or "half past six" would match as "half".
            words = sorted(map(normal, slots[name]), key=len, reverse=True)
            return f"(?P<{name}>{'|'.join(map(re.escape, words))})"
        case OneOf(choices, optional):
            inner = "|".join("".join(_pattern(p, slots) for p in choice) for choice in choices)
            return f"(?:{inner})" + ("?" if optional else "")


def _readable(parts: Sequence_, examples: Mapping[str, str]) -> Iterator[str]:
    for part in parts:
        match part:
            case Word(text):
                yield {"i": "I"}.get(
                    text, text.replace("i'", "I'", 1) if text[:2] == "i'" else text
                )
            case Slot(name):
                yield f"⟨{examples[name]}⟩"
            case OneOf(choices, False):
                yield from _readable(choices[0], examples)


def _capital(word: str) -> str:
    return "I" + word[1:] if word == "i" or word.startswith("i'") else word


def _clock(found: re.Match[str]) -> str:
    hour, minute = int(found[1]), int(found[2])
    hour = hour - 12 if 12 < hour < 24 else hour
    return f"{_number(str(hour))} {_number(str(minute)) if minute else ''}"


def _number(digits: str) -> str:
    """Spell a number up to 99 in words, longer ones digit by digit."""
    value = int(digits[:20])
    if len(digits) > 2:
        return " ".join(_DIGITS[int(digit)] for digit in digits if digit in "0123456789")
    if value < 20:
        return _DIGITS[value]
    tens, ones = divmod(value, 10)
    return _TENS[tens] + (f" {_DIGITS[ones]}" if ones else "")
