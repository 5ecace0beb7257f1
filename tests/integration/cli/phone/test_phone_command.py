"""`bridge phone` towards a server that is not there."""

from __future__ import annotations

import socket
import sys

import pytest

from bridge.cli import main


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["bridge", "phone", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    lines = capsys.readouterr().err.splitlines()
    return exit_.value.code, lines[-1]


def test_a_server_that_is_not_running(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: reserves the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, line = run(monkeypatch, capsys, "--url", url)
    assert code == 1
    assert line.startswith(f"bridge: cannot reach {url}")
    assert line.endswith("is `bridge serve` running?")
