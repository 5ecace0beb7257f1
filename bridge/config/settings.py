"""The settings of `config.toml` as structs.

The structs below are the whole list of keys, with their types, ranges and defaults. `toml` reads
them from a text, with an error for each mistake; `file` reads the file, again whenever it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from bridge.config.agent import agent_from, default_agent, merged
from bridge.config.words import Words
from bridge.text import printable
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
