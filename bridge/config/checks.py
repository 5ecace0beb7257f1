"""Checks of values in `config.toml` that their types cannot express.

Each takes a value and returns it, perhaps in another form. It raises ValueError, which says what is
expected and how to write it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from bridge.addresses import is_loopback
from bridge.config.agent import BESIDE_AGENT
from bridge.config.settings import DeepgramSettings
from bridge.config.words import DIGITS, MAY_BE_EMPTY, Words
from bridge.text import closest
from bridge.twilio.numbers import EXPECTED_NUMBER, HOW_TO_WRITE_NUMBERS, is_number
from bridge.twilio.targets import read_target


def got(value: Any) -> str:
    """Return a value as an error shows it."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"' if len(value) <= 40 else f'"{value[:40]}…"'
        case int() if value.bit_length() > 64:
            return "a number with too many digits"
        case int() | float():
            return str(value)
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return "a date or time"


def _e164(number: str) -> str:
    if not is_number(number):
        raise ValueError(f"{EXPECTED_NUMBER}, got {got(number)}; {HOW_TO_WRITE_NUMBERS}")
    return number


def _optional_e164(number: str) -> str:
    return number and _e164(number)


def _optional_target(target: str) -> str:
    if target:
        read_target(target)
    return target


def _transfer_targets(targets: dict[str, str]) -> dict[str, str]:
    for name, target in targets.items():
        try:
            read_target(target)
        except ValueError as error:
            raise ValueError(f"{name[:80]}: {error}") from None
    return targets


def _language(tag: str) -> str:
    if tag and not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*", tag):
        raise ValueError(f"expected a language of <Say>, got {got(tag)}; write one such as en-US")
    return tag


def _voice(name: str) -> str:
    if name and not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"expected a voice of <Say>, got {got(name)}; write Polly.Lea-Neural")
    return name


def _words(words: str) -> str:
    if not words.strip():
        raise ValueError("expected words to say, got none; leave the key out for the default")
    return words


def _keypad(words: str) -> str:
    if DIGITS not in words:
        raise ValueError(f"expected {DIGITS} in it, where the pressed keys go; add it")
    return words


def checked_bind(bind: str) -> str:
    """Return `bind` itself, an address and a port. Raises ValueError, with the remedy."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", bind)
    if not match or int(match[2]) > 65_535:
        raise ValueError(
            f"expected an address and a port from 0 to 65535, got {got(bind)}; write "
            '"0.0.0.0:5000" or "[::]:5000"'
        )
    if bind.startswith("["):
        try:
            ipaddress.IPv6Address(match[1][1:-1])
        except ValueError:
            raise ValueError(f"{got(bind)} holds no IPv6 address; write [::]:5000") from None
    return bind


def _proxies(proxies: tuple[str, ...]) -> tuple[str, ...]:
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise ValueError(
                f"expected addresses or networks, got {got(proxy)}; write 10.0.0.7, or a network "
                "with its host bits zero such as 10.0.0.0/8"
            ) from None
    return proxies


def _agent_url(url: str) -> str:
    parts = _url(url, ("ws", "wss"), DeepgramSettings().url)
    if parts.fragment:
        raise ValueError("a websocket's address has no #fragment; leave it out")
    return url


def _public_url(url: str) -> str:
    if not url:
        return url
    example = "https://voice.example.com"
    parts = _url(url, ("https", "http"), example)
    if parts.scheme == "http" and not is_loopback(parts.netloc):
        raise ValueError(
            "expected https://, since Twilio opens media sockets by wss:// only; put a proxy with "
            f"TLS in front and write {example}"
        )
    if parts.query or parts.fragment or url[-1] in "?#":
        raise ValueError(f"expected no ?query and no #fragment; write {example}")
    return url.rstrip("/")


def _session_settings(settings: dict[str, Any]) -> dict[str, Any]:
    for key, value in settings.items():
        if key in ("type", "audio", "agent"):
            raise ValueError(f"{key} is bridge's own; leave it out")
        # What is sent under a misspelt name may be ignored, and the caller's audio be kept.
        if key not in BESIDE_AGENT and (meant := closest(key, BESIDE_AGENT)):
            raise ValueError(f"unknown key {key[:80]}; did you mean {meant}?")
        if key in BESIDE_AGENT and not isinstance(value, BESIDE_AGENT[key]):
            raise ValueError(f"{key}: expected {_NAMES[BESIDE_AGENT[key]]}, got {got(value)}")
    return settings


_NAMES: dict[type, str] = {bool: "true or false", list: "a list of texts", dict: "a table"}


def _optional_url(url: str) -> str:
    if url:
        _url(url, ("https", "http"), "https://voice.example.com/calls")
    return url


def _url(url: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    # No message shows the address: it may hold a password or a key.
    one_of = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        if not re.fullmatch(r"[!-~]+", url):
            raise ValueError
        parts = urlsplit(url)
        usable = parts.scheme in schemes and parts.hostname and parts.port != 0
        # A name that DNS refuses (a label of more than 63 characters) would fail in each call.
        (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"expected an address that begins {one_of}; write one such as {example}")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password; leave it out")
    return parts


CHECKS: dict[str, Callable[[Any], Any]] = {
    "server.bind": checked_bind,
    "server.public_url": _public_url,
    "server.trusted_proxies": _proxies,
    "server.overflow_url": _optional_url,
    "deepgram.url": _agent_url,
    "call.fallback_number": _optional_target,
    "call.after_url": _optional_url,
    "call.context_url": _optional_url,
    "deepgram.settings": _session_settings,
    "functions.transfer_to": _transfer_targets,
    "functions.transfer_caller_id": _optional_e164,
    **{
        f"words.{field.name}": _words
        for field in msgspec.structs.fields(Words)
        if field.name not in MAY_BE_EMPTY
    },
    "words.language": _language,
    "words.voice": _voice,
    "words.keypad": _keypad,
}
