"""Where a request came from and which address it was sent to, through the proxies in between.

A proxy that terminates TLS or renames the host reports the original request in X-Forwarded-Proto
and X-Forwarded-Host, and the client in X-Forwarded-For. Any client can send these headers, too, so
they are believed only on connections from `server.trusted_proxies`, as follows.

Each proxy appends to these headers, so the last entry is from the nearest proxy, our peer. Entries
are believed from the right, as long as a trusted proxy wrote them:

- X-Forwarded-For: addresses of trusted proxies are skipped from the right; the first other address
  is the client. Everything before it was written by the client.
- X-Forwarded-Proto and -Host: counted from the right, the entry of the last trusted proxy that was
  skipped: the client spoke to that one. If the list is shorter, because a proxy replaced it instead
  of appending, its first entry.

Without a trusted peer, and where a trusted one sends nothing, the request's own scheme and Host
hold. Neither `Forwarded` (RFC 7239) nor X-Forwarded-Port is read: the common proxies send the port
with the host, and Twilio's signature is accepted without the port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from werkzeug.datastructures import Headers

from bridge.addresses import host_of, ip_address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Valid values of a believed header; others are ignored.
_SCHEMES: Final = ("http", "https", "ws", "wss")
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")

# The most entries that are read; no deployment has more proxies in a row.
MAX_HOPS: Final = 16


class RequestOrigin(NamedTuple):
    """The client's address, the scheme of its request ("http" or "https"), and the host that the
    request was sent to, with its port if it has one."""

    client: str
    scheme: str
    host: str


def request_origin(
    peer: str, scheme: str, headers: Headers, trusted: Sequence[str]
) -> RequestOrigin:
    """Return the origin of a request, given the address and the scheme of the connection it came
    by (ws and wss count as http and https), and its headers.

    `trusted` is `server.trusted_proxies`. A peer without an address (a socket file) is trusted if
    there is any entry: only a proxy on this machine can connect to a socket file.
    """
    own = RequestOrigin(peer, _web(scheme), headers.get("Host", ""))
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
    return RequestOrigin(
        client if ip_address(client) else own.client,
        _web(proto) if proto in _SCHEMES else own.scheme,
        host if _AUTHORITY.fullmatch(host) else own.host,
    )


def requested_url(
    public_url: str, origin: RequestOrigin, target: str, *, websocket: bool = False
) -> str:
    """Return the address that Twilio requested: `server.public_url` or the request's origin,
    followed by the request's target (path and query, raw)."""
    base = public_url or f"{origin.scheme}://{origin.host}"
    if websocket:
        base = "ws" + base.removeprefix("http")
    return base + target


def is_same_origin(header: str, origin: RequestOrigin, public_url: str) -> bool:
    """Return whether an Origin header names a page of this server, by host and port.

    The scheme is not compared: a proxy that terminates TLS need not report it.
    """
    scheme, _, host = header.partition("://")
    if scheme not in ("http", "https") or not host:
        return False
    ours = {origin.host.lower()}
    if public_url:
        ours.add(host_of(public_url).lower())
    return host.lower() in ours


def _web(scheme: str) -> str:
    return {"ws": "http", "wss": "https"}.get(scheme, scheme)


def _entries(headers: Headers, name: str) -> list[str]:
    # Several headers of one name are one list (RFC 9110, section 5.2).
    joined = ",".join(headers.getlist(name))
    return [entry.strip() for entry in joined.rsplit(",", MAX_HOPS)[-MAX_HOPS:] if entry.strip()]


def _written(entries: Sequence[str], hops: int) -> str:
    """Return the entry of the `hops`th proxy from the right, or else the first one."""
    return entries[-min(hops, len(entries))] if entries else ""


def _bare(entry: str) -> str:
    """Return an address without its port: "[2001:db8::1]:4711", "192.0.2.1:4711"."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _is_trusted(text: str, networks: Sequence[Network], *, unknown: bool = False) -> bool:
    if not text:
        return unknown
    address = ip_address(text)
    return address is not None and any(address in network for network in networks)


@lru_cache(maxsize=8)
def _networks(trusted: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(entry) for entry in trusted)
