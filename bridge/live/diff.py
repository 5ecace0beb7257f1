"""The last shown state of a call, and the changes since. Sans-I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bridge.call.parts import CallParts
from bridge.live import view

# How many of a list's last items may still change: lines that are not heard yet, functions that
# run. Changes further back are not detected.
TAIL: Final = 16


class Shown:
    """The last shown state of a call: its facts, its audio, and the tail of each of its lists."""

    def __init__(self, call: CallParts, now: float) -> None:
        self.facts = view.facts(call, now)
        self.audio = view.audio(call, now)
        story = call.story
        lengths = {
            "transcript": len(story.lines),
            "turns": len(story.turns),
            "functions": len(story.functions),
        }
        self._first = {name: max(0, length - TAIL) for name, length in lengths.items()}
        self._tails = view.lists(call, self._first, now)

    def new_facts(self, call: CallParts, now: float) -> dict[str, Any]:
        """Return the facts that have changed."""
        old, self.facts = self.facts, view.facts(call, now)
        return changed(old, self.facts)

    def new_items(self, call: CallParts, now: float) -> list[tuple[str, int, list[bytes]]]:
        """Return the lists that have changed: name, first changed index, and the items from it."""
        first = {
            name: self._first[name] + max(0, len(tail) - TAIL) for name, tail in self._tails.items()
        }
        # After the completed functions come the running ones, which complete in any order.
        first["functions"] = min(first["functions"], len(call.story.functions))
        tails = view.lists(call, first, now)
        news = []
        for name, tail in tails.items():
            before = self._tails[name][first[name] - self._first[name] :]
            same = _same(before, tail)
            if same < max(len(before), len(tail)):
                news.append((name, first[name] + same, tail[same:]))
        self._first, self._tails = first, tails
        return news

    def new_audio(self, call: CallParts, now: float) -> dict[str, int]:
        """Return the buffered audio if it has changed, otherwise an empty dict."""
        old, self.audio = self.audio, view.audio(call, now)
        return self.audio if self.audio != old else {}


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items of `new` that are missing, or different, in `old`."""
    return {name: value for name, value in new.items() if name not in old or old[name] != value}


def _same(before: list[bytes], after: list[bytes]) -> int:
    """Return how many items at the beginning are the same."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((i for i, (old, new) in pairs if old != new), min(len(before), len(after)))
