"""Metrics of several processes in one folder: added up, never counted back, and tidied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import prometheus_client.parser as text
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from bridge.telemetry.metrics import Metrics
from bridge.telemetry.multiprocess import FOLDER, NUMBER, AddedUp, MetricsFolder, share

# A process that carries one call to its end and is in the middle of another.
WORK = """
from bridge.telemetry.metrics import Metrics
from bridge.outcome import Outcome
metrics = Metrics()
metrics.call_began(); metrics.call_began()
metrics.call_ended(Outcome.CALLER_HUNG_UP, 10, 0.1)
"""
TELL = """
import sys
from bridge.telemetry.metrics import Metrics
metrics = Metrics()
assert metrics.reads_files
sys.stdout.buffer.write(metrics.expose(None)[0])
"""

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def process(program: str, environment: dict[str, str]) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return done.stdout


def series(exposed: bytes) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text.text_string_to_metric_families(exposed.decode())
        for sample in family.samples
    }


def total(folder: Path, *, numbered: bool = True) -> Series:
    registry = CollectorRegistry()
    registry.register(AddedUp(folder, numbered=numbered))
    return series(generate_latest(registry))


ACTIVE = ("bridge_calls_active", ())
ENDED = ("bridge_calls_total", (("outcome", "caller_hung_up"),))


def test_a_worker_tells_of_all_in_the_series_of_one() -> None:
    """The same names and labels as without a folder: no `pid`, no `_created`."""
    with MetricsFolder() as folder:
        for _ in range(2):
            process(WORK, folder.environment(folder.take()))
        exposed = process(TELL, folder.environment(folder.take()))
    added = series(exposed)
    assert added.keys() == series(Metrics().expose(None)[0]).keys()
    assert added[ACTIVE] == 2
    assert added[ENDED] == 2
    assert added[("bridge_call_duration_seconds_sum", ())] == 20
    assert added[("bridge_call_duration_seconds_bucket", (("le", "10.0"),))] == 2
    assert added[("bridge_call_duration_seconds_count", ())] == 2


def test_a_successor_counts_on_and_carries_nothing() -> None:
    with MetricsFolder() as folder:
        first, second = folder.take(), folder.take()
        assert (first, second) == (0, 1)
        process(WORK, folder.environment(first))
        process(WORK, folder.environment(second))
        files = set(folder.path.iterdir())
        folder.give_back(first)
        assert total(folder.path)[ACTIVE] == 1
        assert total(folder.path)[ENDED] == 2
        assert folder.take() == first
        process(WORK, folder.environment(first))
        assert total(folder.path)[ACTIVE] == 2
        assert total(folder.path)[ENDED] == 3
        assert set(folder.path.iterdir()) == files


def test_giving_back_twice_takes_nothing_from_the_successor() -> None:
    with MetricsFolder() as folder:
        number = folder.take()
        folder.give_back(number)
        folder.give_back(number)
        assert folder.take() == number
        process(WORK, folder.environment(number))
        assert total(folder.path)[ACTIVE] == 1


def test_the_folder_is_gone_afterwards() -> None:
    with MetricsFolder() as folder:
        process(WORK, folder.environment(folder.take()))
        assert list(folder.path.iterdir())
    assert not folder.path.exists()


def test_by_process_those_that_are_gone_carry_nothing(tmp_path: Path) -> None:
    """As under hypercorn, with a folder of the operator's."""
    process(WORK, {FOLDER: str(tmp_path)})
    assert total(tmp_path, numbered=True)[ACTIVE] == 1
    assert ACTIVE not in total(tmp_path, numbered=False)
    assert total(tmp_path, numbered=False)[ENDED] == 1


def test_a_file_that_is_being_made_is_met_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process(WORK, {FOLDER: str(tmp_path), NUMBER: "0"})
    files = AddedUp(tmp_path, numbered=True)
    empty = tmp_path / "counter_1.db"
    empty.touch()
    inner = files._files.collect

    def collect() -> object:
        try:
            return inner()
        finally:
            empty.unlink(missing_ok=True)

    monkeypatch.setattr(files._files, "collect", collect)
    assert {metric.name for metric in files.collect()} >= {"bridge_calls"}


def test_without_a_folder_nothing_is_shared(tmp_path: Path) -> None:
    assert share({}) is None
    assert share({FOLDER: str(tmp_path / "gone"), NUMBER: "1"}) is None
    assert not Metrics().reads_files
