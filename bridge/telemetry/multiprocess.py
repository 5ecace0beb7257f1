"""Metrics of several worker processes, added up: files in a folder that all of them can read.

prometheus_client's multi-process mode is made for this: each process writes its figures into files
of its own, mapped into memory, and the process that answers `GET /metrics` adds the files up.
https://prometheus.github.io/client_python/multiprocess/

The parent makes the folder, one for each run, and gives each worker a number: its files are named
by the number, not by the process, so that a worker's successor continues its counts. There are
never more files than workers, however often one dies, and no counter ever goes back. A gauge of
what is live (`bridge_calls_active`) ends with its process: the parent deletes that file.

Under `hypercorn -w 2` the parent is hypercorn's. If the operator sets PROMETHEUS_MULTIPROC_DIR to
an empty folder, files are named by process, as prometheus_client documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
NUMBER: Final = "BRIDGE_WORKER_NUMBER"

# A file can be read between its creation and its first byte; the next try finds it complete.
READ_TRIES: Final = 3


class MetricsFolder:
    """The parent's side: a folder for one run, and the numbers that workers have in it.

    A context manager; the folder is deleted afterwards. Raises OSError if none can be made.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="bridge-metrics-")
        self._taken: set[int] = set()

    def __enter__(self) -> MetricsFolder:
        return self

    def __exit__(self, *_: object) -> None:
        # A worker that could not be killed may still be writing.
        with suppress(OSError):
            self._folder.cleanup()

    @property
    def path(self) -> Path:
        return Path(self._folder.name)

    def take(self) -> int:
        """Take the lowest free number, for a worker that is about to start."""
        number = next(n for n in range(len(self._taken) + 1) if n not in self._taken)
        self._taken.add(number)
        return number

    def give_back(self, number: int) -> None:
        """Free the number of a worker that has ended, and delete its gauges of live things."""
        if number in self._taken:
            self._taken.discard(number)
            mark_process_dead(number, self._folder.name)  # type: ignore[no-untyped-call]

    def environment(self, number: int) -> dict[str, str]:
        """The environment variables that make a worker count into this folder."""
        return {FOLDER: self._folder.name, NUMBER: str(number)}


def share(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The worker's side: count into files of the folder that the environment names.

    Call it before the first metric is made. Returns the folder, or None if the environment names
    none or one that does not exist.
    """
    folder = environ.get(FOLDER, "")
    if not folder or not Path(folder).is_dir():
        return None
    number = environ.get(NUMBER, "")
    if number.isdigit():
        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
    return Path(folder)


class AddedUp(Collector):
    """The sums over all files in a folder. Reading them blocks, a few milliseconds for each worker.

    `numbered`: files are named by numbers, and the parent deletes the gauges of dead workers.
    Otherwise they are named by processes, and `collect` looks for dead ones itself.
    """

    def __init__(self, folder: Path, *, numbered: bool) -> None:
        self._folder = str(folder)
        self._files: Collector = MultiProcessCollector(None, self._folder)  # type: ignore[no-untyped-call]
        self._numbered = numbered

    def collect(self) -> Iterable[Metric]:
        if not self._numbered:
            self._forget_the_dead()
        for left in reversed(range(READ_TRIES)):
            try:
                return list(self._files.collect())
            except Exception:  # half a file raises struct.error, JSON's errors, RuntimeError
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _forget_the_dead(self) -> None:
        for file in Path(self._folder).glob("gauge_live*_*.db"):
            pid = file.stem.rpartition("_")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                mark_process_dead(int(pid), self._folder)  # type: ignore[no-untyped-call]
