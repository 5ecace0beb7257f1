"""Clients with the token are accepted, wherever they are; no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from bridge.http.operator_auth import FAILURES_PER_MINUTE, Gate, NotAuthorised

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


def test_a_client_that_keeps_guessing_is_told_to_wait_and_the_token_still_works() -> None:
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


# ---- no address is a credential -----------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "", "203.0.113.9"])
@pytest.mark.parametrize("host", [LOCAL, "localhost:5000", "[::1]:5000", "voice.example.com", ""])
def test_a_local_address_opens_no_door(peer: str, host: str) -> None:
    """Behind nginx, stunnel or `ssh -R` every stranger has a loopback address, and perhaps Host."""
    assert status({"Host": host}, peer, TOKEN) == 401
    assert status({"Host": host, "X-Forwarded-For": "127.0.0.1"}, peer, TOKEN) == 401


@pytest.mark.parametrize("given_", ["", "Bearer", "Bearer ", "Bearer x"])
def test_before_there_is_a_token_there_is_no_way_in(given_: str) -> None:
    assert status({"Authorization": given_} if given_ else {}) == 401


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
    assert status({**headers, **RIGHT}, token=TOKEN) == 200
