"""The address by which a client asked for something, through the proxies in between. Pure.

A proxy that ends TLS or renames the host says what it was asked for in X-Forwarded-Proto and
X-Forwarded-Host, and whom it was asked by in X-Forwarded-For; so can anybody. They are believed
when the connection comes from one of `server.trusted_proxies`, and then as follows.

Each proxy that adds to these headers appends to a list, so the last entry is from the nearest one,
our peer. Entries are believed from the right, as long as whoever wrote them is trusted:

- X-Forwarded-For: addresses are passed over from the right while they are trusted proxies'; the
  first that is not is the client. What stands before it is the client's own invention.
- X-Forwarded-Proto and -Host: of as many entries from the right as trusted proxies were passed
  over, the leftmost: it is from the proxy that the client spoke to. Where a list is shorter,
  because a proxy replaces instead of appending, its first entry.

Without a trusted peer, and for what a trusted one does not say, the request's own scheme and Host
hold. Neither `Forwarded` (RFC 7239) nor X-Forwarded-Port is read: the common proxies send the port
with the host, and Twilio's signature is accepted without it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from werkzeug.datastructures import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What a believed header may hold; anything else is as if it were not there.
_SCHEMES: Final = ("http", "https", "ws", "wss")
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")

# Proxies in a row that are looked at; a longer list is somebody's invention.
MAX_HOPS: Final = 16


class Asked(NamedTuple):
    """Where a request came from and what it asked for: the client's address, "http" or "https",
    and the host, with its port if it has one."""

    client: str
    scheme: str
    host: str


def asked(peer: str, scheme: str, headers: Headers, trusted: Sequence[str]) -> Asked:
    """Return what the client asked for, given the address our connection came from, the scheme of
    that connection (ws and wss count as http and https), and the headers.

    `trusted` is `server.trusted_proxies`. A peer without an address (a socket file) is trusted
    when it has any entry: only this machine's proxies can connect to one.
    """
    own = Asked(peer, _web(scheme), headers.get("Host", ""))
    networks = _networks(tuple(trusted))
    if not networks or not _is_trusted(peer, networks, unknown=True):
        return own
    hops, client = 1, peer
    for address in reversed(_entries(headers, "X-Forwarded-For")):
        client = _bare(address)
        if not _is_trusted(client, networks):
            break
        hops += 1
    proto = _written(_entries(headers, "X-Forwarded-Proto"), hops).lower()
    host = _written(_entries(headers, "X-Forwarded-Host"), hops)
    return Asked(
        client if _address(client) else own.client,
        _web(proto) if proto in _SCHEMES else own.scheme,
        host if _AUTHORITY.fullmatch(host) else own.host,
    )


def requested_url(public_url: str, asked: Asked, target: str, *, websocket: bool = False) -> str:
    """Return the address that Twilio requested: `server.public_url` or what was asked for, and
    behind it the request's target (path and query, raw)."""
    base = public_url or f"{asked.scheme}://{asked.host}"
    if websocket:
        base = "ws" + base.removeprefix("http")
    return base + target


def is_same_origin(origin: str, asked: Asked, public_url: str) -> bool:
    """Tell whether an Origin header is a page of this server's own.

    By host and port. The scheme does not count: a proxy that ends TLS need not say so.
    """
    scheme, _, host = origin.partition("://")
    if scheme not in ("http", "https") or not host:
        return False
    ours = {asked.host.lower()}
    if public_url:
        ours.add(public_url.partition("://")[2].partition("/")[0].lower())
    return host.lower() in ours


def _web(scheme: str) -> str:
    return {"ws": "http", "wss": "https"}.get(scheme, scheme)


def _entries(headers: Headers, name: str) -> list[str]:
    # Several headers of one name are one list (RFC 9110, section 5.2).
    joined = ",".join(headers.getlist(name))
    return [entry.strip() for entry in joined.rsplit(",", MAX_HOPS)[-MAX_HOPS:] if entry.strip()]


def _written(entries: Sequence[str], hops: int) -> str:
    """The entry of the farthest of so many trusted proxies."""
    return entries[-min(hops, len(entries))] if entries else ""


def _bare(entry: str) -> str:
    """An address without a port: "[2001:db8::1]:4711", "192.0.2.1:4711"."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_trusted(text: str, networks: Sequence[Network], *, unknown: bool = False) -> bool:
    if not text:
        return unknown
    address = _address(text)
    return address is not None and any(address in network for network in networks)


@lru_cache(maxsize=8)
def _networks(trusted: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(entry) for entry in trusted)
