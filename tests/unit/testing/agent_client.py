"""A plain client of the Voice Agent protocol, for the tests of the simulated agent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from bridge.testing.agent.server import AgentSession, SimulatedAgent

PATH = "/v1/agent/converse"
KEY = [(b"Authorization", b"Token a-key")]
SILENCE = b"\xff"
PATIENCE = 20_000  # seconds of a mock clock: no wait in these tests is for ever
MULAW = {"encoding": "mulaw", "sample_rate": 8000}


def settings(greeting: str | None = None, **agent: Any) -> dict[str, Any]:
    """A Settings message as a phone bridge sends it; `agent` adds to Settings.agent."""
    if greeting is not None:
        agent["greeting"] = greeting
    return {
        "type": "Settings",
        "audio": {"input": MULAW, "output": {**MULAW, "container": "none"}},
        "agent": agent,
    }


class Client:
    """Collects what the agent sends: (time, message) in `received`, audio as bytes."""

    def __init__(self, ws: WebSocketConnection, stream: trio.abc.Stream) -> None:
        self.ws = ws
        self.stream = stream
        self.received: list[tuple[float, Any]] = []
        self.gone = trio.Event()
        self.changed = trio.Event()

    async def read(self) -> None:
        try:
            while True:
                message = await self.ws.get_message()
                parsed = message if isinstance(message, bytes) else json.loads(message)
                self.received.append((trio.current_time(), parsed))
                self.wake()
        except ConnectionClosed:
            self.gone.set()
            self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def send(self, message: dict[str, Any] | bytes | str) -> None:
        await self.ws.send_message(json.dumps(message) if isinstance(message, dict) else message)

    async def speak(self, audio: bytes, frame: int = 160) -> None:
        """Send audio in real time."""
        for start in range(0, len(audio), frame):
            await self.send(audio[start : start + frame])
            await trio.sleep(frame / 8000)

    async def wait_for(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The `count`th message of this type, once it has come."""
        with trio.fail_after(PATIENCE):
            while len(self.all(kind)) < count:
                assert not self.gone.is_set(), f"closed without {kind}: {self.kinds()}"
                await self.changed.wait()
        return self.all(kind)[count - 1]

    async def wait_gone(self) -> int:
        """Wait until the agent has closed the connection; the close code."""
        with trio.fail_after(PATIENCE):
            await self.gone.wait()
        assert self.ws.closed is not None
        return int(self.ws.closed.code)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [m for _, m in self.received if isinstance(m, dict) and m["type"] == kind]

    def when(self, kind: str) -> float:
        return next(t for t, m in self.received if isinstance(m, dict) and m["type"] == kind)

    def kinds(self) -> list[str]:
        """What came, in order, as types; LatencyReports left out, audio run together."""
        kinds: list[str] = []
        for _, message in self.received:
            kind = "audio" if isinstance(message, bytes) else message["type"]
            if kind != "LatencyReport" and not (kind == "audio" and kinds[-1:] == ["audio"]):
                kinds.append(kind)
        return kinds

    def chunks(self) -> list[bytes]:
        return [m for _, m in self.received if isinstance(m, bytes)]

    def texts(self, role: str) -> list[str]:
        return [m["content"] for m in self.all("ConversationText") if m["role"] == role]


@asynccontextmanager
async def connected(
    agent: SimulatedAgent,
    first: dict[str, Any] | None = None,
    *,
    path: str = PATH,
    headers: list[tuple[bytes, bytes]] = KEY,
) -> AsyncIterator[Client]:
    """A client over an in-memory stream; sends `first` and waits for SettingsApplied.

    On leaving it closes the socket, and the agent's side must end by itself.
    """
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve_stream, theirs)
        with trio.fail_after(PATIENCE):
            ws = await wrap_client_stream(nursery, ours, "agent", path, extra_headers=headers)
        client = Client(ws, ours)
        nursery.start_soon(client.read)
        if first is not None:
            await client.send(first)
            await client.wait_for("SettingsApplied")
        yield client
        with trio.move_on_after(5):
            await ws.aclose()
        await trio.aclose_forcefully(ours)


def only(agent: SimulatedAgent) -> AgentSession:
    (session,) = agent.sessions
    return session
