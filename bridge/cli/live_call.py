"""The call as the bridge under test sees it: transcript and turns, from its event stream.

`GET /calls/{sid}/events` answers server-sent events, each absolute: a snapshot at any time replaces
all that is known, the others change part of it. What is not known is ignored, as the stream grows.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from bridge.text import printable

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 35.0  # a comment comes every ten

MAX_LINE = 4 * 1024 * 1024  # a snapshot of a long call; more is no event stream


@dataclass
class LiveCall:
    """What is known so far. `transcript` and `turns` are the stream's own objects."""

    transcript: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    state: str = ""
    outcome: str = ""
    over: bool = False
    trouble: str = ""  # why the server tells no more

    @property
    def latencies(self) -> list[float]:
        """How long each reply took, from the caller's last sound to the agent's first, in seconds,
        as the bridge has measured it.
        """
        found = []
        for turn in self.turns:
            stopped, sent = turn.get("caller_said_at"), turn.get("first_audio_sent_at")
            if isinstance(stopped, int | float) and isinstance(sent, int | float):
                found.append(float(sent - stopped))
        return found

    def apply(self, event: str, data: dict[str, Any]) -> None:
        """Take one event in. Unknown ones, and what they lack, change nothing."""
        match event:
            case "snapshot" if isinstance(call := data.get("call"), dict):
                self.transcript = _items(call.get("transcript"))
                self.turns = _items(call.get("turns"))
                self._facts(call)
            case "call":
                self._facts(data)
            case "transcript":
                _splice(self.transcript, data)
            case "turns":
                _splice(self.turns, data)
            case "ended":
                self._facts(data)
                self.over = True
            case "elsewhere" | "unknown":
                self.over = True
                self.trouble = str(data.get("message", "the server knows of no such call"))

    def _facts(self, facts: dict[str, Any]) -> None:
        self.state = str(facts.get("state", self.state))
        self.outcome = str(facts.get("outcome", self.outcome))


class EventParser:
    """Lines of an event stream to events and their data. Pure."""

    def __init__(self) -> None:
        self._event = ""
        self._data: list[str] = []

    def feed(self, line: str) -> tuple[str, dict[str, Any]] | None:
        """Take one line, without its end; an event when this line completes one."""
        if not line:
            event, text = self._event or "message", "\n".join(self._data)
            self._event, self._data = "", []
            try:
                data = json.loads(text) if text else None
            except ValueError:
                return None
            return (event, data) if isinstance(data, dict) else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        return None


async def follow(
    base_url: str, call_sid: str, token: str, call: LiveCall, on_news: Callable[[], None]
) -> str:
    """Keep `call` up to date until it is over, calling `on_news` after each change.

    Returns why nothing more is known, "" when the call is over. It never raises for what a server
    does: the call goes on without its transcript.
    """
    url = f"{base_url.rstrip('/')}/calls/{call_sid}/events"
    headers = {"Accept": "text/event-stream"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    timeout = httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS)
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            if answer.status_code in (401, 403):
                return "no transcript: set BRIDGE_API_TOKEN to the server's"
            kind = answer.headers.get("Content-Type", "")
            if answer.status_code != 200 or not kind.startswith("text/event-stream"):
                return "no transcript: the server tells none"
            await _read(answer, call, on_news)
    except (httpx.HTTPError, httpx.InvalidURL):
        pass
    if call.trouble:
        return printable(f"no transcript: {call.trouble}")
    return "" if call.over else "no transcript any more: the connection for it was lost"


async def _read(answer: httpx.Response, call: LiveCall, on_news: Callable[[], None]) -> None:
    parser = EventParser()
    # Ended by cancelling, as leaving the loop would leave httpx's own generators unfinished.
    with trio.CancelScope() as reading:
        async for line in answer.aiter_lines():
            if call.over or len(line) > MAX_LINE:
                reading.cancel("nothing more is to be known")
            elif event := parser.feed(line):
                call.apply(*event)
                on_news()


def _items(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _splice(known: list[dict[str, Any]], data: dict[str, Any]) -> None:
    start = data.get("from")
    if isinstance(start, int) and 0 <= start <= len(known):
        known[start:] = _items(data.get("items"))
