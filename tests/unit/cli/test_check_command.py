"""`bridge check`: its lines, its JSON, its exit codes; and checks that hang or fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from bridge.check import Finding, ok, run_checks, wrong
from tests.unit.cli.commands import bridge_exits, check_finds_no_agent

KEY = "dg-key-5EC237-0123456789abcdef"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    check_finds_no_agent(monkeypatch)


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    code = bridge_exits(monkeypatch, "check", *arguments)
    output = capsys.readouterr()
    assert KEY not in output.out + output.err
    return code, output.out, output.err


@pytest.mark.parametrize(
    ("arguments", "text", "why"),
    [
        ([], "[server]\nbnd = 1\n", "server.bnd: unknown key"),
        (["--config", "nothere.toml"], "", "no such file"),
        (["--url", "voice.example.com"], "", "--url: expected an address"),
        (["--number", "5551234567"], "", "--number: expected a phone number"),
    ],
)
def test_what_cannot_be_used(monkeypatch, capsys, arguments, text, why):
    Path("config.toml").write_text(text)
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert why in err


def test_an_unusable_configuration_is_json_too(monkeypatch, capsys):
    Path("config.toml").write_text("[server]\nbnd = 1\n")
    code, out, _ = run(monkeypatch, capsys, "--json")
    assert code == 2
    assert "server.bnd" in json.loads(out)["error"]


def test_a_key_with_a_line_break(monkeypatch, capsys):
    monkeypatch.setenv("DEEPGRAM_API_KEY", "abc\ndef")
    code, _, err = run(monkeypatch, capsys)
    assert code == 2
    assert "DEEPGRAM_API_KEY" in err
    assert "abc" not in err


async def test_a_check_that_hangs_and_one_that_fails_cost_the_others_nothing(autojump_clock):
    async def hangs() -> list[Finding]:
        await trio.sleep_forever()
        return []

    async def fails() -> list[Finding]:
        raise RuntimeError("a bug")

    async def works() -> list[Finding]:
        return [ok("works", "as it should"), wrong("works", "and more")]

    checks = {"hangs": (hangs, 5.0), "fails": (fails, 5.0), "works": (works, 5.0)}
    found = await run_checks(checks)
    assert trio.current_time() <= 5.1
    assert [(one.check, one.status) for one in found] == [
        ("hangs", "wrong"),
        ("fails", "wrong"),
        ("works", "ok"),
        ("works", "wrong"),
    ]
    assert found[0].what == "not done within 5 s"
    assert found[1].why == "RuntimeError: a bug"


def test_what_a_server_says_cannot_break_the_line():
    finding = wrong("agent", "it said", "first\nsecond\x1b[31m", "x" * 5000)
    assert "\n" not in finding.line
    assert "\x1b" not in finding.line
    assert len(finding.line) < 1000
