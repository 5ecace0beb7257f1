"""`bridge check` as it is typed, with nothing listening where it looks."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.commands import bridge_exits, check_finds_no_agent


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    check_finds_no_agent(monkeypatch)
    monkeypatch.setenv("DEEPGRAM_API_KEY", "dg-key-5EC237-0123456789abcdef")


def test_one_line_for_each_finding(monkeypatch, capsys):
    assert bridge_exits(monkeypatch, "check") == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("warn   config   twilio.validate_signatures is false: anyone who")
    assert lines[1].startswith("WRONG  agent    nothing listens at 127.0.0.1:9:")
    assert lines[1].endswith("start the agent (`bridge agent`), or correct deepgram.url")
    names = ["config", "agent", "server", "twilio", "records", "clock"]
    assert [line.split()[1] for line in lines] == names
    (line,) = err.splitlines()
    assert line.startswith("bridge: 1 problem: nothing listens at 127.0.0.1:9")


def test_as_json(monkeypatch, capsys):
    assert bridge_exits(monkeypatch, "check", "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    [agent] = [one for one in result["findings"] if one["check"] == "agent"]
    assert agent.keys() == {"check", "status", "what", "why", "remedy"}
    assert agent["status"] == "wrong"
