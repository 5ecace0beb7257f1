"""The observations of a session of the simulated agent, and waiting for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from bridge.testing.agent.behaviour import Behaviour
from bridge.testing.agent.hearing import Heard
from bridge.testing.agent.schema import Json

MAX_ENTRIES = 1_000_000  # per list; later ones are handled but not recorded


@dataclass(frozen=True)
class Closed:
    """How a session ended: the close code, who closed ("client", "agent", "lost") and when."""

    code: int
    reason: str
    by: str
    at: float


@dataclass(frozen=True)
class CallerTurn:
    """One turn of the caller: speech, or the text of an InjectUserMessage."""

    heard: Heard | None = None
    text: str | None = None


class Observations:
    """Plain data on one session. Times are `trio.current_time()`.

    - `request_id`: as in Welcome; `opened_at`; `closed`: None while the session lives
    - `settings`: the Settings message, once accepted; `prompt`, `listen`, `think`, `speak` as they
      stand after updates; `context_messages`: the conversation replayed in Settings
    - `received_audio`: the caller's µ-law, every byte in order, up to
      `Behaviour.max_recorded_bytes`; `received_bytes` counts all; `audio_log`: (time, size)
    - `messages`: (time, message) of each JSON message received; `keepalives`: how many KeepAlive
    - `sent`: (time, message) of each JSON message sent; `sent_audio_bytes`
    - `turns`: the caller's turns in order; `onsets`: seconds into their audio at which they began
    - `faults`: mistakes of the client, whether a real server refuses or tolerates them
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._changed = trio.Event()
        self._cursors: dict[str, int] = {}
        self.behaviour = behaviour
        self.opened_at = self.last_sign = trio.current_time()
        self.closed: Closed | None = None
        self.settings: Json | None = None
        self.prompt = ""
        self.listen: Json = {}
        self.think: Any = None
        self.speak: Any = None
        self.context_messages: list[Json] = []
        self.received_audio = bytearray()
        self.received_bytes = 0
        self.audio_log: list[tuple[float, int]] = []
        self.messages: list[tuple[float, Json]] = []
        self.sent: list[tuple[float, Json]] = []
        self.sent_audio_bytes = 0
        self.keepalives = 0
        self.turns: list[CallerTurn] = []
        self.onsets: list[float] = []
        self.faults: list[str] = []

    async def wait_for_speech(self) -> float:
        """Wait for the caller's next utterance to begin; its time in seconds of their audio."""
        onset: float = await self._next("onset", self.onsets)
        return onset

    async def wait_for_end_of_speech(self) -> Heard:
        """Wait for the caller's next utterance to end, and return it."""
        while True:
            turn: CallerTurn = await self._next("heard", self.turns)
            if turn.heard is not None:
                return turn.heard

    async def wait_for_user_message(self) -> str:
        """Wait for the next InjectUserMessage, and return its text."""
        while True:
            turn: CallerTurn = await self._next("text", self.turns)
            if turn.text is not None:
                return turn.text

    async def wait_for_turn(self) -> CallerTurn:
        """Wait for the caller's next turn, spoken or injected."""
        turn: CallerTurn = await self._next("turn", self.turns)
        return turn

    async def wait_for_message(self, kind: str) -> Json:
        """Wait for the next message of type `kind` from the client."""
        while True:
            message: Json
            _, message = await self._next(f"message {kind}", self.messages)
            if message.get("type") == kind:
                return message

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is tried after each message from the client."""
        while not condition():
            await self._changed.wait()

    def wake(self) -> None:
        """Wake the waiting tasks to check their conditions."""
        self._changed.set()
        self._changed = trio.Event()

    def record_audio(self, audio: bytes) -> None:
        """Record audio from the client."""
        self.last_sign = trio.current_time()
        room = max(0, self.behaviour.max_recorded_bytes - len(self.received_audio))
        self.received_audio += audio[:room]
        self.received_bytes += len(audio)
        keep(self.audio_log, (self.last_sign, len(audio)))

    def record_message(self, message: Json) -> None:
        """Record a JSON message from the client."""
        now = trio.current_time()
        if message.get("type") != "KeepAlive" or self.behaviour.keep_alive_counts:
            self.last_sign = now
        keep(self.messages, (now, message))

    async def _next(self, cursor: str, items: list[Any]) -> Any:
        """Wait for the first item that this cursor has not returned yet."""
        seen = self._cursors.get(cursor, 0)
        await self.wait_until(lambda: len(items) > seen)
        self._cursors[cursor] = seen + 1
        await trio.lowlevel.checkpoint()
        return items[seen]


def keep(items: list[Any], item: Any) -> None:
    """Append, up to MAX_ENTRIES: a server that runs for weeks must not fill its memory."""
    if len(items) < MAX_ENTRIES:
        items.append(item)
