"""Checks `X-Twilio-Signature`, the proof that a request comes from Twilio.

Twilio signs the URL that it requests, unchanged, followed by all of the form's fields, sorted,
empty ones included. A JSON body is not signed itself, but its hash is, as `bodySHA256` in the
query. The key is the account's auth token, and the hash SHA-1; or, where a Webhook Rule says so, a
SharedKey and the algorithm that the header `X-Twilio-Webhooks-Signature-Settings` names.

https://www.twilio.com/docs/usage/webhooks/webhooks-security
https://www.twilio.com/docs/usage/webhooks/webhook-shared-keys

Twilio's documentation leaves open which of several spellings of one URL is signed (with the default
port or without, `wss` or `https` for a media socket, a bare host with a slash or without), and a
server behind a proxy does not see all of it. So all spellings of the requested URL are tried. Each
needs the token, so this weakens nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

from bridge.text import printable

Params = Sequence[tuple[str, str]]

HMAC_SHA1: Final = "HMAC_SHA1"
_HASHES: Final = {HMAC_SHA1: hashlib.sha1, "HMAC_SHA256": hashlib.sha256}
SETTINGS_HEADER: Final = "X-Twilio-Webhooks-Signature-Settings"

# Half a surrogate pair cannot be encoded otherwise, and must not raise.
_ANY: Final = "surrogatepass"

_ADDRESS: Final = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<user>[^/?#]*@)?(?P<host>\[[^]/?#]*\]|[^:/?#]*)"
    r"(?P<port>:[0-9]*)?(?P<path>[^?]*)(?P<query>.*)",
    re.DOTALL,
)
_DEFAULT_PORTS: Final = {"https": ":443", "wss": ":443", "http": ":80", "ws": ":80"}
_SCHEMES: Final = {
    # TLS may end at a proxy that does not say so.
    "https": ("https", "http"),
    "http": ("http", "https"),
    # Which scheme is signed for a media socket is not documented; wss has been observed.
    "wss": ("wss", "https"),
    "ws": ("wss", "https", "ws"),
}


class UnknownSigning(Exception):
    """The request is signed with a key or an algorithm that is not known here. The message is one
    line with the remedy."""


def signing(
    header: str, tokens: Sequence[str], shared_keys: Mapping[str, str]
) -> tuple[Sequence[str], str]:
    """Return the secrets that may have signed a request, and the algorithm.

    `header` is the request's SETTINGS_HEADER, "" without one: `key=NAME,algorithm=HMAC_SHA256`.
    `tokens` are the account's auth tokens, `shared_keys` the secrets of its SharedKeys by name.
    Raises UnknownSigning.
    """
    if not header:
        return tokens, HMAC_SHA1
    settings = dict(part.strip().split("=", 1) for part in header.split(",") if "=" in part)
    algorithm, name = settings.get("algorithm", HMAC_SHA1).upper(), settings.get("key", "")
    if algorithm not in _HASHES:
        raise UnknownSigning(
            f"the header {SETTINGS_HEADER} names the algorithm {printable(algorithm[:40])}; set "
            "one of HMAC_SHA1 and HMAC_SHA256 in Twilio's Webhook Setting"
        )
    if not name:
        return [*tokens, *shared_keys.values()], algorithm
    if name not in shared_keys:
        raise UnknownSigning(
            f"the header {SETTINGS_HEADER} names the SharedKey {printable(name[:80])}; add "
            "NAME=SECRET with that name to TWILIO_SIGNING_KEYS"
        )
    return [shared_keys[name]], algorithm


def signature(token: str, url: str, params: Params = (), algorithm: str = HMAC_SHA1) -> str:
    """Compute the `X-Twilio-Signature` that Twilio sends for this URL and these form fields.

    Each distinct pair of name and value counts once. A GET, a websocket and a JSON body have no
    fields.
    """
    return _signature(token, url, _fields(params), algorithm).decode("ascii")


def is_signed(
    tokens: Iterable[str],
    given: str,
    url: str,
    params: Params = (),
    *,
    body: bytes | None = None,
    algorithm: str = HMAC_SHA1,
) -> bool:
    """Return whether `given`, the header, is the signature of this request by any of `tokens`.

    `params` are the form's fields, percent-decoded. `body` is the raw body of a request that is
    not a form, None for one without a body; its hash must be in the signed URL.
    """
    if not given:
        return False
    if body is not None and not _is_hash_of(body, url):
        return False
    # As bytes, because compare_digest refuses text outside ASCII.
    header = given.encode(errors="replace")
    fields = _fields(params)
    return any(
        hmac.compare_digest(_signature(token, spelling, fields, algorithm), header)
        for spelling in spellings(url)
        for token in tokens
    )


def spellings(url: str) -> Iterator[str]:
    """Yield every spelling of a URL that Twilio may have signed, the likeliest first.

    {the schemes it may have had} × {its own port, none, the default one} × {its path, and for a
    socket or a bare host also with a slash at its end or without} × {apostrophes in its query as
    they are, encoded, not encoded}.
    """
    address = _ADDRESS.fullmatch(url)
    if address is None or address["scheme"] not in _SCHEMES:
        yield url
        return
    user, host, port = address["user"] or "", address["host"], address["port"] or ""
    path, query = address["path"], address["query"]
    slash_is_open = address["scheme"] in ("ws", "wss") or path in ("", "/")
    other = path + "/" if path[-1:] != "/" else path.removesuffix("/")
    paths = _distinct(path, other if slash_is_open else path)
    # Some versions of Twilio's own libraries encode apostrophes and some do not.
    queries = _distinct(query, query.replace("'", "%27"), query.replace("%27", "'"))
    for its_query in queries:
        for its_path in paths:
            for scheme in _SCHEMES[address["scheme"]]:
                for its_port in _distinct(port, "", _DEFAULT_PORTS[scheme]):
                    yield f"{scheme}://{user}{host}{its_port}{its_path}{its_query}"


def _fields(params: Params) -> bytes:
    return "".join(name + value for name, value in sorted(set(params))).encode(errors=_ANY)


def _signature(token: str, url: str, fields: bytes, algorithm: str) -> bytes:
    signed = url.encode(errors=_ANY) + fields
    return base64.b64encode(hmac.new(token.encode(), signed, _HASHES[algorithm]).digest())


def _is_hash_of(body: bytes, url: str) -> bool:
    hashes = parse_qs(url.partition("?")[2]).get("bodySHA256", [""])
    digest = hashlib.sha256(body).hexdigest().encode()
    return hmac.compare_digest(digest, hashes[0].encode(errors="replace"))


def _distinct(*values: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
