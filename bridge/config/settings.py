"""The settings of `config.toml` as structs, and the secrets of the environment.

The structs below are the whole list of keys, with their types, ranges and defaults. `toml` reads
them from a text, with an error for each mistake; `file` reads the file, again whenever it changes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from bridge.config.agent import agent_from, default_agent, merged
from bridge.config.words import Words
from bridge.text import printable
from bridge.twilio.login import LoginOptions, api_url
from bridge.twilio.numbers import line_of

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
AtLeastOne = Annotated[int, Meta(ge=1, le=1_000_000)]
Rate = Annotated[float, Meta(ge=0, le=1_000_000)]


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line that says where, what and how to
    fix it; it holds no secret and no control character.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ServerSettings(Struct, frozen=True, kw_only=True):
    """`[server]`: its addresses, and how many calls it takes."""

    bind: str = "0.0.0.0:5000"  # Twilio, or the proxy in front, must reach it
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    workers: AtLeastOne = 1
    max_calls: AtLeastOne = 100
    drain_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 60
    overflow_url: str = ""


class TwilioSettings(Struct, frozen=True, kw_only=True):
    """`[twilio]`: how requests prove that they come from Twilio."""

    validate_signatures: bool = True
    require_ticket: bool = True


class DeepgramSettings(Struct, frozen=True, kw_only=True):
    """`[deepgram]`: the agent's address, and how long to try to reach it (seconds)."""

    url: str = "wss://agent.deepgram.com/v1/agent/converse"
    connect_timeout: Seconds = 5
    connect_budget: Seconds = 8
    max_reconnects: Count = 2
    prewarm: bool = False
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


class CallSettings(Struct, frozen=True, kw_only=True):
    """`[call]`: the course of one call."""

    frame_ms: Annotated[
        int,
        Meta(ge=20, le=250, extra={"remedy": "Deepgram's guidance is 20 to 250 ms per message"}),
    ] = 20
    max_minutes: Annotated[float, Meta(gt=0, le=1440)] = 60
    idle_seconds: Seconds = 30
    stall_seconds: Seconds = 10
    start_timeout: Seconds = 5
    teardown_seconds: Seconds = 2
    interruptible_greeting: bool = True
    fallback_number: str = ""
    after_url: str = ""
    context_url: str = ""


class LimitSettings(Struct, frozen=True, kw_only=True):
    """`[limits]`: limits on calls, 0 for no limit."""

    calls_per_number: Count = 0
    calls_per_minute: Count = 0
    account_calls: Count = 0


class FunctionSettings(Struct, frozen=True, kw_only=True):
    """`[functions]`: the functions that the agent may call."""

    module: str = ""
    end_call: bool = True
    filler_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 1.5
    transfer_to: dict[str, str] = msgspec.field(default_factory=dict)
    transfer_caller_id: str = ""
    after_failed_transfer: Literal["agent", "hang_up"] = "agent"


class RecordSettings(Struct, frozen=True, kw_only=True):
    """`[records]`: what is stored of a call, where, and for how many days."""

    url: str = "sqlite:///calls.db"
    transcripts: bool = True
    retention_days: AtLeastOne = 30
    recordings: str = ""


class CostSettings(Struct, frozen=True, kw_only=True):
    """`[costs]`: prices per minute, in the operator's currency."""

    agent_per_minute: Rate = 0.0
    phone_per_minute: Rate = 0.0


class LoggingSettings(Struct, frozen=True, kw_only=True):
    """`[logging]`: the log on standard error."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    mask_numbers: bool = True


class Settings(Struct, frozen=True, kw_only=True):
    """All of `config.toml`. `Settings()` is the meaning of an empty file.

    `agent` goes to Deepgram unchanged, or is only the id of a configuration stored there. Each of
    `agents` has `numbers` and the keys in which it differs, from `agent` and in the tables of
    `PER_AGENT`. All calls share these objects: copy before changing them.
    """

    server: ServerSettings = ServerSettings()
    twilio: TwilioSettings = TwilioSettings()
    deepgram: DeepgramSettings = DeepgramSettings()
    call: CallSettings = CallSettings()
    words: Words = Words()
    limits: LimitSettings = LimitSettings()
    functions: FunctionSettings = FunctionSettings()
    records: RecordSettings = RecordSettings()
    costs: CostSettings = CostSettings()
    logging: LoggingSettings = LoggingSettings()
    agent: dict[str, Any] = msgspec.field(default_factory=default_agent)
    agents: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)

    def agent_for(self, called: str, wanted: str | None = None) -> str:
        """Return the name of the agent that answers the number or address `called`: that of
        `[agents.NAME]`, or "" for `[agent]`, which answers everything else.

        `wanted` names the agent instead: on an outbound call the dialled number does not decide
        which agent speaks.
        """
        if wanted is not None:
            return wanted if wanted in self.agents else ""
        line = line_of(called)
        # A number's WhatsApp calls have its agent, unless they have one of their own.
        for wanted_line in (line, line.removeprefix("whatsapp:")):
            for name, table in self.agents.items():
                if wanted_line in table.get("numbers", ()):
                    return name
        return ""

    def for_agent(self, name: str) -> Settings:
        """Return the settings of a call that the agent `name` answers: its own tables merged over
        the common ones, and `agent` complete. "" is the default agent.
        """
        table = {key: value for key, value in self.agents.get(name, {}).items() if key != "numbers"}
        own = {key: table.pop(key) for key in PER_AGENT if key in table}
        if "settings" in (deepgram := own.get("deepgram", {})):
            own["deepgram"] = {"settings": merged(self.deepgram.settings, deepgram["settings"])}
        return msgspec.structs.replace(
            self,
            agent=agent_from(self.agent, table),
            **{key: msgspec.structs.replace(getattr(self, key), **own[key]) for key in own},
        )


# The tables that `[agents.NAME]` may have, and the keys in them that may differ. What is missing
# applies before the agent of a call is known, or to all calls together.
PER_AGENT: Final[Mapping[str, frozenset[str]]] = {
    "words": frozenset(Words.__struct_fields__),
    "call": frozenset(CallSettings.__struct_fields__) - {"start_timeout", "teardown_seconds"},
    "functions": frozenset(FunctionSettings.__struct_fields__),
    "limits": frozenset({"calls_per_number"}),
    "deepgram": frozenset({"settings"}),
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Secrets:
    """The secrets, which come from the environment only, with what says where the REST ones hold.
    An empty value means not set.

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
