"""Tracing beside the calls: what fails in it costs spans, and nothing else."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
import structlog
import trio
from opentelemetry.sdk.trace import TracerProvider

from bridge.telemetry import tracing as module
from bridge.telemetry.tracing import Span, Tracing


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Tracing:
    monkeypatch.setattr(module, "spans_of", lambda call: [Span(call.name, 0.0, 1.0, {})])
    return Tracing(TracerProvider(shutdown_on_exit=False))


def a_call(name: str) -> Any:
    class Report:
        seconds = 1.0

    class Call:
        report = Report()

    call = Call()
    call.name = name  # type: ignore[attr-defined]
    return cast("Any", call)


async def test_an_error_costs_one_call_its_spans_and_the_next_ones_are_made(tracing, monkeypatch):
    made: list[str] = []

    def emit(began: float, spans: list[Span]) -> None:
        if spans[0].name == "bad":
            raise RuntimeError("planted")
        made.append(spans[0].name)

    monkeypatch.setattr(tracing, "_emit", emit)
    with structlog.testing.capture_logs() as lines, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tracing.run)
            for name in ("bad", "good"):
                tracing.ended(a_call(name))
            while not made:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await tracing.aclose()
    assert made == ["good"]
    assert [line["task"] for line in lines] == ["tracing"]


async def test_an_exporter_that_hangs_cannot_hold_up_the_end(tracing, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(tracing, "_emit", lambda began, spans: gate.wait(30))
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tracing.run)
                tracing.ended(a_call("hangs"))
                await trio.testing.wait_all_tasks_blocked()
                await tracing.aclose()
    finally:
        gate.set()


async def test_with_the_queue_full_spans_are_dropped_and_that_is_logged_once(tracing):
    with structlog.testing.capture_logs() as lines:
        for _ in range(module.WAITING_CALLS + 3):
            tracing.ended(a_call("one"))
    assert tracing.lost == 3
    assert [line["event"] for line in lines] == ["tracing queue full; spans dropped"]
