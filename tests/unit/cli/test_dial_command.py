"""`bridge dial` against the real control API, with the stand-in for Twilio behind it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from structlog.testing import capture_logs

import bridge.cli.dial as module
from tests.twilio_standin import OWN_NUMBER, error
from tests.unit.cli.commands import bridge_exits
from tests.unit.http.world import TO, TOKEN, ControlWorld

CALL_SID = "CA" + "0" * 31 + "1"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlWorld]:
    """A bridge that the command reaches without sockets, and a token that lets it in."""
    world = ControlWorld()
    real = module.connect

    def connect(url: str, token: str) -> httpx.AsyncClient:
        headers = real(url, token).headers
        transport = httpx.ASGITransport(world.app, client=("203.0.113.9", 1))
        return httpx.AsyncClient(base_url=url, headers=headers, transport=transport)

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setenv("BRIDGE_API_TOKEN", TOKEN)
    with capture_logs():  # the server's, which here is in the same process
        yield world


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, list[str]]:
    """The exit code, standard output, and the lines on standard error."""
    code = bridge_exits(monkeypatch, "dial", *arguments)
    output = capsys.readouterr()
    return code, output.out, output.err.splitlines()


def test_a_call_is_placed(monkeypatch, capsys, world):
    arguments = [TO, "--from", OWN_NUMBER, "--var", "name=Ann=Bob", "--var", "empty=", "--agent"]
    code, out, err = run(monkeypatch, capsys, *arguments, "sales", "--message", "Call back.")
    assert (code, out, err) == (0, f"{CALL_SID} queued\n", [])
    call = world.standin.calls[CALL_SID]
    assert (call.asked("To"), call.asked("From")) == (TO, OWN_NUMBER)
    asked = dict(parse_qsl(urlsplit(call.asked("Url")).query, keep_blank_values=True))
    assert asked == {
        "var.name": "Ann=Bob",
        "var.empty": "",
        "agent": "sales",
        "message": "Call back.",
    }


def test_everything_about_ringing_and_machines_can_be_said(monkeypatch, capsys, world):
    options = ["--timeout", "20", "--machine-detection", "DetectMessageEnd", "--async-amd"]
    options += ["--machine-detection-timeout", "15", "--on-machine", "stay"]
    options += ["--call-reason", "Hi", "--record", "--fallback-url", "https://a.example/"]
    code, _, err = run(monkeypatch, capsys, "sip:desk@example.com", *options)
    assert (code, err) == (0, [])
    call = world.standin.calls[CALL_SID]
    assert call.asked("To") == "sip:desk@example.com"
    asked = [call.asked(name) for name in ("Timeout", "MachineDetection", "AsyncAmd")]
    assert asked == ["20", "DetectMessageEnd", "true"]
    assert call.asked("MachineDetectionTimeout") == "15"
    asked = [call.asked(name) for name in ("CallReason", "Record", "FallbackUrl")]
    assert asked == ["Hi", "true", "https://a.example/"]
    code, _, err = run(monkeypatch, capsys, TO, "--send-digits", "W12#")
    assert (code, err) == (0, [])
    assert list(world.standin.calls.values())[-1].asked("SendDigits") == "W12#"
    code, _, err = run(monkeypatch, capsys, TO, "--on-machine", "message")
    assert code == 1
    assert err[-1].startswith("bridge: message: ")


def test_the_result_for_programs(monkeypatch, capsys, world):
    code, out, _ = run(monkeypatch, capsys, TO, "--json")
    assert code == 0
    assert json.loads(out) == {"call_sid": CALL_SID, "status": "queued"}
    assert world.standin.calls[CALL_SID].asked("From") == OWN_NUMBER


def test_the_bridges_refusal_in_one_line(monkeypatch, capsys, world):
    code, out, err = run(monkeypatch, capsys, TO, "--from", "+15550000009")
    assert (code, out) == (1, "")
    (line,) = err
    assert line.startswith("bridge: Twilio error 21210: The source phone number")
    world.bridge.entrance.admits_until = 0
    assert run(monkeypatch, capsys, TO)[2] == [
        "bridge: no call may be placed now: the server is stopping"
    ]


def test_without_the_token_it_says_what_is_missing(monkeypatch, capsys, world):
    monkeypatch.delenv("BRIDGE_API_TOKEN")
    code, _, err = run(monkeypatch, capsys, TO)
    assert code == 1
    assert len(err) == 1
    assert "BRIDGE_API_TOKEN" in err[0]


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("completed", 0, None),
        ("busy", 1, "busy"),
        ("no-answer", 1, "no one answered"),
        ("failed", 1, "number right"),
        ("canceled", 1, "cancelled"),
    ],
)
def test_waiting_until_the_call_is_over(monkeypatch, capsys, world, ending, code, words):
    """Each look at the call brings it one step further."""

    async def go_on() -> None:
        call = world.standin.calls[CALL_SID]
        steps = [("initiated",), ("ringing",), ("answered",), ("completed",)]
        if call.sequence < len(steps):
            forms = world.standin.reports(call, steps[call.sequence], ending)
            await world.standin.report(world.twilio_side, call, forms)

    ask = module._ask

    async def look(client: httpx.AsyncClient, method: str, *rest: Any) -> dict[str, Any]:
        if method == "GET":
            await go_on()
        return await ask(client, method, *rest)

    monkeypatch.setattr(module, "_ask", look)
    result, out, err = run(monkeypatch, capsys, TO, "--wait", "--json")
    assert result == code
    assert json.loads(out)["status"] == ending
    steps = ["queued", "initiated", "ringing", "in-progress", ending]
    assert err[:5] == [f"{CALL_SID} {step}" for step in steps]
    assert err[5:] == ([] if words is None else [err[-1]])
    assert words is None or words in err[-1]


def test_a_bridge_that_goes_away_while_it_is_watched(monkeypatch, capsys, world):
    ask = module._ask

    async def look(client: httpx.AsyncClient, method: str, *rest: Any) -> dict[str, Any]:
        if method == "GET":
            raise module._NoAnswer("cannot reach it")
        return await ask(client, method, *rest)

    monkeypatch.setattr(module, "_ask", look)
    code, out, err = run(monkeypatch, capsys, TO, "--wait")
    assert (code, out) == (1, "")
    assert err[-1] == "bridge: cannot reach it; the call may still be live"


def test_ctrl_c_ends_the_waiting_and_not_the_call(monkeypatch, capsys, world):
    ask = module._ask

    async def look(client: httpx.AsyncClient, method: str, *rest: Any) -> dict[str, Any]:
        if method == "GET":
            signal.raise_signal(signal.SIGINT)
        return await ask(client, method, *rest)

    monkeypatch.setattr(module, "_ask", look)
    code, out, err = run(monkeypatch, capsys, TO, "--wait")
    assert (code, out, err) == (130, "", [f"{CALL_SID} queued"])
    assert world.standin.calls[CALL_SID].updates == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["5551234567"], "country code"),
        ([TO, "--from", "anonymous"], "country code"),
        ([TO, "--var", "name"], "NAME=VALUE"),
        ([TO, "--var", "=x"], "NAME=VALUE"),
        ([TO, "--url", "bridge.example"], "http://"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, arguments, why):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert why in err[-1]


def test_a_token_that_cannot_be_one(monkeypatch, capsys):
    monkeypatch.setenv("BRIDGE_API_TOKEN", "tok\u00e9n")
    code, _, err = run(monkeypatch, capsys, TO)
    assert code == 2
    assert "BRIDGE_API_TOKEN" in err[0]


def test_something_else_that_answers(monkeypatch, capsys):
    def connect(url: str, token: str) -> httpx.AsyncClient:
        answer = httpx.MockTransport(lambda request: httpx.Response(404, text="<html>"))
        return httpx.AsyncClient(base_url=url, transport=answer)

    monkeypatch.setattr(module, "connect", connect)
    code, _, err = run(monkeypatch, capsys, TO)
    assert code == 1
    assert "is not a bridge" in err[0]


def test_twilio_out_of_order(monkeypatch, capsys, world):
    world.standin.faults.append(error(500, 20500, "Internal Server Error"))
    code, _, err = run(monkeypatch, capsys, TO)
    assert code == 1
    assert "20500" in err[0]
