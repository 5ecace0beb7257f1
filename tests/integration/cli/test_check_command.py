"""`bridge check` as it is typed, with nothing listening where it looks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bridge import log as logs
from bridge.cli import main

KEY = "dg-key-5EC237-0123456789abcdef"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    """Logging as it was, and an agent that is not there."""
    monkeypatch.setenv("BRIDGE_CONFIG", "")
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)
    # Nothing listens there: bound by no server, and asked by none of the checks.
    Path("config.toml").write_text(
        '[server]\nbind = "127.0.0.1:0"\n[deepgram]\nurl = "ws://127.0.0.1:9/"\n'
        "[twilio]\nvalidate_signatures = false\n"
    )


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bridge", "check", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    output = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    assert KEY not in output.out + output.err
    return exit_.value.code, output.out, output.err


def test_one_line_for_each_finding(monkeypatch, capsys):
    monkeypatch.setenv("DEEPGRAM_API_KEY", KEY)
    code, out, err = run(monkeypatch, capsys)
    assert code == 1
    lines = out.splitlines()
    assert lines[0].startswith("warn   config   twilio.validate_signatures is false: whoever finds")
    assert lines[1].startswith("WRONG  agent    nothing listens at 127.0.0.1:9:")
    assert lines[1].endswith("start the agent (`bridge agent`), or correct deepgram.url")
    names = ["config", "agent", "server", "twilio", "records", "clock"]
    assert [line.split()[1] for line in lines] == names
    (line,) = err.splitlines()
    assert line.startswith("bridge: 1 problem: nothing listens at 127.0.0.1:9")


def test_as_json(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--json")
    assert code == 1
    result = json.loads(out)
    assert result["ok"] is False
    [agent] = [one for one in result["findings"] if one["check"] == "agent"]
    assert agent.keys() == {"check", "status", "what", "why", "remedy"}
    assert agent["status"] == "wrong"
