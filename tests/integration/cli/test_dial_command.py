"""`bridge dial` towards a server that is not there."""

from __future__ import annotations

import socket

import pytest

import bridge.cli
import bridge.cli.dial as module
from bridge.cli import main
from tests.unit.http.world import TO


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, list[str]]:
    """The exit code, standard output, and the lines on standard error."""
    monkeypatch.setattr("sys.argv", ["bridge", "dial", *arguments])
    monkeypatch.setitem(bridge.cli.COMMANDS, "dial", "")
    with pytest.raises(SystemExit) as exit_:
        main()
    output = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, output.out, output.err.splitlines()


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "http://a\x01b/"])
def test_an_address_that_cannot_be_one(monkeypatch, capsys, url):
    code, out, err = run(monkeypatch, capsys, TO, "--url", url)
    assert code in (1, 2)
    assert out == ""
    assert len(err) == 1
    assert err[0].isprintable()


def test_a_server_that_is_not_running(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: reserves the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = run(monkeypatch, capsys, TO, "--url", url)
    assert (code, out) == (1, "")
    (line,) = err
    assert line.startswith(f"bridge: cannot reach {url}")
    assert line.endswith("is `bridge serve` running?")
