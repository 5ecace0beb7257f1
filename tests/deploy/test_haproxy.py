"""The HAProxy configuration: HAProxy takes it, and it speaks of what bridge has.

`tests/benchmarks/test_rolling.py` runs it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bridge.config.words import Words
from bridge.http.app import create_app
from bridge.http.twilio_hooks import ELSEWHERE

FILE = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
CONFIG = FILE.read_text()


def test_haproxy_takes_it_without_a_warning() -> None:
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program is not None, "HAProxy is missing: apt-get install -y haproxy"
    addresses = {
        "BRIDGE_FRONT": "127.0.0.1:5000",
        "BRIDGE_A": "127.0.0.1:5001",
        "BRIDGE_B": "127.0.0.1:5002",
    }
    done = subprocess.run(
        [program, "-c", "-dW", "-f", str(FILE)],
        env={**os.environ, **addresses},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_it_passes_on_what_twilio_asks_for_and_no_more() -> None:
    paths = set(re.findall(r"path (/.*)", CONFIG))
    passed = {path for line in paths for path in line.split()}
    routes = {rule.rule for rule in create_app().url_map.iter_rules()}
    assert passed == {
        *("/incoming-call", "/call-ended", "/media-stream"),
        *("/call-status", "/call-status/answered-by"),
    }
    assert passed <= routes
    assert set(re.findall(r"httpchk GET (\S+)", CONFIG)) == {"/readyz", "/healthz"}


@pytest.mark.parametrize("name", ["del-header", "set-header"])
def test_it_uses_bridges_own_header(name: str) -> None:
    """Nobody outside may say it, and every webhook says it."""
    assert f"http-request {name} {ELSEWHERE}" in CONFIG


def test_it_says_what_bridge_would_say() -> None:
    assert f"<Say>{Words().busy}</Say>" in CONFIG
