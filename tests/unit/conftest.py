"""Keeps tests/unit what it is: no process, no socket, no thread, no wall clock.

A test that needs one of them fails with a sentence that says so, and belongs in tests/integration,
in the folder of the same name. Trio's clock is virtual in every unit test: it jumps to the next
deadline as soon as all tasks wait, so that an hour passes in no time.
"""

from __future__ import annotations

import multiprocessing.process
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

_HERE: Final = Path(__file__).parent

_FORBIDDEN: Final[dict[str, tuple[tuple[object, str], ...]]] = {
    "starts a process": (
        (subprocess.Popen, "__init__"),
        (multiprocessing.process.BaseProcess, "start"),
        (os, "fork"),
    ),
    # Not their creation: Trio wakes itself through a socket pair.
    "uses a socket": ((socket.socket, "connect"), (socket.socket, "bind")),
    # Trio keeps the threads that it has started, and runs more in them.
    "runs a thread": ((threading.Thread, "start"), (trio.to_thread, "run_sync")),
    "sleeps on the wall clock": ((time, "sleep"),),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run async tests by `_run`, in place of what pytest-trio has chosen."""
    for item in items:
        if item.path.is_relative_to(_HERE) and item.get_closest_marker("trio"):
            item.add_marker(pytest.mark.trio(run=_run), append=False)


@pytest.fixture(autouse=True)
def _needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test at the moment when it reaches for the operating system."""
    for what, places in _FORBIDDEN.items():
        for owner, name in places:
            monkeypatch.setattr(owner, name, _refusal(what))
    monkeypatch.setattr(trio, "run", _run)


def _refusal(what: str) -> Callable[..., None]:
    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail(f"a unit test {what}; move it to tests/integration")

    return refuse


_real_run = trio.run


def _run(*arguments: Any, **options: Any) -> Any:
    """Run as `trio.run`, on a clock that jumps if the caller names none."""
    options["clock"] = options.get("clock") or MockClock(autojump_threshold=0)
    return _real_run(*arguments, **options)
