"""The addresses by which Twilio reaches this server. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

# What would end the host and begin something else, in an address that Twilio is told to open.
_NOT_A_HOST = re.compile(r"[\s/?#\\@]")


class PublicAddress(NamedTuple):
    """Two prefixes without a trailing slash: of webhooks (https) and of the media socket (wss)."""

    web: str
    socket: str


class BadHost(ValueError):
    """The request's Host header cannot be part of an address."""


def public_address(public_url: str, host: str) -> PublicAddress:
    """Return where Twilio finds us: `public_url` if set, else what it asked for, its Host header.

    Both are encrypted, because Twilio opens no other media sockets and a server on the internet
    has a TLS proxy or tunnel in front of it. Only on this machine itself, where no Twilio comes
    from and a simulated phone does, they are plain.

    Raises BadHost for a host that would change the address's meaning.
    """
    if public_url:
        scheme, rest = public_url.split("://", 1)
        return PublicAddress(public_url, ("wss" if scheme == "https" else "ws") + f"://{rest}")
    if not host or _NOT_A_HOST.search(host):
        raise BadHost("the Host header is no host; set server.public_url")
    secure = "" if is_loopback(host) else "s"
    return PublicAddress(f"http{secure}://{host}", f"ws{secure}://{host}")


def is_loopback(host: str) -> bool:
    """Tell whether a host, with or without port, is this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
