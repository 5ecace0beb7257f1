"""The dialogue of the local agent, read from a TOML file; `restaurant.toml` documents the format.

Errors in the file are reported at start, in one line with the field and the remedy.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import msgspec

from bridge.local_agent.events import Setup
from bridge.local_agent.grammar import Phrase, PhraseError, grammar, is_word, normal, parse
from bridge.local_agent.phones import is_phones
from bridge.testing.tables import nearest, tables, unknown_key

RESTAURANT = "restaurant.toml"

MAX_TURNS = 200
MAX_PHRASES = 50  # of one turn
MAX_WORDS = 500  # of one slot
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_RESULT = "result."

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Texts = Annotated[list[Text], msgspec.Meta(max_length=MAX_PHRASES)]
SomeTexts = Annotated[list[Text], msgspec.Meta(min_length=1, max_length=MAX_PHRASES)]


class DialogueError(ValueError):
    """A dialogue cannot be used; the message names the file, the field and the remedy."""


class SlotEntry(msgspec.Struct, frozen=True):
    """`[slots.NAME]`."""

    words: Annotated[dict[str, Any], msgspec.Meta(min_length=1, max_length=MAX_WORDS)]
    ask: str = ""
    answers: Texts = []
    default: str = ""
    example: str = ""
    remember: bool = False


class CallEntry(msgspec.Struct, frozen=True):
    """A function of the client to call."""

    name: Text
    arguments: dict[str, Any] = {}


class TurnEntry(msgspec.Struct, frozen=True):
    """`[[turns]]`."""

    name: Text
    phrases: SomeTexts
    keywords: Texts = []
    needs: Texts = []
    call: CallEntry | None = None
    reply: Text | SomeTexts | None = None
    failed: str = ""
    end: bool = False
    repeat: bool = False


class DialogueFile(msgspec.Struct, frozen=True):
    """A whole file."""

    turns: Annotated[list[TurnEntry], msgspec.Meta(min_length=1, max_length=MAX_TURNS)]
    greeting: str = ""
    unknown: SomeTexts = msgspec.field(
        default_factory=lambda: ["I am sorry, that was not one of the phrases I know."]
    )
    undeclared: Text = "I am sorry, I cannot do that on this line."
    failed: Text = "I am sorry, that did not work."
    before: Texts = []
    after: Texts = []
    pronunciations: dict[str, str] = {}
    slots: dict[str, SlotEntry] = {}


class Dialogue:
    """A checked dialogue. `file` has the texts, from which phrases and patterns are built."""

    def __init__(self, file: DialogueFile) -> None:
        self.file = file
        self.slot_words = {name: list(slot.words) for name, slot in file.slots.items()}
        # Maps the normalised text of a slot back to the word in the file.
        self._spoken = {
            name: {normal(word): word for word in words} for name, words in self.slot_words.items()
        }
        self.phrases = [
            [self._phrase(f"turns[{n}].phrases[{i}]", text) for i, text in enumerate(turn.phrases)]
            for n, turn in enumerate(file.turns)
        ]
        self.answers = {
            name: [
                self._phrase(f"slots.{name}.answers[{i}]", text)
                for i, text in enumerate(slot.answers)
            ]
            for name, slot in file.slots.items()
        }
        self.before = [self._plain(f"before[{i}]", text) for i, text in enumerate(file.before)]
        self.after = [self._plain(f"after[{i}]", text) for i, text in enumerate(file.after)]
        _check(self)

    def spoken(self, slot: str, matched: str) -> str:
        """Return the slot's word, as in the file, for its normalised text."""
        return self._spoken[slot][matched]

    def setup(self, *, voice: str = "", hangover: float = 0.5) -> Setup:
        """Return the set-up of a speech worker; `hangover` is in seconds."""
        rules: dict[str, Sequence[Phrase]] = {
            f"turn_{number}": phrases for number, phrases in enumerate(self.phrases)
        }
        rules |= {f"answer_{name}": phrases for name, phrases in self.answers.items() if phrases}
        words = {
            word for phrases in rules.values() for phrase in phrases for word in phrase.words()
        }
        words |= {word for phrase in self.before + self.after for word in phrase.words()}
        words |= {
            part for spoken in self.slot_words.values() for word in spoken for part in word.split()
        }
        return Setup(
            grammar=grammar(rules, self.slot_words, self.before, self.after),
            words=sorted(words),
            pronunciations=self.file.pronunciations,
            hangover=hangover,
            voice=voice,
            likely=[text for text in self._texts() if not placeholders(text)],
        )

    def _texts(self) -> Iterator[str]:
        """Yield all texts that may be said, the likeliest last."""
        file = self.file
        yield from (file.undeclared, file.failed, *file.unknown)
        yield from (slot.ask for slot in file.slots.values() if slot.ask)
        for turn in reversed(file.turns):
            yield from reversed(replies(turn))

    def readable(self) -> list[str]:
        """Return its phrases for display, in the file's order, without duplicates."""
        return list(dict.fromkeys(self.shown(phrase) for turn in self.phrases for phrase in turn))

    def shown(self, phrase: Phrase) -> str:
        """Return a phrase for display, with an example ⟨marked⟩ in each slot."""
        slots = self.file.slots.items()
        return phrase.readable({n: slot.example or next(iter(slot.words)) for n, slot in slots})

    def _phrase(self, where: str, text: str) -> Phrase:
        try:
            phrase = parse(text)
        except PhraseError as error:
            raise DialogueError(f"{where}: {error}") from None
        for name in phrase.slots():
            if name not in self.file.slots:
                raise DialogueError(f"{where}: {_no_slot(name, self.file.slots)}")
        return phrase

    def _plain(self, where: str, text: str) -> Phrase:
        phrase = self._phrase(where, text)
        if phrase.slots():
            raise DialogueError(f"{where}: slots are not allowed here; write words only")
        return phrase


def load_dialogue(path: Path | None = None) -> Dialogue:
    """Read a dialogue, by default the built-in one. Blocks. Raises DialogueError."""
    name = str(path or RESTAURANT)
    try:
        source = path if path is not None else files("bridge.local_agent") / RESTAURANT
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise DialogueError(f"{name}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DialogueError(f"{name}: not TOML: {error}") from None
    try:
        return dialogue_of(data)
    except DialogueError as error:
        raise DialogueError(f"{name}: {error}") from None


def dialogue_of(data: Mapping[str, Any]) -> Dialogue:
    """Build the dialogue of a parsed file. Raises DialogueError, without the file's name."""
    _check_keys("", data, DialogueFile)
    for number, turn in enumerate(tables(data.get("turns"))):
        _check_keys(f"turns[{number}]", turn, TurnEntry)
        _check_keys(f"turns[{number}].call", turn.get("call"), CallEntry)
    slots = data.get("slots")
    for name, slot in slots.items() if isinstance(slots, dict) else ():
        _check_keys(f"slots.{name}", slot, SlotEntry)
    try:
        file = msgspec.convert(data, DialogueFile)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `int`, got `str` - at `$.turns[0].end`", and TOML has no null.
        problem, _, where = str(error).replace(" | null", "").partition(" - at `$.")
        # For tables with free keys it does not name the key: "$.slots[...].words".
        raise DialogueError(f"{where.rstrip('`') or 'the file'}: {problem}") from None
    return Dialogue(file)


def placeholders(text: str) -> list[str]:
    """Return the placeholders of a reply: names of slots, and "result.KEY"."""
    return _PLACEHOLDER.findall(text)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Fill in the placeholders of a reply; unknown ones become empty."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], ""), text)


def replies(turn: TurnEntry) -> Sequence[str]:
    """Return the replies of a turn, in order of preference."""
    if turn.reply is None:
        return ()
    return [turn.reply] if isinstance(turn.reply, str) else turn.reply


def _check(dialogue: Dialogue) -> None:
    """Check what types and phrases do not. Raises DialogueError."""
    file = dialogue.file
    for word, phones in file.pronunciations.items():
        if not is_word(word) or not is_phones(phones):
            raise DialogueError(
                f'pronunciations.{word}: expected sounds in ARPAbet, got "{phones}"; for example '
                'gnocchi = "N Y OW K IY"'
            )
    for name, slot in file.slots.items():
        _check_slot(name, slot, dialogue.answers[name])
    names: set[str] = set()
    for number, turn in enumerate(file.turns):
        where = f"turns[{number}]"
        if turn.name in names:
            raise DialogueError(f'{where}.name: "{turn.name}" is taken; choose another')
        names.add(turn.name)
        _check_turn(where, turn, file)


def _check_slot(name: str, slot: SlotEntry, answers: Sequence[Phrase]) -> None:
    where = f"slots.{name}"
    for words in slot.words:
        if not words or not all(map(is_word, words.split())):
            raise DialogueError(
                f'{where}.words: "{words}" is not a spoken form; write words in lower case a to '
                "z, such as half past six"
            )
    for key, value in (("default", slot.default), ("example", slot.example)):
        if value and value not in slot.words:
            raise DialogueError(
                f'{where}.{key}: "{value}" is not one of its words; {nearest(value, slot.words)}'
            )
    for number, phrase in enumerate(answers):
        if phrase.slots().count(name) != 1:
            raise DialogueError(
                f"{where}.answers[{number}]: has no {{{name}}}, which is the answer"
            )


def _check_turn(where: str, turn: TurnEntry, file: DialogueFile) -> None:
    if turn.reply is None and not turn.repeat:
        raise DialogueError(f"{where}.reply: is missing; say something, or set repeat = true")
    if turn.end and turn.call is not None:
        raise DialogueError(f"{where}.end: a turn either ends the call or calls a function")
    for number, name in enumerate(turn.needs):
        if name not in file.slots:
            raise DialogueError(f"{where}.needs[{number}]: {_no_slot(name, file.slots)}")
        if not (file.slots[name].ask and file.slots[name].answers):
            raise DialogueError(
                f"{where}.needs[{number}]: slots.{name} lacks ask or answers; add them"
            )
    texts = [(f"{where}.reply", text) for text in replies(turn)]
    texts.append((f"{where}.failed", turn.failed))
    if turn.call is not None:
        texts += [(f"{where}.call.arguments", text) for text in _strings(turn.call.arguments)]
    for place, text in texts:
        for name in placeholders(text):
            if name.startswith(_RESULT) and turn.call is None:
                raise DialogueError(f"{place}: has {{{name}}}, but the turn has no call; add one")
            if not name.startswith(_RESULT) and name not in file.slots:
                raise DialogueError(f"{place}: {_no_slot(name, file.slots)}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else ():
        yield from _strings(item)


def _check_keys(where: str, table: Any, kind: type[msgspec.Struct]) -> None:
    if why := unknown_key(where, table, kind):
        raise DialogueError(why)


def _no_slot(name: str, slots: Iterable[str]) -> str:
    return f"there is no slot {{{name}}}; {nearest(name, slots)}"
