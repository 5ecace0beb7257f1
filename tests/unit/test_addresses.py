"""Where Twilio is told to come back to."""

from __future__ import annotations

import pytest

from bridge.addresses import BadHost, is_loopback, public_address


@pytest.mark.parametrize(
    ("public_url", "host", "web", "socket"),
    [
        ("https://v.example.com", "x", "https://v.example.com", "wss://v.example.com"),
        ("https://v.example.com/eu", "x", "https://v.example.com/eu", "wss://v.example.com/eu"),
        ("http://localhost:5000", "x", "http://localhost:5000", "ws://localhost:5000"),
        ("", "ab12.ngrok.app", "https://ab12.ngrok.app", "wss://ab12.ngrok.app"),
        ("", "v.example.com:8443", "https://v.example.com:8443", "wss://v.example.com:8443"),
        ("", "127.0.0.1:5000", "http://127.0.0.1:5000", "ws://127.0.0.1:5000"),
        ("", "[::1]:5000", "http://[::1]:5000", "ws://[::1]:5000"),
        ("", "localhost", "http://localhost", "ws://localhost"),
        # Not our business to refuse: the TwiML escapes it.
        ("", 'a"b<c>&d', 'https://a"b<c>&d', 'wss://a"b<c>&d'),
    ],
)
def test_public_address(public_url: str, host: str, web: str, socket: str) -> None:
    assert public_address(public_url, host) == (web, socket)


@pytest.mark.parametrize("host", ["", "a/b", "a?b", "a#b", "a@b", "a b", "a\\b"])
def test_a_host_that_would_change_the_address_is_refused(host: str) -> None:
    with pytest.raises(BadHost, match=r"server\.public_url"):
        public_address("", host)


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "[::1]", "localhost:1", "x.localhost", "127.1.1.1:9"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "127.0.0.1.example.com", "[", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
