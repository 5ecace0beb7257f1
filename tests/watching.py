"""Somebody who watches calls: reads server-sent events and keeps what they say, as a page does."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import trio

from bridge.live.hub import Viewer

LISTS = ("transcript", "turns", "functions")


def read_events(text: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The events in a piece of a stream that ends where an event does; comments are left out.

    Raises ValueError for what a browser would not read as it is meant.
    """
    events = []
    blocks = text.decode().split("\n\n")
    if blocks.pop():
        raise ValueError("an event is not whole")
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line[0] != ":")
        if "data" in fields:
            assert set(fields) == {"event", "data"}, fields
            assert block.count("\n") == 1, block
            events.append((fields["event"], msgspec.json.decode(fields["data"])))
    return events


class Watcher:
    """What the events so far add up to: live `calls`, the `endings` of those that were, and what
    was `said` in the one that ended last."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.calls: dict[str, dict[str, Any]] = {}
        self.server: dict[str, Any] = {}
        self.endings: dict[str, dict[str, Any]] = {}
        self.said: list[tuple[str, str, str]] = []

    @property
    def names(self) -> list[str]:
        """What the events were, in order; a run of the same one counts once."""
        names = [name for name, _ in self.events]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]

    def states(self) -> list[str]:
        """What the agent of the one call did, in order."""
        states = []
        for name, data in self.events:
            state = data.get("call", {}).get("state") or data.get("state")
            if name in ("snapshot", "began", "call") and state:
                states.append(state)
        return [state for i, state in enumerate(states) if i == 0 or states[i - 1] != state]

    @property
    def call(self) -> dict[str, Any]:
        """The one call there is."""
        (call,) = self.calls.values()
        return call

    def lines(self, call: dict[str, Any] | None = None) -> list[tuple[str, str, str]]:
        """The transcript of the one call: who, what, and whether it was heard."""
        lines = (call or self.call)["transcript"]
        return [(line["role"], line["words"], line["heard"]) for line in lines]

    def take(self, text: bytes) -> None:
        """Read a piece of the stream."""
        for name, data in read_events(text):
            self.events.append((name, copy.deepcopy(data)))
            self._apply(name, data)

    def _apply(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "snapshot":
                if "call" in data:
                    self.calls = {data["call"]["call_sid"]: data["call"]}
                else:
                    # Each of them follows, whole; until then what is told of it does not matter.
                    self.calls = {}
                    self.server = data["server"]
            case "began":
                self.calls[data["call"]["call_sid"]] = data["call"]
            case _ if data.get("call_sid", "") not in {"", *self.calls}:
                pass
            case "call":
                self.calls[data["call_sid"]] |= data
            case "transcript" | "turns" | "functions":
                items = self.calls[data["call_sid"]][name]
                assert data["from"] <= len(items), "a gap"
                items[data["from"] :] = data["items"]
            case "audio":
                for call_sid in set(data["calls"]) & set(self.calls):
                    self.calls[call_sid] |= data["calls"][call_sid]
            case "ended":
                self.endings[data["call_sid"]] = data
                self.said = self.lines(self.calls.pop(data["call_sid"], {"transcript": []}))
            case "server":
                self.server |= data

    async def watch(self, viewer: Viewer, seconds: float) -> None:
        """Read everything that comes in the next `seconds`. Raises trio.EndOfChannel."""
        until = trio.current_time() + seconds
        while (left := until - trio.current_time()) > 0:
            if (event := await viewer.next(left)) is not None:
                self.take(event)

    async def catch_up(self, viewer: Viewer) -> None:
        """Read what is there already."""
        while (event := await viewer.next(0)) is not None:
            self.take(event)

    async def watch_to_the_end(self, viewer: Viewer) -> None:
        """Read until the stream ends."""
        try:
            await self.watch(viewer, 3600)
        except trio.EndOfChannel:
            return
        raise AssertionError("the stream does not end")
