"""The cost of importing the package: users' functions, speech workers and --help load no server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded[name] = sorted({"quart", "hypercorn", "sqlalchemy"} & set(sys.modules))
print(json.dumps(loaded))
"""


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(["bridge", "bridge.audio", "bridge.functions"], id="functions"),
        pytest.param(["bridge.cli.demo", "bridge.cli.serve"], id="help"),
    ],
)
def test_these_modules_load_no_server(modules: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == {module: [] for module in modules}
