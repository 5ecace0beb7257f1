"""Metrics that prometheus_client adds up over processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector


def test_it_can_be_added_up_over_processes(tmp_path: Path) -> None:
    """prometheus_client's multi-process mode finds all it needs in what is declared here."""
    program = (
        "from bridge.telemetry.metrics import Metrics\n"
        "from bridge.outcome import Outcome\n"
        "metrics = Metrics()\n"
        "metrics.call_began(); metrics.call_began()\n"
        "metrics.call_ended(Outcome.CALLER_HUNG_UP, 10, 0.1)\n"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    total = registry.get_sample_value
    assert total("bridge_calls_active") == 2
    assert total("bridge_calls_total", {"outcome": "caller_hung_up"}) == 2
    assert total("bridge_calls_total", {"outcome": "internal_error"}) == 0
    assert total("bridge_call_duration_seconds_sum") == 20
