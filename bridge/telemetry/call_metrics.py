"""Metrics of each call, updated when it begins and when it is over."""

from __future__ import annotations

from bridge.call.observers import Observer
from bridge.call.parts import CallParts
from bridge.telemetry.metrics import Metrics


class CallMetrics(Observer):
    """Updates the metrics when calls begin and end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def began(self, call: CallParts) -> None:
        """Count one more active call."""
        self._metrics.call_began()

    def ended(self, call: CallParts) -> None:
        """Count the call's outcome, and observe its durations and figures."""
        report, story, metrics = call.report, call.story, self._metrics
        assert report.outcome is not None
        metrics.call_ended(report.outcome, report.seconds, report.teardown_seconds)
        if report.setup_seconds is not None:
            metrics.setup(report.setup_seconds)
        for seconds in story.barge_in_seconds:
            metrics.barge_in(seconds)
        for turn in story.turns:
            if turn.latency is not None:
                metrics.turn_latency(turn.latency)
        for _ in range(report.reconnects):
            metrics.reconnected()
        metrics.audio_dropped("uplink", report.dropped_bytes)
        metrics.audio_dropped("downlink", call.downlink.bytes_dropped)
