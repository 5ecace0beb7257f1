"""The address a client asked for, through proxies that are trusted and others."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from bridge.http.proxies import RequestOrigin, is_same_origin, request_origin, requested_url

TRUSTED = ("10.0.0.7", "192.168.0.0/16", "2001:db8::/32")
CLIENT = "203.0.113.9"


def headers(*items: tuple[str, str]) -> Headers:
    return Headers([("Host", "inside:5000"), *items])


def forwarded(proto: str = "https", host: str = "voice.example.com", to: str = CLIENT) -> Headers:
    return headers(
        ("X-Forwarded-Proto", proto), ("X-Forwarded-Host", host), ("X-Forwarded-For", to)
    )


def test_without_trust_nothing_is_believed() -> None:
    own = RequestOrigin("10.0.0.7", "http", "inside:5000")
    assert request_origin("10.0.0.7", "http", forwarded(), ()) == own
    assert request_origin("10.0.0.8", "http", forwarded(), TRUSTED) == own._replace(
        client="10.0.0.8"
    )
    assert request_origin("", "http", forwarded(), ()) == own._replace(client="")


@pytest.mark.parametrize("peer", ["10.0.0.7", "192.168.7.7", "2001:db8::7", "::ffff:10.0.0.7", ""])
def test_a_trusted_peer_is_believed(peer: str) -> None:
    assert request_origin(peer, "http", forwarded(), TRUSTED) == RequestOrigin(
        CLIENT, "https", "voice.example.com"
    )


@pytest.mark.parametrize("peer", ["nonsense", "10.0.0.70", "::ffff:10.0.0.8", "10.0.0.7 "])
def test_who_only_looks_like_it_is_not(peer: str) -> None:
    assert request_origin(peer, "http", forwarded(), TRUSTED).host == "inside:5000"


def test_what_is_not_said_is_the_requests_own() -> None:
    assert request_origin("10.0.0.7", "wss", headers(), TRUSTED) == RequestOrigin(
        "10.0.0.7", "https", "inside:5000"
    )
    only_proto = headers(("X-Forwarded-Proto", "HTTPS"))
    assert request_origin("10.0.0.7", "ws", only_proto, TRUSTED) == RequestOrigin(
        "10.0.0.7", "https", "inside:5000"
    )


@pytest.mark.parametrize("proto", ["gopher", "", "https://x", "ht tps"])
@pytest.mark.parametrize("host", ["a/b", "a b", "", "a@b", "a?b", "x:123456", '"><x>', "ä.de"])
def test_nonsense_is_as_if_it_were_not_there(proto: str, host: str) -> None:
    assert request_origin(
        "10.0.0.7", "http", forwarded(proto, host, "unknown"), TRUSTED
    ) == RequestOrigin("10.0.0.7", "http", "inside:5000")


def test_a_client_cannot_put_itself_in_a_proxys_place() -> None:
    """What stands left of the client's address is its own invention."""
    given_ = headers(
        ("X-Forwarded-For", "10.0.0.7, 198.51.100.1, 192.168.1.1, 203.0.113.9"),
        ("X-Forwarded-Proto", "gopher, http, https"),
        ("X-Forwarded-Host", "evil.example, voice.example.com"),
    )
    assert request_origin("10.0.0.7", "http", given_, TRUSTED) == RequestOrigin(
        CLIENT, "https", "voice.example.com"
    )


def test_through_two_proxies_the_outer_ones_entries_count() -> None:
    given_ = headers(
        ("X-Forwarded-For", f"evil, {CLIENT}, 192.168.1.1"),
        ("X-Forwarded-Proto", "http, https, http"),
        ("X-Forwarded-Host", "evil.example, voice.example.com, inner:8080"),
    )
    assert request_origin("10.0.0.7", "http", given_, TRUSTED) == RequestOrigin(
        CLIENT, "https", "voice.example.com"
    )


def test_a_proxy_that_replaces_instead_of_appending() -> None:
    given_ = headers(
        ("X-Forwarded-For", f"{CLIENT}, 192.168.1.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "voice.example.com"),
    )
    assert request_origin("10.0.0.7", "http", given_, TRUSTED)[1:] == ("https", "voice.example.com")


def test_several_headers_are_one_list() -> None:
    given_ = headers(("X-Forwarded-For", "evil"), ("X-Forwarded-For", f"{CLIENT}:4711"))
    assert request_origin("10.0.0.7", "http", given_, TRUSTED).client == CLIENT
    given_ = headers(("X-Forwarded-For", "[2001:4711::9]:80"))
    assert request_origin("10.0.0.7", "http", given_, TRUSTED).client == "2001:4711::9"


@given(
    peer=st.sampled_from(["10.0.0.7", "192.168.0.1", "198.51.100.1", ""]),
    hops=st.lists(
        st.one_of(
            st.sampled_from(["10.0.0.7", "192.168.3.3", "198.51.100.1", "unknown"]),
            st.text("0123456789.:[]abc,", max_size=20),
        ),
        max_size=30,
    ),
    protos=st.lists(st.sampled_from(["http", "https", "x", ""]), max_size=30),
)
def test_the_client_is_the_nearest_that_is_not_trusted(
    peer: str, hops: list[str], protos: list[str]
) -> None:
    """Whatever the lists: an address or the peer, and a scheme of the two."""
    given_ = headers(("X-Forwarded-For", ",".join(hops)), ("X-Forwarded-Proto", ",".join(protos)))
    found = request_origin(peer, "http", given_, TRUSTED)
    assert found.scheme in ("http", "https")
    if found.client != peer:
        ipaddress.ip_address(found.client)
    if peer == "198.51.100.1":
        assert found == RequestOrigin(peer, "http", "inside:5000")


def test_the_address_is_the_public_one_when_there_is_one() -> None:
    here = RequestOrigin(CLIENT, "http", "inside:5000")
    public = "https://voice.example.com/eu"
    assert requested_url(public, here, "/incoming-call?a=%41") == (
        "https://voice.example.com/eu/incoming-call?a=%41"
    )
    assert requested_url(public, here, "/media-stream", websocket=True) == (
        "wss://voice.example.com/eu/media-stream"
    )
    assert requested_url("", here, "/x") == "http://inside:5000/x"
    assert requested_url("", here, "/x", websocket=True) == "ws://inside:5000/x"


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("http://inside:5000", True),
        ("https://INSIDE:5000", True),
        ("https://voice.example.com", True),
        ("https://voice.example.com:443", False),
        ("https://evil.example", False),
        ("https://inside:5000.evil.example", False),
        ("https://evil.example/inside:5000", False),
        ("null", False),
        ("", False),
        ("inside:5000", False),
        ("ftp://inside:5000", False),
        ("https://", False),
    ],
)
def test_an_origin_of_our_own(origin: str, own: bool) -> None:
    here = RequestOrigin(CLIENT, "http", "inside:5000")
    assert is_same_origin(origin, here, "https://voice.example.com/eu") == own
