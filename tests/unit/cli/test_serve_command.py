"""`bridge serve`: what it takes from the command line, and how it refuses to start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import bridge.asgi
import bridge.config.settings
import bridge.server.serve
from bridge.http.app import create_app
from tests.unit.cli.commands import bridge_exits

LOCAL = '[server]\nbind = "127.0.0.1:0"\n[deepgram]\nurl = "ws://127.0.0.1:9/"\n'
KEY = "dg-key-5EC237-0123456789abcdef"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    """An application that has not been started."""
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "tw-token")
    # The command writes it: so that it is taken back.
    monkeypatch.setenv("BRIDGE_CONFIG", "")
    monkeypatch.setattr(bridge.asgi, "app", create_app())


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for the server: the addresses it was to listen on."""
    binds: list[list[str]] = []

    async def serve(app: Any, config: Any, *_: Any) -> None:
        binds.append(config.bind)

    monkeypatch.setattr(bridge.server.serve, "run", serve)
    return binds


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str]]:
    """The exit code, and the lines on standard error; standard output is for results."""
    code = bridge_exits(monkeypatch, "serve", *arguments)
    output = capsys.readouterr()
    assert output.out == ""
    return code, output.err.splitlines()


def test_the_address_is_the_configurations(monkeypatch, capsys, served):
    Path("config.toml").write_text(LOCAL)
    assert run(monkeypatch, capsys) == (0, [])
    assert served == [["127.0.0.1:0"]]


@pytest.mark.parametrize("bind", ["127.0.0.1:5001", "[::1]:5000", "0.0.0.0:80"])
def test_bind_is_instead_of_the_configurations(monkeypatch, capsys, served, bind):
    Path("config.toml").write_text(LOCAL)
    assert run(monkeypatch, capsys, "--bind", bind) == (0, [])
    assert served == [[bind]]


def test_config_is_instead_of_the_environments(monkeypatch, capsys, served):
    Path("this.toml").write_text(LOCAL.replace(":0", ":5001"))
    Path("that.toml").write_text("nonsense")
    monkeypatch.setenv("BRIDGE_CONFIG", "that.toml")
    assert run(monkeypatch, capsys, "--config", "this.toml") == (0, [])
    assert served == [["127.0.0.1:5001"]]


def test_the_environment_is_instead_of_the_working_directorys(monkeypatch, capsys, served):
    Path("config.toml").write_text("nonsense")
    Path("that.toml").write_text(LOCAL)
    monkeypatch.setenv("BRIDGE_CONFIG", "that.toml")
    assert run(monkeypatch, capsys) == (0, [])
    assert served == [["127.0.0.1:0"]]


def test_a_protection_that_is_switched_off_is_mentioned_once(monkeypatch, capsys, served):
    Path("config.toml").write_text(LOCAL + "[twilio]\nrequire_ticket = false\n")
    code, lines = run(monkeypatch, capsys)
    assert code == 0
    assert served == [["127.0.0.1:0"]]
    (line,) = lines
    assert "twilio.require_ticket is false" in line


@pytest.mark.parametrize("option", [[], ["--reload"]])
def test_functions_are_loaded_again_only_on_request(monkeypatch, capsys, served, option):
    Path("config.toml").write_text(LOCAL)
    assert run(monkeypatch, capsys, *option) == (0, [])
    assert bridge.asgi.app.extensions["bridge"].functions.reload is bool(option)


@pytest.mark.parametrize("option", ["--reload", "--tunnel"])
def test_an_option_for_one_worker(monkeypatch, capsys, served, option):
    Path("config.toml").write_text(LOCAL.replace("[server]", "[server]\nworkers = 2"))
    code, (line,) = run(monkeypatch, capsys, option)
    assert (code, served) == (2, [])
    assert f"{option}: works with one worker only; set server.workers to 1" in line


def test_a_function_with_the_name_of_a_built_in_one_is_refused(monkeypatch, capsys, served):
    name = "functions_named_like_ours"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = "from bridge.functions import function\n@function\ndef end_call() -> None: ...\n"
    Path(f"{name}.py").write_text(module)
    Path("config.toml").write_text(f'{LOCAL}[functions]\nmodule = "{name}"\n')
    code, (line,) = run(monkeypatch, capsys)
    assert (code, served) == (2, [])
    assert f"{name}.end_call: bridge has its own end_call; rename yours" in line


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        (None, {}, ["config.toml", "no such file", "BRIDGE_CONFIG"]),
        ("", {}, ["DEEPGRAM_API_KEY", "not set", "bridge agent"]),
        ("", {"DEEPGRAM_API_KEY": f"{KEY}\nX-Evil: 1"}, ["DEEPGRAM_API_KEY", "set it again"]),
        ("", {"TWILIO_AUTH_TOKEN": f"{KEY}\x07"}, ["TWILIO_AUTH_TOKEN", "set it again"]),
        (LOCAL, {"TWILIO_AUTH_TOKEN": ""}, ["TWILIO_AUTH_TOKEN", "validate_signatures = false"]),
        ("[call", {}, ["config.toml: line 1", "not valid TOML"]),
        ("[call]\nframe_mss = 1\n", {}, ["call.frame_mss", "did you mean frame_ms?"]),
        ("[server]\nbind = '5000'\n", {}, ["server.bind", "0.0.0.0:5000"]),
        ("[server]\nbind = '0.0.0.0:99999'\n", {}, ["server.bind", "0 to 65535"]),
        ("", {"DEEPGRAM_API_KEY": " "}, ["DEEPGRAM_API_KEY", "set it"]),
        (LOCAL, {"BRIDGE_CONFIG": "that.toml"}, ["that.toml", "no such file", "BRIDGE_CONFIG"]),
        ("[calls]\nframe_ms = 60\n", {}, ["[calls]", "did you mean [call]"]),
        ("[call]\nframe_ms = 400\n", {}, ["call.frame_ms", "20 to 250", "400"]),
        ('[logging]\nlevel = "loud"\n', {}, ["logging.level", '"debug"', '"loud"']),
        ('x = "\x1b[31m\\u202e"', {}, ["config.toml"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(monkeypatch, capsys, served, text, environment, words):
    """Exit code 2, nothing is served, and no control character or secret reaches the terminal."""
    if text is not None:
        Path("config.toml").write_text(text)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, lines = run(monkeypatch, capsys)
    assert code == 2
    assert served == []
    (line,) = lines
    assert line.startswith("bridge: ")
    assert line.isprintable()
    assert [word for word in words if word not in line] == []
    assert KEY not in line


def test_an_address_that_cannot_be_bound_is_a_failure(monkeypatch, capsys):
    """It says which address, and why, however deep in exception groups."""

    async def serve(*_: Any) -> None:
        error = OSError(98, "Address already in use")
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [error])])

    monkeypatch.setattr(bridge.server.serve, "run", serve)
    Path("config.toml").write_text(LOCAL)
    code, lines = run(monkeypatch, capsys, "--bind", "127.0.0.1:5001")
    assert code == 1
    (line,) = lines
    assert line == (
        "bridge: cannot listen on 127.0.0.1:5001: Address already in use; "
        "choose another with --bind"
    )


@pytest.mark.parametrize("bind", ["127.0.0.1:99999", "nonsense", ""])
def test_a_bind_that_is_no_address_is_wrong_usage(monkeypatch, capsys, served, bind):
    Path("config.toml").write_text(LOCAL)
    code, lines = run(monkeypatch, capsys, "--bind", bind)
    assert code == 2
    assert served == []
    assert "--bind" in lines[-1]
