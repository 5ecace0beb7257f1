"""X-Twilio-Signature: the official vectors, and the official library as the oracle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator, get_signature_algorithm

from bridge.testing.phone.webhook import sign
from bridge.twilio.signature import UnknownSigning, is_signed, signature, signing, spellings

TOKEN = "12345"
U = "https://mycompany.com/myapp.php?foo=1&bar=2"
BODY = b'{"property": "value", "boolean": true}'
HASH = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
EMPTY_HASH = hashlib.sha256(b"{}").hexdigest()

P = [
    ("CallSid", "CA1234567890ABCDE"),
    ("Digits", "1234"),
    ("From", "+14158675309"),
    ("To", "+18005551212"),
    ("Caller", "+14158675309"),
]
MANY = [
    ("Sid", "CA123"),
    ("SidAccount", "AC123"),
    ("Digits", "5678"),
    ("Digits", "1234"),
    ("Digits", "1234"),
]
BINDINGS = [
    ("MessagingBinding.Address", "+1325xxxxxxx"),
    ("MessagingBinding.Address", "+1415xxxxxxx"),
]
DOCUMENTED = [
    ("CallSid", "CA1234567890ABCDE"),
    ("Caller", "+12349013030"),
    ("Digits", "1234"),
    ("From", "+12349013030"),
    ("To", "+18005551212"),
]

# The signed address, the fields, the body and the signature: from the tests of twilio-python and
# twilio-node, and the last from Twilio's documentation.
VECTORS = [
    (U, P, None, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
    ("http://mycompany.com:1234/myapp.php?foo=1&bar=2", P, None, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
    ("https://mycompany.com:443/myapp.php?foo=1&bar=2", P, None, "kvajT1Ptam85bY51eRf/AJRuM3w="),
    ("http://mycompany.com:80/myapp.php?foo=1&bar=2", P, None, "0ZXoZLH/DfblKGATFgpif+LLRf4="),
    (U, MANY, None, "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
    (f"{U}&bodySHA256={HASH}", [], BODY, "a9nBmqA0ju/hNViExpshrM61xv4="),
    (
        f"https://mycompany.com/myapp.php?bodySHA256={HASH}",
        [],
        BODY,
        "y77kIzt2vzLz71DgmJGsen2scGs=",
    ),
    (
        f"https://mycompany.com:443/myapp.php?foo=1&bar=2&bodySHA256={EMPTY_HASH}",
        [],
        b"{}",
        "Ldidvp12m26NI7eqEvxnEpkd9Hc=",
    ),
    (
        "https://user:pass@mycompany.com/myapp.php?foo=1&bar=2",
        P,
        None,
        "CukzLTc1tT5dXEDIHm/tKBanW10=",
    ),
    ("https://user@mycompany.com/myapp.php?foo=1&bar=2", P, None, "2YRLlVAflCqxaNicjMpJcSTgzSs="),
    (
        "https://user:pass@mycompany.com:443/myapp.php?foo=1&bar=2",
        P,
        None,
        "ZQFR1PTIZXF2MXB8ZnKCvnnA+rI=",
    ),
    (f"{U}&Body=It%27s+amazing", P, None, "TfZzewPq8wqrGlMfyAud8+/IvJ0="),
    (U, BINDINGS, None, "83O6e2vORAoJHUNzJjDWN1jz+BA="),
    (U, DOCUMENTED, None, "0/KCTR6DLpKmkAf8muzZqo1nDgQ="),
]


@pytest.mark.parametrize(("url", "params", "body", "expected"), VECTORS)
def test_the_official_vectors(
    url: str, params: list[tuple[str, str]], body: bytes | None, expected: str
) -> None:
    assert signature(TOKEN, url, params) == expected
    assert is_signed([TOKEN], expected, url, params, body=body)
    assert is_signed([TOKEN], expected, url, params[::-1], body=body)


@pytest.mark.parametrize(
    ("presented", "params", "body", "given_"),
    [
        ("https://mycompany.com:1234/myapp.php?foo=1&bar=2", P, None, VECTORS[0][3]),
        (U, P, None, VECTORS[2][3]),
        (U.replace("https", "http"), P, None, VECTORS[3][3]),
        (VECTORS[7][0].replace(":443", ""), [], b"{}", VECTORS[7][3]),
        (VECTORS[8][0].replace(".com", ".com:8443"), P, None, VECTORS[8][3]),
        (f"{U}&Body=It's+amazing", P, None, VECTORS[11][3]),
        # TLS ends before us.
        (U.replace("https", "http"), P, None, VECTORS[0][3]),
    ],
)
def test_another_spelling_of_the_signed_address(
    presented: str, params: list[tuple[str, str]], body: bytes | None, given_: str
) -> None:
    assert is_signed([TOKEN], given_, presented, params, body=body)


@pytest.mark.parametrize(
    "given_",
    [
        "WRONG SIGNATURE",
        "NOTRSOYDt4T1cUTdK1PDd93/VVr8B8=",
        "",
        "RSOYDt4T1cUTdK1PDd93/VVr8B8",
        "RSOYDt4T1cUTdK1PDd93/VVr8B8=\n",
        "rsoydt4t1cutdk1pdd93/vvr8b8=",
        "RSOYDt4T1cUTdK1PDd93/VVr8B8é",
    ],
)
def test_a_wrong_signature(given_: str) -> None:
    assert not is_signed([TOKEN], given_, U, P)


@pytest.mark.parametrize(
    ("url", "params"),
    [
        (U + "3", P),
        (U.replace("mycompany", "myc0mpany"), P),
        (U.replace("foo=1&bar=2", "bar=2&foo=1"), P),
        (U.replace("myapp", "Myapp"), P),
        (U, P[:-1]),
        (U, [*P, ("Empty", "")]),
        (U, [*P, ("Digits", "12345")]),
        (U, []),
    ],
)
def test_nothing_in_a_request_may_differ(url: str, params: list[tuple[str, str]]) -> None:
    assert not is_signed([TOKEN], VECTORS[0][3], url, params)


def test_an_empty_field_counts() -> None:
    assert is_signed([TOKEN], signature(TOKEN, U, [("a", "")]), U, [("a", "")])
    assert not is_signed([TOKEN], signature(TOKEN, U, []), U, [("a", "")])


def test_a_body_needs_its_hash_in_the_address() -> None:
    url, _, body, given_ = VECTORS[5]
    assert not is_signed([TOKEN], given_, url, body=b"{}")
    assert not is_signed([TOKEN], given_, url, body=b"")
    assert not is_signed([TOKEN], VECTORS[0][3], U, body=body)
    assert not is_signed([TOKEN], signature(TOKEN, U), U, body=b"{}")
    twice = f"{U}&bodySHA256={EMPTY_HASH}&bodySHA256={HASH}"
    assert is_signed([TOKEN], signature(TOKEN, twice), twice, body=b"{}")
    assert not is_signed([TOKEN], signature(TOKEN, twice), twice, body=body)


def test_any_of_several_tokens_may_have_signed() -> None:
    assert is_signed(["new", TOKEN], VECTORS[0][3], U, P)
    assert is_signed([TOKEN, "old"], VECTORS[0][3], U, P)
    assert not is_signed(["new", "old"], VECTORS[0][3], U, P)
    assert not is_signed([], VECTORS[0][3], U, P)


def test_the_spellings_of_a_media_sockets_address() -> None:
    assert set(spellings("ws://voice.example.com:5000/media-stream")) == {
        f"{scheme}://voice.example.com{port}/media-stream{slash}"
        for scheme, ports in (
            ("wss", (":5000", "", ":443")),
            ("https", (":5000", "", ":443")),
            ("ws", (":5000", "", ":80")),
        )
        for port in ports
        for slash in ("", "/")
    }


def test_the_likeliest_spelling_is_tried_first() -> None:
    assert next(spellings(U)) == U
    assert next(spellings("wss://[2001:db8::7]:5000/x?y=1")) == "wss://[2001:db8::7]:5000/x?y=1"


hosts = st.sampled_from(["voice.example.com", "198.51.100.7", "[2001:db8::7]"])
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
paths = st.text("abc/-._~%20é ", max_size=12).map(lambda text: "/" + quote(text, safe="/%"))
queries = st.dictionaries(st.text(min_size=1, max_size=6), st.text(max_size=12), max_size=3).map(
    lambda query: f"?{urlencode(query)}" if query else ""
)
fields = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        st.text(st.characters(codec="utf-8"), max_size=20),
    ),
    max_size=8,
)


def as_form(params: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    form: dict[str, list[str]] = {}
    for name, value in params:
        form.setdefault(name, []).append(value)
    return form


class Form(dict[str, list[str]]):
    """What the official library takes for several values of a name."""

    def getlist(self, name: str) -> list[str]:
        return self[name]


@given(
    scheme=st.sampled_from(["https", "http"]),
    host=hosts,
    port=ports,
    path=paths,
    query=queries,
    params=fields,
    token=st.text("0123456789abcdef", min_size=32, max_size=32),
    change=st.sampled_from(["", "token", "value", "more", "less"]),
)
@effort(max_examples=100)
def test_twilios_own_library_agrees(
    scheme: str,
    host: str,
    port: str,
    path: str,
    query: str,
    params: list[tuple[str, str]],
    token: str,
    change: str,
) -> None:
    """A random request, signed by us, signed by the simulated phone, and by the library: the same;
    and what the library accepts we accept, changed or not."""
    url = f"{scheme}://{host}{port}{path}{query}"
    official = RequestValidator(token)
    made = official.compute_signature(url, Form(as_form(params)))
    assert signature(token, url, params) == made == sign(url, params, token)
    presented = list(params)
    match change:
        case "token":
            token = token[::-1] + "0"
        case "value" if presented:
            name, value = presented[0]
            presented[0] = (name, value + "x")
        case "more":
            presented.append(("one more", ""))
        case "less":
            presented = presented[1:]
    accepted = RequestValidator(token).validate(url, Form(as_form(presented)), made)
    assert is_signed([token], made, url, presented) == accepted


@given(
    host=hosts,
    port=ports,
    path=paths,
    body=st.binary(max_size=50),
    sent=st.binary(max_size=50),
)
@effort(max_examples=50)
def test_it_agrees_about_bodies_too(
    host: str, port: str, path: str, body: bytes, sent: bytes
) -> None:
    url = f"https://{host}{port}{path}?bodySHA256={hashlib.sha256(body).hexdigest()}"
    made = RequestValidator(TOKEN).compute_signature(url, {})
    assert is_signed([TOKEN], made, url, body=body)
    assert is_signed([TOKEN], made, url, body=sent) == (sent == body)


@given(url=st.text(max_size=80), header=st.text(max_size=40), params=fields)
@effort(max_examples=100)
def test_anything_gets_an_answer(url: str, header: str, params: list[tuple[str, str]]) -> None:
    assert not is_signed([TOKEN], header, url, params)
    assert not is_signed([TOKEN], header, url, params, body=b"x")


def test_a_large_request_that_is_not_signed_is_refused_by_few_sums() -> None:
    """Its fields are put in order once, and not for each spelling of the address."""
    assert len(list(spellings(U))) == 4
    assert len(list(spellings("https://voice.example.com:8443/incoming-call"))) == 6
    assert len(list(spellings("https://voice.example.com"))) == 8


# ---- SharedKeys ---------------------------------------------------------------------------------

SHARED = {"webhooks_sharedkey_a": "secret-a", "webhooks_sharedkey_b": "secret-b=="}


def settings_header(key: str, algorithm: str) -> str:
    return f"key={key},algorithm={algorithm}"


@given(
    key=st.sampled_from(sorted(SHARED)),
    algorithm=st.sampled_from(["HMAC_SHA1", "HMAC_SHA256"]),
    path=st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=8),
    fields=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=5),
    other=st.sampled_from(["secret-a", "secret-b==", "12345"]),
)
@effort(max_examples=200)
def test_twilios_own_library_agrees_about_shared_keys(
    key: str, algorithm: str, path: str, fields: dict[str, str], other: str
) -> None:
    url = f"https://voice.example.com/{path}?a=1"
    header = settings_header(key, algorithm)
    assert get_signature_algorithm(header) == algorithm
    given_ = RequestValidator(other).compute_signature(url, fields, algorithm)
    keys, chosen = signing(header, [TOKEN], SHARED)
    ours = is_signed(keys, given_, url, [*fields.items()], algorithm=chosen)
    theirs = RequestValidator(SHARED[key]).validate(url, fields, given_, algorithm)
    assert ours == theirs == (SHARED[key] == other)
    assert signature(other, url, [*fields.items()], algorithm) == given_


def test_without_the_header_the_auth_tokens_sign_and_no_shared_key_does() -> None:
    assert signing("", [TOKEN], SHARED) == ([TOKEN], "HMAC_SHA1")


def test_a_header_that_names_no_key_leaves_every_secret_open() -> None:
    assert signing(" algorithm = x , algorithm=hmac_sha256", [TOKEN], SHARED) == (
        [TOKEN, "secret-a", "secret-b=="],
        "HMAC_SHA256",
    )


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (settings_header("another", "HMAC_SHA256"), ("another", "TWILIO_SIGNING_KEYS")),
        (settings_header("webhooks_sharedkey_a", "HMAC_MD5\x1b"), ("HMAC_MD5", "HMAC_SHA256")),
    ],
)
def test_what_is_not_known_is_named_with_the_remedy(header: str, words: tuple[str, str]) -> None:
    with pytest.raises(UnknownSigning) as caught:
        signing(header, [TOKEN], SHARED)
    for word in ("X-Twilio-Webhooks-Signature-Settings", *words):
        assert word in str(caught.value)
    assert "\x1b" not in str(caught.value)


@given(st.text(max_size=60))
def test_no_header_raises_anything_else(header: str) -> None:
    try:
        keys, algorithm = signing(header, [TOKEN], SHARED)
    except UnknownSigning:
        return
    assert not is_signed(keys, "bm9uc2Vuc2U=", U, algorithm=algorithm)
