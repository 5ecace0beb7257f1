"""`bridge dial` towards a server that is not there."""

from __future__ import annotations

import socket

import pytest

from tests.unit.cli.commands import bridge_exits
from tests.unit.http.world import TO

pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "http://a\x01b/"])
def test_an_address_that_cannot_be_one(monkeypatch, capsys, url):
    assert bridge_exits(monkeypatch, "dial", TO, "--url", url) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.isprintable()


def test_a_server_that_is_not_running(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: reserves the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert bridge_exits(monkeypatch, "dial", TO, "--url", url) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"bridge: cannot reach {url}")
    assert line.endswith("is `bridge serve` running?")
