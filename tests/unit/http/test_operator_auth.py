"""Clients with the token are accepted; without a token, clients that are really local."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from bridge.http.operator_auth import FAILURES_PER_MINUTE, FORWARDING_HEADERS, Gate, NotAuthorised

TOKEN = "api-token-5EC237-0123456789"
LOCAL = "127.0.0.1:5000"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(headers: dict[str, str], peer: str = "127.0.0.1", token: str = "") -> int:
    """200 if let in, else the refusal's."""
    try:
        Gate(Clock()).check(token, Headers({"Host": LOCAL, **headers}), peer)
    except NotAuthorised as error:
        return error.status
    return 200


# ---- with a token -------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "203.0.113.9", ""])
@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_the_token_lets_in_from_anywhere(peer: str, scheme: str) -> None:
    headers = {"Authorization": scheme + TOKEN, "X-Forwarded-For": "198.51.100.7"}
    assert status(headers, peer, TOKEN) == 200


@pytest.mark.parametrize(
    "given_",
    [
        "",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        "Bearer",
        "Bearer ",
        "Bearer \u00e9",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
    ],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "203.0.113.9"])
def test_anything_else_does_not_even_from_here(given_: str, peer: str) -> None:
    headers = {"Authorization": given_} if given_ else {}
    assert status(headers, peer, TOKEN) == 401


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60))
def test_no_guess_is_right_and_none_raises(guess: str) -> None:
    assert status({"Authorization": f"Bearer {guess}"}, token=TOKEN) == 401


def test_who_keeps_guessing_is_told_to_wait_and_the_token_still_works() -> None:
    clock = Clock()
    gate = Gate(clock)
    wrong = Headers({"Host": LOCAL, "Authorization": "Bearer x"})
    right = Headers({"Host": LOCAL, "Authorization": f"Bearer {TOKEN}"})

    def guess(peer: str) -> tuple[int, bool]:
        with pytest.raises(NotAuthorised) as caught:
            gate.check(TOKEN, wrong, peer)
        return caught.value.status, caught.value.is_news

    assert [guess("203.0.113.9") for _ in range(FAILURES_PER_MINUTE)] == [
        (401, True)
    ] * FAILURES_PER_MINUTE
    assert guess("203.0.113.9") == (429, False)
    gate.check(TOKEN, right, "203.0.113.9")
    assert guess("203.0.113.10") == (401, True)
    clock.now += 60
    assert guess("203.0.113.9") == (401, True)


def test_the_memory_of_failures_is_bounded() -> None:
    gate = Gate(Clock())
    wrong = Headers({"Host": LOCAL})
    for number in range(5000):
        with pytest.raises(NotAuthorised):
            gate.check(TOKEN, wrong, f"2001:db8::{number:x}")
    assert len(gate._failures) == 1000


# ---- without a token ----------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", [LOCAL, "localhost:5000", "[::1]:5000", "127.0.0.1"])
def test_this_machine_is_let_in(peer: str, host: str) -> None:
    assert status({"Host": host}, peer) == 200


@pytest.mark.parametrize(
    "peer", ["203.0.113.9", "10.0.0.7", "::ffff:10.0.0.7", "2001:db8::1", "", "unix:", "localhost"]
)
def test_others_are_not(peer: str) -> None:
    assert status({}, peer) == 403


@pytest.mark.parametrize("name", FORWARDING_HEADERS)
@pytest.mark.parametrize("value", ["127.0.0.1", "for=127.0.0.1", ""])
def test_a_client_behind_a_proxy_or_tunnel_here_is_not_local(name: str, value: str) -> None:
    assert status({name: value}) == 403
    assert status({name.lower(): value}) == 403


@pytest.mark.parametrize("host", ["voice.example.com", "x.trycloudflare.com", "localhost.evil", ""])
def test_a_client_that_requests_another_host_is_not_local(host: str) -> None:
    """A tunnel that adds no header, and a page whose name was pointed at 127.0.0.1."""
    assert status({"Host": host}) == 403


@pytest.mark.parametrize("value", ["127.0.0.1", "::1"])
def test_forwarded_for_opens_no_door(value: str) -> None:
    assert status({"X-Forwarded-For": value}, "203.0.113.9") == 403


# ---- pages --------------------------------------------------------------------------------------

RIGHT = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:5001"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none", "Origin": "https://evil.example"},
    ],
)
def test_no_page_of_another_site(headers: dict[str, str]) -> None:
    assert status(headers) == 403
    assert status({**headers, **RIGHT}, token=TOKEN) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": f"http://{LOCAL}", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://LOCALHOST:5000", "Host": "localhost:5000"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_pages_of_our_own(headers: dict[str, str]) -> None:
    assert status(headers) == 200
