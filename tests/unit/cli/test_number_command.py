"""`bridge number` against the stand-in for Twilio: what it shows, asks, changes and refuses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import bridge.cli.number as module
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN, OWN_NUMBER, TwilioStandIn, error, number
from tests.unit.cli.commands import bridge_exits

PUBLIC = "https://voice.example.com"
HOOK = f"{PUBLIC}/incoming-call"
STATUS = f"{PUBLIC}/call-status"
OLD = "https://old.example/voice"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    """The account of the stand-in, and a public address."""
    monkeypatch.setenv("BRIDGE_CONFIG", "")
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", ACCOUNT_SID)
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", f"{AUTH_TOKEN},next-token")
    Path("config.toml").write_text(f'[server]\npublic_url = "{PUBLIC}"\n')


def standin(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> TwilioStandIn:
    """Twilio with one number, which the command reaches without sockets."""
    made = TwilioStandIn(number(OWN_NUMBER, **fields))

    def open_rest(account_sid: str, auth_token: str) -> TwilioRest:
        return TwilioRest(account_sid, auth_token, transport=made.transport())

    monkeypatch.setattr(module, "open_rest", open_rest)
    return made


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
    typed: str = "",
) -> tuple[int, str, str]:
    """The exit code, standard output and standard error."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    code = bridge_exits(monkeypatch, "number", *arguments)
    output = capsys.readouterr()
    assert AUTH_TOKEN not in output.out + output.err
    assert ACCOUNT_SID not in output.out + output.err
    return code, output.out, output.err


def webhook(twilio: TwilioStandIn) -> tuple[Any, ...]:
    (item,) = twilio.numbers.values()
    return item["voice_url"], item["voice_method"], item["voice_application_sid"]


def test_it_shows_what_was_there_and_asks(monkeypatch, capsys):
    twilio = standin(monkeypatch, voice_url=OLD, voice_method="GET")
    code, out, err = run(monkeypatch, capsys, OWN_NUMBER, typed="y\n")
    assert (code, out) == (0, f"{OWN_NUMBER} is answered by {HOOK}\n")
    assert f"now: {OLD} (GET)" in err
    assert f"new: {HOOK} (POST)" in err
    assert webhook(twilio) == (HOOK, "POST", "")


@pytest.mark.parametrize("typed", ["n\n", "\n"])
def test_no_is_no(monkeypatch, capsys, typed):
    twilio = standin(monkeypatch, voice_url=OLD)
    code, out, err = run(monkeypatch, capsys, OWN_NUMBER, typed=typed)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].endswith("bridge: nothing was changed")
    assert webhook(twilio)[0] == OLD


def test_without_a_terminal_it_needs_yes(monkeypatch, capsys):
    twilio = standin(monkeypatch)
    code, out, err = run(monkeypatch, capsys, OWN_NUMBER)
    assert (code, out) == (2, "")
    assert "--yes" in err
    assert webhook(twilio)[0] is None
    assert run(monkeypatch, capsys, OWN_NUMBER, "--yes")[0] == 0
    assert webhook(twilio)[0] == HOOK


def test_ctrl_c_changes_nothing(monkeypatch, capsys):
    twilio = standin(monkeypatch)

    def interrupt(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("click.confirm", interrupt)
    assert run(monkeypatch, capsys, OWN_NUMBER)[0] == 130
    assert webhook(twilio)[0] is None


@pytest.mark.parametrize(
    ("url", "hook"),
    [
        ("https://x.trycloudflare.com", "https://x.trycloudflare.com/incoming-call"),
        ("https://x.example/phone/", "https://x.example/phone/incoming-call"),
        ("https://x.example/incoming-call", "https://x.example/incoming-call"),
    ],
)
def test_another_address_than_the_configurations(monkeypatch, capsys, url, hook):
    twilio = standin(monkeypatch)
    Path("config.toml").unlink()
    assert run(monkeypatch, capsys, OWN_NUMBER, "--url", url, "--yes")[0] == 0
    assert webhook(twilio)[0] == hook


def test_an_application_in_the_way_is_shown_and_taken_off(monkeypatch, capsys):
    twilio = standin(monkeypatch, voice_url=HOOK, voice_application_sid="AP" + "0" * 32)
    code, _, err = run(monkeypatch, capsys, OWN_NUMBER, "--yes")
    assert code == 0
    assert "now: application AP" in err
    assert webhook(twilio) == (HOOK, "POST", "")


def test_a_number_on_a_trunk_is_left_alone(monkeypatch, capsys):
    twilio = standin(monkeypatch, trunk_sid="TK" + "0" * 32)
    code, _, err = run(monkeypatch, capsys, OWN_NUMBER, "--yes")
    assert code == 1
    assert "SIP trunk" in err.splitlines()[-1]
    assert webhook(twilio)[0] is None


def test_nothing_to_do(monkeypatch, capsys):
    twilio = standin(monkeypatch, voice_url=HOOK, status_callback=STATUS)
    code, out, _ = run(monkeypatch, capsys, OWN_NUMBER)
    assert code == 0
    assert "already" in out
    assert [method for method, _, _ in twilio.requests] == ["GET"]


def test_it_sets_the_status_callback_and_says_so(monkeypatch, capsys):
    """By it the server learns of a caller who hung up before the media socket (finding B2)."""
    twilio = standin(monkeypatch, voice_url=HOOK, status_callback="https://old.example/s")
    code, _, err = run(monkeypatch, capsys, OWN_NUMBER, "--yes")
    assert code == 0
    assert f"status callback: https://old.example/s -> {STATUS}" in err
    (item,) = twilio.numbers.values()
    assert (item["status_callback"], item["status_callback_method"]) == (STATUS, "POST")
    assert item["voice_fallback_url"] is None


BIN = "https://handler.twilio.com/twiml/EH0123"


def test_a_fallback_for_while_the_server_is_away(monkeypatch, capsys):
    twilio = standin(monkeypatch, voice_url=HOOK, status_callback=STATUS)
    code, _, err = run(monkeypatch, capsys, OWN_NUMBER, "--fallback", BIN, "--yes")
    assert code == 0
    assert f"fallback: none -> {BIN}" in err
    (item,) = twilio.numbers.values()
    assert (item["voice_fallback_url"], item["voice_fallback_method"]) == (BIN, "POST")
    assert "already" in run(monkeypatch, capsys, OWN_NUMBER, "--fallback", BIN)[1]
    # Without the option what is there stays.
    assert run(monkeypatch, capsys, OWN_NUMBER, "--yes")[0] == 0
    assert item["voice_fallback_url"] == BIN


def test_a_number_of_somebody_else(monkeypatch, capsys):
    standin(monkeypatch)
    code, _, err = run(monkeypatch, capsys, "+15550000001", "--yes")
    assert code == 1
    assert "no number +15550000001" in err


def test_twilios_refusal_in_one_line(monkeypatch, capsys):
    twilio = standin(monkeypatch)
    twilio.faults.append(error(401, 20003, "Authenticate"))
    code, out, err = run(monkeypatch, capsys, OWN_NUMBER, "--yes")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line == (
        "bridge: Twilio error 20003: Authenticate (HTTP 401); check TWILIO_ACCOUNT_SID and "
        "TWILIO_AUTH_TOKEN"
    )


@pytest.mark.parametrize("missing", ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"])
def test_without_credentials(monkeypatch, capsys, missing):
    standin(monkeypatch)
    monkeypatch.delenv(missing)
    code, _, err = run(monkeypatch, capsys, OWN_NUMBER, "--yes")
    assert code == 2
    assert missing in err
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", AUTH_TOKEN)
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "AC123")
    code, _, err = run(monkeypatch, capsys, OWN_NUMBER, "--yes")
    assert code == 2
    assert "TWILIO_ACCOUNT_SID" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["5551234567"], "country code"),
        ([OWN_NUMBER, "--url", "voice.example.com"], "https://"),
        ([OWN_NUMBER, "--url", "http://127.0.0.1:5000"], "public address"),
        ([OWN_NUMBER, "--url", "https://a/?b=c"], "public address"),
        ([OWN_NUMBER, "--url", "https://u:p@a/"], "public address"),
        ([OWN_NUMBER, "--url", "https://[::1"], "--url"),
        ([OWN_NUMBER, "--fallback", "handler.twilio.com"], "--fallback"),
        ([OWN_NUMBER, "--fallback", "https://[::1"], "--fallback"),
        ([OWN_NUMBER, "--config", "nothere.toml"], "no such file"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, arguments, why):
    twilio = standin(monkeypatch)
    code, out, err = run(monkeypatch, capsys, *arguments, "--yes")
    assert (code, out) == (2, "")
    assert why in err.splitlines()[-1]
    assert twilio.requests == []


def test_without_a_public_address(monkeypatch, capsys):
    Path("config.toml").write_text("")
    standin(monkeypatch)
    code, _, err = run(monkeypatch, capsys, OWN_NUMBER, "--yes")
    assert code == 2
    assert "server.public_url" in err
