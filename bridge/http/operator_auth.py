"""Who may use the control API, the console and the softphone. Pure: headers and a peer address go
in, a refusal or nothing comes out.

With a token (`BRIDGE_API_TOKEN`), whoever has it. Without one, only clients on this machine, and
being one is judged strictly, since three kinds of strangers look local:

- whatever comes through a proxy or tunnel that runs here (`bridge serve --tunnel`): its peer
  address is loopback, but it adds forwarding headers or keeps the public Host;
- a web page in this machine's browser: it sends an Origin, or says Sec-Fetch-Site;
- a web page whose name was made to resolve to 127.0.0.1 (DNS rebinding): its Host is that name.

X-Forwarded-For is never believed here, only ever a reason to refuse.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers

from bridge.addresses import is_loopback

# Any of them tells that somebody in between took the request from somebody else.
FORWARDING_HEADERS: Final = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Real-IP",
    "CF-Connecting-IP",
    "CF-Ray",
    "True-Client-IP",
)

# A person mistypes a token a few times; a program that guesses gets this many answers a minute
# from one address. Not even one: what the limit saves is the log, the token saves itself.
FAILURES_PER_MINUTE: Final = 10
_MINUTE: Final = 60.0
_PEERS: Final = 1000


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: HTTP's status, and one line that says what would help. `is_news` says whether it
    is worth a line in the log; false for the many of one who keeps trying."""

    status: int
    message: str
    is_news: bool = True


class Seen(NamedTuple):
    """A request through the proxies that are trusted: the client's address, and the names by which
    this server is reached, besides the Host header; the first is the one that was asked for."""

    client: str
    hosts: tuple[str, ...]


class Gate:
    """Lets requests in or says why not. One per application, for what it remembers of failures.

    `clock` gives seconds, always forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def refusal(
        self, token: str, headers: Headers, peer: str, seen: Seen | None = None
    ) -> Refusal | None:
        """None for a request that may pass. `peer` is the address that the connection came from,
        `token` is BRIDGE_API_TOKEN or "". `seen` is what trusted proxies say besides: it widens
        which pages are ours and tells one guesser from another, and makes nobody local."""
        if _is_cross_site(headers, seen.hosts if seen is not None else ()):
            return Refusal(403, "a page of another site may not do this")
        if not token:
            return None if _is_local(headers, peer) else _NOT_LOCAL
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        # Compared as bytes: compare_digest takes no text outside ASCII.
        same = hmac.compare_digest(given.strip().encode(errors="replace"), token.encode())
        if scheme.lower() == "bearer" and same:
            return None
        count = self._count_failure(seen.client if seen is not None else peer)
        if count > FAILURES_PER_MINUTE:
            return Refusal(
                429, "too many requests without the right token; wait a minute", is_news=False
            )
        return Refusal(401, "send the header Authorization: Bearer, and BRIDGE_API_TOKEN's value")

    def _count_failure(self, peer: str) -> int:
        now = self._clock()
        began, count = self._failures.pop(peer, (now, 0))
        if now - began >= _MINUTE:
            began, count = now, 0
        self._failures[peer] = (began, count + 1)
        while len(self._failures) > _PEERS:
            self._failures.popitem(last=False)
        return count + 1


def may_see_pages(token: str, headers: Headers, peer: str) -> bool:
    """Whether the console's and the softphone's pages may be served; the arguments are `refusal`'s.

    They hold no data, so with a token anybody may have them, and whoever follows a link from
    another site as well; what they show is asked for separately.
    """
    return bool(token) or _is_local(headers, peer)


_NOT_LOCAL: Final = Refusal(
    403, "without BRIDGE_API_TOKEN only clients on this machine are let in; set it to use this"
)


def _is_cross_site(headers: Headers, hosts: Sequence[str]) -> bool:
    if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("Origin")
    if origin is None:
        return False
    try:
        page = urlsplit(origin).netloc.lower()
    except ValueError:
        return True
    return page not in {host.lower() for host in (headers.get("Host", ""), *hosts)}


def _is_local(headers: Headers, peer: str) -> bool:
    if any(name in headers for name in FORWARDING_HEADERS):
        return False
    if not is_loopback(headers.get("Host", "")):
        return False
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False  # no address at all: a socket file, behind which there is a proxy
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
