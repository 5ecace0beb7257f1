"""A real PostgreSQL for the tests: a cluster of its own, on a socket of its own, thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

INSTALL = "PostgreSQL's server programs are missing: apt-get install -y postgresql"


class Cluster:
    """One cluster in a folder, without TCP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        self._data = folder / "data"

    def create(self) -> None:
        """Make it. The tests need no protection from power cuts."""
        options = "listen_addresses='' fsync=off full_page_writes=off log_min_messages=warning"
        _run("initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "-N")
        lines = [*options.split(), f"unix_socket_directories='{self.folder}'"]
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        _run("pg_ctl", "-D", self._data, "-l", self.folder / "log", "-w", "-t", "60", "start")

    def stop(self) -> None:
        """Stop it at once, cutting every connection, as a machine that goes away would."""
        _run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    @property
    def is_running(self) -> bool:
        return (self._data / "postmaster.pid").exists()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running cluster. Not in tmp_path, which belongs to the user who runs the tests alone, while
    PostgreSQL refuses to run as root; and whose path may be too long for a socket.
    """
    folder = Path(tempfile.mkdtemp(prefix="bridge-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        database = Cluster(folder)
        database.create()
        database.start()
        try:
            yield database
        finally:
            if database.is_running:
                database.stop()
    finally:
        shutil.rmtree(folder)


def _run(program: str, *arguments: str | Path) -> None:
    command = [str(_binary(program)), *map(str, arguments)]
    if os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    # Not pipes: the server inherits them, and they would never end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(command, stdout=output, stderr=output, cwd="/", timeout=120)
        output.seek(0)
        assert done.returncode == 0, output.read().decode(errors="replace")


def _binary(program: str) -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    found = versions[-1] if versions else shutil.which(program)
    if found is None:
        pytest.fail(INSTALL)
    return Path(found)
