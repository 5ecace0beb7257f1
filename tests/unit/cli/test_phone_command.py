"""`bridge phone`: wrong usage and a server that is not there, in one line each."""

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
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, line = run(monkeypatch, capsys, "--url", url)
    assert code == 1
    assert line.startswith(f"bridge: cannot reach {url}")
    assert line.endswith("is `bridge serve` running?")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothere.wav"], "cannot read nothere.wav: No such file"),
        (["--save", "no/such/folder/heard.wav"], "there is no folder no/such/folder"),
        (["--press", "12x"], "a keypad has no x"),
        (["--url", "bridge.example"], "must begin with http"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, arguments, why):
    code, line = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert why in line


def test_a_recording_that_is_no_wav(monkeypatch, capsys, tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    code, line = run(monkeypatch, capsys, str(tmp_path / "song.mp3"))
    assert code == 2
    assert "not a WAV file" in line
    assert "sox" in line
