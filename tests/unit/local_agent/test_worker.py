"""The worker's own side of the pipes, without a pipe."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest

from bridge.local_agent import frames, worker
from bridge.local_agent.events import Event, Ready, Setup
from bridge.local_agent.sound import Samples
from bridge.local_agent.worker import Worker


class Engine:
    """Says anything in a moment of silence, and counts."""

    name = "counted"

    def __init__(self) -> None:
        self.spoke: list[str] = []

    def speak(self, text: str) -> tuple[Samples, int]:
        self.spoke.append(text)
        return np.zeros(80, np.int16), 8000


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(worker, "choose", lambda name: engine)
    return engine


def sent(out: io.BytesIO) -> list[tuple[bytes, bytes]]:
    return list(frames.FrameReader().feed(out.getvalue()))


def setup(**fields: object) -> bytes:
    return msgspec.json.encode(Setup(**fields))  # type: ignore[arg-type]


def test_a_text_is_spoken_and_a_ping_answered(engine: Engine) -> None:
    out = io.BytesIO()
    one = Worker(out)  # type: ignore[arg-type]
    one.take(frames.SETUP, setup())
    one.take(frames.SPEAK, frames.numbered(7, b"Hello."))
    one.take(frames.PING, b"")
    ready, speech, pong = sent(out)
    assert msgspec.json.decode(ready[1], type=Event) == Ready("counted")
    assert speech == (frames.SPEECH, frames.numbered(7, b"\xff" * 80))
    assert pong == (frames.PONG, b"")


def test_what_is_likely_is_made_in_idle_moments_and_once(engine: Engine) -> None:
    one = Worker(io.BytesIO())  # type: ignore[arg-type]
    one.take(frames.SETUP, setup(likely=["Goodbye.", "Hello."]))
    assert one.prepare()
    assert engine.spoke == ["Hello."], "the likeliest is the last"
    one.take(frames.SPEAK, frames.numbered(1, b"Hello."))
    one.take(frames.SPEAK, frames.numbered(2, b"Goodbye."))
    assert engine.spoke == ["Hello.", "Goodbye."]
    assert one.prepare()
    assert not one.prepare()


def test_audio_before_there_are_ears_is_nothing(engine: Engine) -> None:
    out = io.BytesIO()
    one = Worker(out)  # type: ignore[arg-type]
    one.take(frames.HEAR, b"\xff" * 160)
    one.take(frames.END_TURN, b"")
    one.take(frames.SPEAK, frames.numbered(1, b"Hello."))
    assert sent(out) == []
