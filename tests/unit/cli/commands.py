"""Commands of `bridge`, run in this process as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

import bridge.cli
from bridge import log
from bridge.cli import main


def bridge_exits(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> int:
    """Run `bridge COMMAND ARGUMENTS` and return its exit code."""
    # Without a line of help, a command can be typed before the list of commands has it.
    monkeypatch.setitem(bridge.cli.COMMANDS, command, bridge.cli.COMMANDS.get(command, ""))
    monkeypatch.setattr("sys.argv", ["bridge", command, *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def check_finds_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `bridge check` a configuration whose agent is not there, and logging as it is."""
    monkeypatch.setenv("BRIDGE_CONFIG", "")
    monkeypatch.setattr(log, "configure", lambda *_, **__: None)
    # Nothing listens there: bound by no server, and asked by none of the checks.
    Path("config.toml").write_text(
        '[server]\nbind = "127.0.0.1:0"\n[deepgram]\nurl = "ws://127.0.0.1:9/"\n'
        "[twilio]\nvalidate_signatures = false\n"
    )
