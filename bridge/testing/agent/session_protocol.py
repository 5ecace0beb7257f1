"""The part of a session that its receiver, its message handlers and its timers use.

`session.AgentSession` implements it. These modules depend on this protocol rather than on that
class, so no two modules import each other.
"""

from __future__ import annotations

from typing import Any, Protocol

import trio

from bridge.testing.agent.behaviour import Behaviour
from bridge.testing.agent.function_calls import SimulatedFunctionCall, SimulatedFunctionCalls
from bridge.testing.agent.record import CallerTurn
from bridge.testing.agent.schema import Json
from bridge.testing.agent.speaking import Mouth, Utterance


class Hearing(Protocol):
    """What replaces the speech detector: see `session.Senses`."""

    async def hear(self, audio: bytes) -> None: ...

    async def end_turn(self) -> None: ...


class Session(Protocol):
    """A session as its own parts see it. `record.Observations` documents the recorded data."""

    behaviour: Behaviour
    request_id: str
    nursery: trio.Nursery
    welcomed: trio.Event
    applied: trio.Event
    failed: bool
    deaf: bool
    user_speaking: bool
    injecting: int
    calls: SimulatedFunctionCalls
    mouth: Mouth

    opened_at: float
    last_sign: float
    settings: Json | None
    prompt: str
    listen: Json
    think: Any
    speak: Any
    context_messages: list[Json]
    received_bytes: int
    keepalives: int
    onsets: list[float]
    faults: list[str]

    @property
    def senses(self) -> Hearing | None: ...

    def record_audio(self, audio: bytes) -> None: ...

    def record_message(self, message: Json) -> None: ...

    def add_turn(self, turn: CallerTurn) -> None: ...

    def wake(self) -> None: ...

    def event(self, text: str) -> None: ...

    def start(self) -> None: ...

    def start_script(self) -> None: ...

    def inject(self, text: str, behavior: str) -> None: ...

    def stop_reading(self) -> None: ...

    def freeze(self) -> None: ...

    async def end_turn(self) -> None: ...

    async def send(self, message: Json | bytes) -> None: ...

    async def say(self, text: str) -> Utterance: ...

    async def user_started_speaking(self) -> None: ...

    async def user_said(self, text: str, *, trigger: str = ...) -> None: ...

    async def function_answered(self, call: SimulatedFunctionCall) -> None: ...

    async def error(self, code: str, description: str = ...) -> None: ...

    async def warning(self, code: str, description: str = ...) -> None: ...

    async def latency_report(self, **latencies: float) -> None: ...
