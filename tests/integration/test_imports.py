"""The cost of importing the package: users' functions and speech workers load no server."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import importlib, json, sys
loaded = {}
for name in ("bridge", "bridge.audio", "bridge.functions"):
    importlib.import_module(name)
    loaded[name] = sorted({"quart", "hypercorn", "sqlalchemy"} & set(sys.modules))
print(json.dumps(loaded))
"""


def test_the_package_the_audio_and_the_functions_load_no_server() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == {"bridge": [], "bridge.audio": [], "bridge.functions": []}
