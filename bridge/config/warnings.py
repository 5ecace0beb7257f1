"""Settings that are valid, and of which an operator should know: said at each start."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from bridge.addresses import is_loopback
from bridge.config.agent import ID
from bridge.config.settings import Settings
from bridge.config.words import Words

_ENGLISH = msgspec.structs.asdict(Words())


def warnings_for(settings: Settings) -> list[str]:
    """Return one line for each protection that is switched off, and for what would surprise."""
    lines = [line for name in ("", *settings.agents) for line in _of_agent(settings, name)]
    if not settings.twilio.validate_signatures:
        lines.append(
            "twilio.validate_signatures is false: anyone who finds this server can pose as Twilio, "
            "and talk to the agent at your expense"
        )
    if not settings.twilio.require_ticket:
        lines.append(
            "twilio.require_ticket is false: media sockets are accepted for calls that no webhook "
            "announced"
        )
    agent = urlsplit(settings.deepgram.url)
    if agent.scheme == "ws" and not is_loopback(agent.netloc):
        lines.append(
            f"deepgram.url is ws://: the key and all audio go unencrypted to {agent.hostname}; "
            "write wss://"
        )
    if any(ipaddress.ip_network(proxy).prefixlen == 0 for proxy in settings.server.trusted_proxies):
        lines.append(
            "server.trusted_proxies trusts every address: any client can then choose its "
            "X-Forwarded-* headers"
        )
    return lines


def _of_agent(settings: Settings, name: str) -> Iterator[str]:
    prefix, own = f"agents.{name}." if name else "", settings.for_agent(name)
    if ID in settings.agents.get(name, settings.agent):
        yield (
            f"{prefix or 'agent.'}id: bridge adds no functions to a stored configuration; the "
            "agent can call end_call, transfer_call and your functions only if it describes them"
        )
    words = own.words
    if (speaks := words.voices_language) not in ("", words.language or "en-US"):
        yield (
            f"{prefix}words.voice: {words.voice} speaks {speaks}, not words.language; Twilio may "
            "refuse to say anything"
        )
    spoken = (key for key in _ENGLISH if key not in ("language", "voice"))
    english = [key for key in spoken if getattr(words, key) == _ENGLISH[key]]
    if english and not words.language.startswith(("en", "EN")) and words.language:
        yield (
            f"{prefix}words.language: {words.language}, while these are still English: "
            f"{', '.join(english)}; copy them from bridge/config/languages"
        )
