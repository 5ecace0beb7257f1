"""Settings all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from werkzeug.routing import Rule

# Compiled code is kept, whatever the environment says: the tests start Python some hundred times,
# and each time half a second would go into compiling bridge.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Making an application is mostly compiling, for each route, what would build its address. Nothing
# here builds one, and thousands of applications are made.
Rule._compile_builder = lambda *_, **__: lambda *_: None  # type: ignore[method-assign,assignment]

# The same examples each time: what fails is the fault of a change. `python -m tests.fuzz` finds new
# ones. These machines stall now and then; how long an example takes is no property of the code.
settings.register_profile("bridge", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("bridge")

# Each file stays in one process. The longest begin first, so that the last process does not work
# on one of them alone; then what mostly waits for processes and clocks, and last what computes.
_FIRST: Final = (
    "tests/sweep/",
    "tests/endtoend/test_signals.py",
    "tests/integration/local_agent/test_agent.py",
    "tests/deploy/test_dockerfile.py",
    "tests/endtoend/test_commands.py",
    "tests/endtoend/test_faults.py",
    "tests/endtoend/",
    "tests/browser/",
    "tests/integration/",
    "tests/deploy/",
    "tests/calls/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files, not the tests in them, by how early they are to begin."""

    def rank(item: pytest.Item) -> int:
        found = (place for place, start in enumerate(_FIRST) if item.nodeid.startswith(start))
        return next(found, len(_FIRST))

    items.sort(key=rank)


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and nothing in the environment that bridge or httpx reads."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("BRIDGE_", "DEEPGRAM_", "TWILIO_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
