"""The secrets of the environment, and what a server cannot start without."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bridge.config.settings import ConfigError, Settings
from bridge.twilio.login import LoginOptions, api_url


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Secrets:
    """The secrets, which come from the environment only, and the region and edge of Twilio's at
    which its REST credentials are valid. An empty value means not set.

    A dataclass and not a Struct: a Struct shows its fields to rich's pretty printer, past `repr`.
    """

    deepgram_api_key: str = ""
    twilio_account_sid: str = ""
    twilio_auth_tokens: tuple[str, ...] = ()
    twilio_signing_keys: Mapping[str, str] = field(default_factory=dict)
    twilio_api_key: str = ""
    twilio_api_secret: str = ""
    twilio_region: str = ""
    twilio_edge: str = ""
    api_token: str = ""
    run_token: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Secrets:
        """Read the variables of these names: `DEEPGRAM_API_KEY`; `TWILIO_ACCOUNT_SID`,
        `TWILIO_AUTH_TOKEN` (a comma-separated list while tokens are being rotated),
        `TWILIO_SIGNING_KEYS` (`name=secret`, separated by commas), `TWILIO_API_KEY`,
        `TWILIO_API_SECRET`, `TWILIO_REGION`, `TWILIO_EDGE`; `BRIDGE_API_TOKEN`; and
        `BRIDGE_RUN_TOKEN`, which a server makes for itself and its worker processes.

        Raises `ConfigError`, which names the variable and never its value, for a character that
        no key or token has: the value goes into a header, where a line break is an injection.
        """

        def value(name: str) -> str:
            text = environ.get(name, "").strip()
            if not text.isascii() or not text.isprintable():
                raise ConfigError(
                    f"{name}: contains a control character or one outside ASCII; "
                    "set it again, copying only the value"
                )
            return text

        def place(name: str) -> str:
            # Part of the name of the host that is sent the secret.
            if (text := value(name)) and not re.fullmatch(r"[a-z0-9-]{1,40}", text):
                raise ConfigError(f"{name}: expected a name such as ie1 or dublin")
            return text

        key, secret = value("TWILIO_API_KEY"), value("TWILIO_API_SECRET")
        if bool(key) != bool(secret):
            missing = "TWILIO_API_SECRET" if key else "TWILIO_API_KEY"
            raise ConfigError(f"{missing}: not set; an API key and its secret go together")
        tokens = (token.strip() for token in value("TWILIO_AUTH_TOKEN").split(","))
        return cls(
            deepgram_api_key=value("DEEPGRAM_API_KEY"),
            twilio_account_sid=value("TWILIO_ACCOUNT_SID"),
            twilio_auth_tokens=tuple(token for token in tokens if token),
            twilio_api_key=key,
            twilio_api_secret=secret,
            twilio_region=place("TWILIO_REGION"),
            twilio_edge=place("TWILIO_EDGE"),
            twilio_signing_keys=_signing_keys(value("TWILIO_SIGNING_KEYS")),
            api_token=value("BRIDGE_API_TOKEN"),
            run_token=value("BRIDGE_RUN_TOKEN"),
        )

    def values(self) -> tuple[str, ...]:
        """Return every value that is set, for redaction."""
        single = (
            *(self.deepgram_api_key, self.twilio_account_sid),
            *(self.twilio_api_key, self.twilio_api_secret),
            *(self.api_token, self.run_token),
        )
        several = (*self.twilio_auth_tokens, *self.twilio_signing_keys.values())
        return tuple(value for value in (*single, *several) if value)

    def twilio_login(self) -> tuple[str, str, LoginOptions] | None:
        """Return what `TwilioRest` takes: the account's SID, the secret, and options for an API key
        or a region. None if something is not set. The API key comes before the auth token.
        """
        tokens = self.twilio_auth_tokens
        secret = self.twilio_api_secret or (tokens[0] if tokens else "")
        if not self.twilio_account_sid or not secret:
            return None
        options = LoginOptions()
        if self.twilio_api_key:
            options["api_key"] = self.twilio_api_key
        if self.twilio_region or self.twilio_edge:
            options["base_url"] = api_url(self.twilio_region, self.twilio_edge)
        return self.twilio_account_sid, secret, options

    @property
    def quoted(self) -> list[str]:
        """The variables whose values are in quotation marks, which no key or token has.

        `docker run --env-file` and some others keep them.
        """
        values = {
            "DEEPGRAM_API_KEY": [self.deepgram_api_key],
            "TWILIO_ACCOUNT_SID": [self.twilio_account_sid],
            "TWILIO_AUTH_TOKEN": self.twilio_auth_tokens,
            "TWILIO_SIGNING_KEYS": [*self.twilio_signing_keys, *self.twilio_signing_keys.values()],
            "TWILIO_API_KEY": [self.twilio_api_key],
            "TWILIO_API_SECRET": [self.twilio_api_secret],
            "BRIDGE_API_TOKEN": [self.api_token],
        }
        return [
            name
            for name, several in values.items()
            if any(value[:1] in _QUOTES or value[-1:] in _QUOTES for value in several if value)
        ]

    def __repr__(self) -> str:
        def state(value: str) -> str:
            return "set" if value else "not set"

        return (
            f"Secrets(deepgram_api_key: {state(self.deepgram_api_key)}, "
            f"twilio_account_sid: {state(self.twilio_account_sid)}, "
            f"twilio_auth_tokens: {len(self.twilio_auth_tokens) or 'not'} set, "
            f"twilio_api_key: {state(self.twilio_api_key)}, "
            f"twilio_signing_keys: {len(self.twilio_signing_keys) or 'not'} set, "
            f"api_token: {state(self.api_token)})"
        )


def quoted_warning(name: str) -> str:
    """Say what is wrong with a secret in quotation marks, and the remedy."""
    return (
        f"{name}: its value is in quotation marks, which belong to no key or token; write it "
        "without them (`docker run --env-file` keeps them)"
    )


_QUOTES = frozenset("\"'")


def _signing_keys(text: str) -> dict[str, str]:
    keys = {}
    for pair in filter(None, (one.strip() for one in text.split(","))):
        name, _, secret = (part.strip() for part in pair.partition("="))
        if not (name and secret):
            raise ConfigError(
                "TWILIO_SIGNING_KEYS: expected the name and the secret of each SharedKey; write "
                "NAME=SECRET, separated by commas"
            )
        keys[name] = secret
    return keys


def check_startup(settings: Settings, secrets: Secrets) -> None:
    """Raise `ConfigError` if there is no key for Deepgram's agent, so that every call would fail,
    or no token to check Twilio's signatures with, so that any request would pass.

    Any other agent (`bridge agent`, or a self-hosted one) may need no key; without one, none is
    sent.
    """
    agent = urlsplit(settings.deepgram.url).hostname or ""
    if f".{agent}".endswith(".deepgram.com") and not secrets.deepgram_api_key:
        raise ConfigError(
            f"DEEPGRAM_API_KEY: not set, and the agent at {agent} needs it; set it, or point "
            "deepgram.url at a local agent (`bridge agent`)"
        )
    signed_by = secrets.twilio_auth_tokens or secrets.twilio_signing_keys
    if settings.twilio.validate_signatures and not signed_by:
        raise ConfigError(
            "TWILIO_AUTH_TOKEN: not set, so Twilio's requests cannot be told from a stranger's; "
            "set it to the auth token in the Twilio console, or, to try the server without Twilio, "
            "set twilio.validate_signatures = false"
        )
