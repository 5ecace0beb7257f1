"""Metrics of each call, updated when it begins and when it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from bridge.call.observers import Observer
from bridge.call.parts import CallParts
from bridge.telemetry.metrics import LatencyPart, Metrics

# Deepgram's names for the parts of a reply, from AgentStartedSpeaking and from LatencyReport.
LATENCIES: Final[Mapping[LatencyPart, Sequence[str]]] = {
    "ttt": ("ttt_latency", "ttt_text_latency"),
    "tts": ("tts_latency",),
    "total": ("total_latency",),
}


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
            if turn.reply_seconds is not None:
                metrics.reply(turn.reply_seconds)
            if turn.typed_reply_seconds is not None:
                metrics.typed_reply(turn.typed_reply_seconds)
            for part, names in LATENCIES.items():
                reported = [turn.latencies[name] for name in names if name in turn.latencies]
                if reported:
                    metrics.agent_latency(part, reported[0])
        for _ in range(report.reconnects):
            metrics.reconnected()
        metrics.audio_dropped("uplink", report.dropped_bytes)
        metrics.audio_dropped("downlink", call.downlink.bytes_dropped)
