"""One conversation of the local agent: text in, the next step out. Sans-I/O.

    step = talk.hear("a table for four at seven")      # CallFunction("book_table", {...})
    step = talk.answered('{"table": 7}')               # SayText("Done! ...")

After a CallFunction, call exactly one of `answered` and `abandon`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from bridge.local_agent.dialogue import Dialogue, TurnEntry, fill, placeholders, replies
from bridge.local_agent.understanding import Meaning, Understanding

END_CALL = "end_call"
_RESULT = "result."


@dataclass(frozen=True)
class SayText:
    """Say `text`."""

    text: str


@dataclass(frozen=True)
class CallFunction:
    """Call a function of the client."""

    name: str
    arguments: dict[str, Any]


Step: TypeAlias = "SayText | CallFunction"


@dataclass(frozen=True)
class _Open:
    """A turn that is not complete: it waits for a slot or for a function."""

    turn: TurnEntry
    slots: dict[str, str]


class Talk:
    """The state of a conversation.

    `functions` maps the names the client declared to the JSON schemas of their parameters.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        understanding: Understanding,
        functions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._file = dialogue.file
        self._understanding = understanding
        self.functions = functions or {}
        self._unknown = itertools.cycle(dialogue.file.unknown)
        self._remembered: dict[str, str] = {}
        self._asked: _Open | None = None
        self._calling: _Open | None = None
        self._last = dialogue.file.greeting

    def spoke(self, text: str) -> None:
        """Note an utterance that is not a reply (the greeting), so that it can be repeated."""
        self._last = text

    def hear(self, text: str) -> Step:
        """Handle the caller's turn; "" if nothing was recognised."""
        asked, self._asked = self._asked, None
        if asked is not None:
            missing = [name for name in asked.turn.needs if name not in asked.slots]
            if answer := self._understanding.answer(text, missing):
                return self._go_on(_Open(asked.turn, {**asked.slots, **answer}))
        meaning = self._understanding.meaning(text)
        if meaning is None:
            self._asked = asked
            question = self._question(asked) if asked is not None else ""
            return self._say(f"{next(self._unknown)} {question}".strip(), remember=False)
        return self._begin(meaning, asked)

    def answered(self, content: str) -> Step:
        """Handle the function's answer, as JSON text."""
        assert self._calling is not None
        calling, self._calling = self._calling, None
        try:
            result = json.loads(content)
        except (ValueError, RecursionError):
            result = content
        if isinstance(result, dict) and result.get("error"):
            return self._say(fill(calling.turn.failed or self._file.failed, calling.slots))
        return self._say(self._reply(calling, result))

    def abandon(self) -> None:
        """Forget the function call: the caller went on speaking while it ran."""
        self._calling = None

    def _begin(self, meaning: Meaning, asked: _Open | None) -> Step:
        turn, slots = meaning.turn, meaning.slots
        for name, word in slots.items():
            if self._file.slots[name].remember:
                self._remembered[name] = word
        if turn.repeat:
            self._asked = asked  # the question is repeated
            return self._say(self._last)
        return self._go_on(_Open(turn, slots))

    def _go_on(self, current: _Open) -> Step:
        """Ask for a missing slot, or do what the turn says."""
        turn = current.turn
        known = {**self._remembered, **current.slots}
        if any(name not in known for name in turn.needs):
            self._asked = current
            return self._say(self._question(current))
        defaults = {n: slot.default for n, slot in self._file.slots.items() if slot.default}
        complete = _Open(turn, {**defaults, **known})
        # Without end_call the caller hangs up: a Voice Agent has no other way to end a call.
        ends = turn.end and END_CALL in self.functions
        if turn.call is None and not ends:
            return self._say(self._reply(complete, None))
        name = END_CALL if turn.call is None else turn.call.name
        if name not in self.functions:
            return self._say(self._file.undeclared)
        self._calling = complete
        arguments = {} if turn.call is None else self._arguments(turn.call.arguments, complete)
        return CallFunction(name, _fitting(arguments, self.functions[name]))

    def _question(self, current: _Open) -> str:
        known = {**self._remembered, **current.slots}
        return next(self._file.slots[name].ask for name in current.turn.needs if name not in known)

    def _arguments(self, arguments: Mapping[str, Any], current: _Open) -> dict[str, Any]:
        """Fill in the slots of the arguments; omit arguments whose slots were not said."""
        values = {n: self._file.slots[n].words[word] for n, word in current.slots.items()}
        filled: dict[str, Any] = {}
        for key, value in arguments.items():
            names = placeholders(value) if isinstance(value, str) else []
            if any(name not in values for name in names):
                continue
            if names and value == f"{{{names[0]}}}":
                filled[key] = values[names[0]]  # a number stays a number
            else:
                texts = {name: str(values[name]) for name in names}
                filled[key] = fill(value, texts) if names else value
        return filled

    def _reply(self, current: _Open, result: Any) -> str:
        """Return the first reply whose placeholders are all known, or else the last."""
        values = {
            name: _written(self._file.slots[name].words[word], word)
            for name, word in current.slots.items()
        }
        if isinstance(result, dict):
            values |= {f"{_RESULT}{key}": str(value) for key, value in result.items()}
        candidates = replies(current.turn)
        for text in candidates:
            if all(name in values for name in placeholders(text)):
                return fill(text, values)
        return fill(candidates[-1], values)

    def _say(self, text: str, *, remember: bool = True) -> SayText:
        if remember:
            self._last = text
        return SayText(text)


def declared(think: Any) -> dict[str, Mapping[str, Any]]:
    """Return the client-side functions of `agent.think` in Settings: name and schema."""
    first = think[0] if isinstance(think, list) and think else think
    functions = first.get("functions") if isinstance(first, dict) else None
    return {
        entry["name"]: entry.get("parameters") or {}
        for entry in functions or ()
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }


def _fitting(arguments: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values outside a parameter's enum by its first: transfer_call may not have
    "reception"."""
    properties = schema.get("properties")
    for key in arguments:
        known = properties.get(key) if isinstance(properties, dict) else None
        allowed = known.get("enum") if isinstance(known, dict) else None
        if isinstance(allowed, list) and allowed and arguments[key] not in allowed:
            arguments[key] = allowed[0]
    return arguments


def _written(value: Any, word: str) -> str:
    """Format a slot's word for a reply: a name keeps its capital."""
    return value if isinstance(value, str) and value.lower() == word else word
