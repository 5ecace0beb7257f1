"""Addresses: of this server as Twilio reaches it, and whether a host is this machine."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Characters that would end the host and begin another part of an address.
_NOT_A_HOST = re.compile(r"[\s/?#\\@]")


class PublicAddress(NamedTuple):
    """Two prefixes without a trailing slash: of webhooks (https) and of the media socket (wss)."""

    web: str
    socket: str

    @property
    def host(self) -> str:
        """The host, with its port if it has one."""
        return host_of(self.web)


class BadHost(ValueError):
    """The request's Host header cannot be part of an address."""


def public_address(public_url: str, host: str) -> PublicAddress:
    """Return the address at which Twilio reaches this server: `public_url` if set, else the
    request's host.

    Both prefixes are encrypted, because Twilio opens only wss:// media sockets, and a server on the
    internet has a TLS proxy or tunnel in front of it. They are plain for a loopback host, which
    only a simulated phone can use.

    Raises BadHost for a host that would change the address's meaning.
    """
    if public_url:
        scheme, rest = public_url.split("://", 1)
        return PublicAddress(public_url, ("wss" if scheme == "https" else "ws") + f"://{rest}")
    if not host or _NOT_A_HOST.search(host):
        raise BadHost("the Host header is no host; set server.public_url")
    secure = "" if is_loopback(host) else "s"
    return PublicAddress(f"http{secure}://{host}", f"ws{secure}://{host}")


def host_of(url: str) -> str:
    """Return the host of `server.public_url`, with its port if it has one; "" for ""."""
    return url.partition("://")[2].partition("/")[0]


def host_here(bound: str) -> str:
    """Return the host, with its port, at which this machine reaches a server bound to `bound`."""
    name, colon, port = bound.rpartition(":")
    every = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104
    return f"{every.get(name, name)}{colon}{port}"


def is_loopback(host: str) -> bool:
    """Return whether a host, with or without port, is this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or is_loopback_ip(name)


def is_loopback_ip(text: str) -> bool:
    """Return whether a bare IP address is this machine's; False for what is not an address."""
    address = ip_address(text)
    return address is not None and address.is_loopback


def ip_address(text: str) -> IPAddress | None:
    """Return an IP address, as IPv4 if it is mapped into IPv6; None for what is not an address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
