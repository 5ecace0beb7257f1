"""Scrapes of the metrics: what a client that asks on and on costs (finding B5)."""

from __future__ import annotations

import trio
import trio.testing

from bridge.telemetry.metrics import Metrics
from bridge.telemetry.scrapes import MOST_ANSWERS, SECONDS, Scrapes

Clock = trio.testing.MockClock


class Counted(Metrics):
    """Metrics that count how often they are encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def expose(self, accept: str | None) -> tuple[bytes, str]:
        self.encoded += 1
        return super().expose(accept)


async def test_an_answer_is_given_for_a_second(autojump_clock: Clock) -> None:
    metrics = Counted()
    scrapes = Scrapes(metrics)
    for _ in range(100):
        assert await scrapes.answer(None) == metrics.expose(None)
        metrics.encoded -= 1
    assert metrics.encoded == 1
    metrics.loop_stalled(1.0)
    await trio.sleep(SECONDS)
    assert await scrapes.answer(None) == metrics.expose(None)


async def test_formats_without_end_are_not_all_encoded(autojump_clock: Clock) -> None:
    """A client may name as many as it likes; most get the text format, which all understand."""
    metrics = Counted()
    scrapes = Scrapes(metrics)
    openmetrics = "application/openmetrics-text; version=1.0.{}"
    kinds = [(await scrapes.answer(openmetrics.format(n)))[1] for n in range(100)]
    assert sum(kind.startswith("application/openmetrics-text") for kind in kinds) == MOST_ANSWERS
    assert kinds[-1] == "text/plain; version=0.0.4; charset=utf-8"
    assert metrics.encoded == MOST_ANSWERS + 1
