"""The console script: every way a command can end becomes its documented exit code."""

from __future__ import annotations

import sys

import click
import pytest

import bridge.cli as cli
from bridge.cli import failure


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (failure.Failure("it failed"), 1),
        (failure.Misconfigured("it is wrong"), 2),
        (click.UsageError("no such option"), 2),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (
            BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [KeyboardInterrupt()])]),
            130,
        ),
    ],
)
def test_exit_codes(monkeypatch, raised, code):
    def run(**_: object) -> None:
        raise raised

    monkeypatch.setattr(cli.cli, "main", run)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == code


def test_a_bug_is_no_exit_code(monkeypatch):
    def run(**_: object) -> None:
        raise ExceptionGroup("", [ValueError("a bug")])

    monkeypatch.setattr(cli.cli, "main", run)
    with pytest.raises(ExceptionGroup):
        cli.main()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["bridge", command, "--help"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"Usage: bridge {command} ")
    assert "--help" in output.out
    assert output.err == ""
