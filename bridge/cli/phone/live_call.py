"""Follows a call on the bridge's event stream: transcript and turns.

`GET /calls/{sid}/events` sends server-sent events. A snapshot replaces everything; the others
update a part. Unknown events and fields are ignored, so that the stream may gain more.
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
SILENCE_SECONDS = 35.0  # the server sends a comment every 10 s

MAX_LINE = 4 * 1024 * 1024  # characters; a snapshot of a long call is shorter


@dataclass
class LiveCall:
    """The state so far. `transcript` and `turns` hold the stream's JSON objects."""

    transcript: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    state: str = ""
    outcome: str = ""
    over: bool = False
    trouble: str = ""  # why the server sends no more

    @property
    def reply_seconds(self) -> list[float]:
        """The reply times of the spoken turns, as measured by the bridge."""
        return self._seconds("reply_seconds")

    @property
    def typed_reply_seconds(self) -> list[float]:
        """The reply times of the typed turns, as measured by the bridge."""
        return self._seconds("typed_reply_seconds")

    def _seconds(self, name: str) -> list[float]:
        found = [turn.get(name) for turn in self.turns]
        return [float(seconds) for seconds in found if isinstance(seconds, int | float)]

    def apply(self, event: str, data: dict[str, Any]) -> None:
        """Apply one event. Unknown events and missing fields change nothing."""
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
                self.trouble = str(data.get("message", "the server does not know this call"))

    def _facts(self, facts: dict[str, Any]) -> None:
        self.state = str(facts.get("state", self.state))
        self.outcome = str(facts.get("outcome", self.outcome))


class EventParser:
    """Parses the lines of an event stream into events. Sans-I/O."""

    def __init__(self) -> None:
        self._event = ""
        self._data: list[str] = []

    def feed(self, line: str) -> tuple[str, dict[str, Any]] | None:
        """Parse one line, without its line end; return the event that it completes, if any."""
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
    """Keep `call` up to date until it has ended; call `on_news` after each change.

    Returns a sentence for the user when the transcript is missing or incomplete, "" otherwise.
    Whatever the server does raises nothing, because the call itself goes on.
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
                return (
                    "no transcript: set BRIDGE_API_TOKEN to the server's, or to the token in the "
                    "address that it printed when it started"
                )
            kind = answer.headers.get("Content-Type", "")
            if answer.status_code != 200 or not kind.startswith("text/event-stream"):
                return "no transcript: the server does not provide one"
            await _read(answer, call, on_news)
    except (httpx.HTTPError, httpx.InvalidURL):
        pass
    if call.trouble:
        return printable(f"no transcript: {call.trouble}")
    return "" if call.over else "the transcript is incomplete: its connection was lost"


async def _read(answer: httpx.Response, call: LiveCall, on_news: Callable[[], None]) -> None:
    parser = EventParser()
    # Cancelled rather than left by `break`, which would leave httpx's generators unfinished.
    with trio.CancelScope() as reading:
        async for line in answer.aiter_lines():
            if call.over or len(line) > MAX_LINE:
                reading.cancel("the stream is complete")
            elif event := parser.feed(line):
                call.apply(*event)
                on_news()


def _items(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _splice(known: list[dict[str, Any]], data: dict[str, Any]) -> None:
    start = data.get("from")
    if isinstance(start, int) and 0 <= start <= len(known):
        known[start:] = _items(data.get("items"))
