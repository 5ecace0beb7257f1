"""What `GET /metrics` says: the contract's names and labels, and the figures behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import prometheus_client.openmetrics.parser as openmetrics
import prometheus_client.parser as text
import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from bridge.outcome import Outcome
from bridge.telemetry import metrics as module
from bridge.telemetry.metrics import Metrics

# Name to type and labels.
CONTRACT = {
    "bridge_calls_active": ("gauge", set()),
    "bridge_calls_total": ("counter", {"outcome"}),
    "bridge_call_duration_seconds": ("histogram", set()),
    "bridge_call_setup_seconds": ("histogram", set()),
    "bridge_teardown_seconds": ("histogram", set()),
    "bridge_uplink_delay_seconds": ("histogram", set()),
    "bridge_downlink_delay_seconds": ("histogram", set()),
    "bridge_reply_seconds": ("histogram", set()),
    "bridge_typed_reply_seconds": ("histogram", set()),
    "bridge_agent_latency_seconds": ("histogram", {"part"}),
    "bridge_barge_in_seconds": ("histogram", set()),
    "bridge_audio_dropped_bytes_total": ("counter", {"direction"}),
    "bridge_agent_reconnects_total": ("counter", set()),
    "bridge_loop_stalls_total": ("counter", set()),
    "bridge_loop_stall_seconds_total": ("counter", set()),
}
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
# What Prometheus 3 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def families(metrics: Metrics, accept: str | None = None) -> list[Metric]:
    body, content_type = metrics.expose(accept)
    parser: Any = openmetrics if "openmetrics" in content_type else text
    return list(parser.text_string_to_metric_families(body.decode()))


def value(metrics: Metrics, name: str, **labels: str) -> float:
    (found,) = (
        sample.value
        for family in families(metrics)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return found


@pytest.mark.parametrize("accept", [None, OPENMETRICS, PROMETHEUS])
def test_the_names_types_and_labels_are_the_contracts(accept: str | None) -> None:
    seen = {}
    for family in families(Metrics(), accept):
        name = family.name + "_total" if family.type == "counter" else family.name
        suffixes = {sample.name.removeprefix(name) for sample in family.samples}
        histogram = family.type == "histogram"
        assert suffixes == ({"_bucket", "_count", "_sum"} if histogram else {""})
        labels = {label for sample in family.samples for label in sample.labels}
        assert family.documentation
        seen[name] = (family.type, labels - ({"le"} if histogram else set()))
    assert seen == CONTRACT


def test_every_series_is_there_from_the_start_at_zero() -> None:
    samples = [sample for family in families(Metrics()) for sample in family.samples]
    assert all(sample.value == 0 for sample in samples)
    outcomes = {s.labels["outcome"] for s in samples if "outcome" in s.labels}
    assert outcomes == {outcome for outcome in Outcome if outcome.is_final}
    directions = {s.labels["direction"] for s in samples if "direction" in s.labels}
    assert directions == {"uplink", "downlink"}


def test_no_event_makes_a_new_series() -> None:
    def series(metrics: Metrics) -> set[tuple[str, str]]:
        found = (sample for family in families(metrics) for sample in family.samples)
        return {(sample.name, str(sample.labels)) for sample in found}

    metrics = Metrics()
    for outcome in Outcome:
        metrics.call_ended(outcome, 1, 1)
    assert series(metrics) == series(Metrics())


def test_a_call() -> None:
    metrics = Metrics()
    metrics.call_began()
    metrics.call_began()
    metrics.setup(0.35)
    assert value(metrics, "bridge_calls_active") == 2
    metrics.call_ended(Outcome.CALLER_HUNG_UP, 61.5, 0.02)
    assert value(metrics, "bridge_calls_active") == 1
    assert value(metrics, "bridge_calls_total", outcome="caller_hung_up") == 1
    assert value(metrics, "bridge_calls_total", outcome="agent_failed") == 0
    assert value(metrics, "bridge_call_duration_seconds_sum") == 61.5
    assert value(metrics, "bridge_teardown_seconds_sum") == 0.02
    assert value(metrics, "bridge_call_setup_seconds_sum") == 0.35


FINAL = [outcome for outcome in Outcome if outcome.is_final]


@pytest.mark.parametrize("outcome", FINAL)
def test_each_outcome_is_counted_under_its_own_name(outcome: Outcome) -> None:
    metrics = Metrics()
    metrics.call_ended(outcome, 1, 1)
    for other in FINAL:
        assert value(metrics, "bridge_calls_total", outcome=other.value) == (other is outcome)


def test_a_call_that_is_handed_over_is_counted_when_it_is_over() -> None:
    metrics = Metrics()
    metrics.call_began()
    metrics.call_ended(Outcome.HANDED_OVER, 61.5, 0.02)
    assert value(metrics, "bridge_calls_active") == 0
    assert value(metrics, "bridge_call_duration_seconds_sum") == 61.5
    assert [value(metrics, "bridge_calls_total", outcome=one.value) for one in FINAL] == [0] * len(
        FINAL
    )
    metrics.call_over(Outcome.TRANSFERRED)
    assert value(metrics, "bridge_calls_total", outcome="transferred") == 1
    assert value(metrics, "bridge_calls_active") == 0


def test_what_was_dropped_is_counted_by_where_it_was_going() -> None:
    metrics = Metrics()
    metrics.audio_dropped("uplink", 160)
    metrics.audio_dropped("uplink", 320)
    metrics.audio_dropped("downlink", 8000)
    assert value(metrics, "bridge_audio_dropped_bytes_total", direction="uplink") == 480
    assert value(metrics, "bridge_audio_dropped_bytes_total", direction="downlink") == 8000


def test_what_deepgram_reports_is_split_by_its_parts() -> None:
    metrics = Metrics()
    metrics.agent_latency("ttt", 0.25)
    metrics.agent_latency("tts", 0.5)
    metrics.agent_latency("total", 1.0)
    sums = [
        value(metrics, "bridge_agent_latency_seconds_sum", part=part)
        for part in ("ttt", "tts", "total")
    ]
    assert sums == [0.25, 0.5, 1.0]


def test_a_reconnect_and_a_stall() -> None:
    metrics = Metrics()
    metrics.reconnected()
    metrics.loop_stalled(0.25)
    metrics.loop_stalled(1.0)
    assert value(metrics, "bridge_agent_reconnects_total") == 1
    assert value(metrics, "bridge_loop_stalls_total") == 2
    assert value(metrics, "bridge_loop_stall_seconds_total") == 1.25


@pytest.mark.parametrize(
    ("observe", "name"),
    [
        (Metrics.setup, "bridge_call_setup_seconds"),
        (Metrics.barge_in, "bridge_barge_in_seconds"),
        (Metrics.reply, "bridge_reply_seconds"),
        (Metrics.typed_reply, "bridge_typed_reply_seconds"),
        (Metrics.uplink_delay, "bridge_uplink_delay_seconds"),
        (Metrics.downlink_delay, "bridge_downlink_delay_seconds"),
    ],
)
def test_each_time_goes_to_its_own_histogram(
    observe: Callable[[Metrics, float], None], name: str
) -> None:
    metrics = Metrics()
    observe(metrics, 0.5)
    counts = [s for f in families(metrics) for s in f.samples if s.name.endswith("_count")]
    assert {sample.name for sample in counts if sample.value} == {f"{name}_count"}
    assert value(metrics, f"{name}_sum") == 0.5


@pytest.mark.parametrize(
    ("buckets", "limits"),
    [
        (module.CALL_DURATION, {3600}),
        (module.CALL_SETUP, {5, 8}),
        (module.TEARDOWN, {0.5, 1.7, 2}),
        (module.UPLINK_DELAY, {0.06, 0.062, 0.07, 0.25, 2}),
        (module.DOWNLINK_DELAY, {0.002, 0.01, 0.05}),
        (module.REPLY, {1, 10}),
        (module.BARGE_IN, {0.001, 0.02, 1}),
    ],
)
def test_a_promised_limit_is_an_edge_of_a_bucket(
    buckets: tuple[float, ...], limits: set[float]
) -> None:
    assert list(buckets) == sorted(set(buckets))
    assert limits <= set(buckets)


def test_two_are_independent() -> None:
    one, other = Metrics(), Metrics()
    one.call_began()
    one.audio_dropped("uplink", 1)
    assert value(one, "bridge_calls_active") == 1
    assert value(other, "bridge_calls_active") == 0
    assert value(other, "bridge_audio_dropped_bytes_total", direction="uplink") == 0


def test_the_process_wide_registry_is_left_alone() -> None:
    Metrics()
    assert b"bridge_" not in generate_latest()


class TestFormat:
    @pytest.mark.parametrize("accept", [None, "", "*/*", "text/html, */*", "text/plain"])
    def test_text_where_nothing_better_is_asked_for(self, accept: str | None) -> None:
        body, content_type = Metrics().expose(accept)
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        assert b"# EOF" not in body

    @pytest.mark.parametrize("accept", [OPENMETRICS, PROMETHEUS])
    def test_openmetrics_where_it_is_asked_for(self, accept: str) -> None:
        body, content_type = Metrics().expose(accept)
        assert content_type.startswith("application/openmetrics-text; version=1.0.0;")
        assert body.endswith(b"# EOF\n")

    @pytest.mark.parametrize(
        "accept",
        [
            "text/plain;version=latest",  # prometheus_client: TypeError
            "application/openmetrics-text;version=1.x",
            'application/openmetrics-text;version="1.0.0"',
            "application/openmetrics-text;version=" + "9" * 5000,
            "application/openmetrics-text;version=1.0.0\r\nX-Forged: 1",
            "application/openmetrics-text;version=\u0661.0.0",
            "\x00;;==,,",
        ],
    )
    def test_text_where_the_header_makes_no_sense(self, accept: str) -> None:
        body, content_type = Metrics().expose(accept)
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        assert body == Metrics().expose(None)[0]
