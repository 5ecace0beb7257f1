"""An environment that httpx cannot use: one warning with the remedy, and a client."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.transport.http_client import open_client
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:1080"}, "ALL_PROXY"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.1,fe80::/10"}, "NO_PROXY"),
        ({"NO_PROXY": "[::1]"}, "NO_PROXY"),
        ({"SSL_CERT_FILE": "/no/such/file.pem"}, "SSL_CERT_FILE"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_named(
    own_environment: None,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    named: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as logs:
        TwilioRest(ACCOUNT_SID, AUTH_TOKEN)
    (line,) = logs
    assert line["log_level"] == "warning"
    assert named in line["event"]
    assert line["remedy"]


def test_each_fault_is_told_once_and_what_is_right_is_kept(
    own_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with capture_logs() as logs:
        client = open_client()
    assert len(logs) == 1
    assert [str(pattern.pattern) for pattern in client._mounts] == ["https://"]
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with capture_logs() as logs:
        assert open_client()._mounts == {}
    assert len(logs) == 2


def test_a_good_environment_is_not_mentioned(own_environment: None) -> None:
    with capture_logs() as logs:
        open_client()
    assert logs == []
