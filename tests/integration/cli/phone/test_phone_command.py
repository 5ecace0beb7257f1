"""`bridge phone` towards a server that is not there."""

from __future__ import annotations

import socket

from tests.unit.cli.commands import bridge_exits


def test_a_server_that_is_not_running(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: reserves the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert bridge_exits(monkeypatch, "phone", "--url", url) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"bridge: cannot reach {url}")
    assert line.endswith("is `bridge serve` running?")
