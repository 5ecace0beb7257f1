"""What an operator can set: `config.toml` as typed settings, and the secrets of the environment.

Pure: text comes in, settings or one clear `ConfigError` go out. Reading the file, and reading it
again when it changes, is `config_file`'s.

The structs below are the whole list of keys, with their types, ranges and defaults; the checks
that a type cannot express are the table `_CHECKS`. Every value is taken key by key, so that an
error can name the key, what it expects and what it got in the operator's own terms. `[agent]` and
`[agents.NAME]` are passed through: Deepgram's models and options grow faster than any list here.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta, Struct

from bridge.entrance.ticket import ticket_keys

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
AtLeastOne = Annotated[int, Meta(ge=1, le=1_000_000)]
Rate = Annotated[float, Meta(ge=0, le=1_000_000)]


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line that says where, what and how
    to mend it; it never holds a secret, nor a control character.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ServerSettings(Struct, frozen=True, kw_only=True):
    """`[server]`: the address, and how many calls it takes."""

    bind: str = "0.0.0.0:5000"  # Twilio, or the proxy in front, must reach it
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    workers: AtLeastOne = 1
    max_calls: AtLeastOne = 100
    drain_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 60
    overflow_url: str = ""


class TwilioSettings(Struct, frozen=True, kw_only=True):
    """`[twilio]`: who is believed to be Twilio."""

    validate_signatures: bool = True
    require_ticket: bool = True


class DeepgramSettings(Struct, frozen=True, kw_only=True):
    """`[deepgram]`: where the agent is, and how hard to try to reach it (seconds)."""

    url: str = "wss://agent.deepgram.com/v1/agent/converse"
    connect_timeout: Seconds = 5
    connect_budget: Seconds = 8
    max_reconnects: Count = 2
    prewarm: bool = False


class CallSettings(Struct, frozen=True, kw_only=True):
    """`[call]`: the course of one call."""

    frame_ms: Annotated[
        int,
        Meta(ge=20, le=250, extra={"remedy": "Deepgram's guidance is 20 to 250 ms per message"}),
    ] = 60
    max_minutes: Annotated[float, Meta(gt=0, le=1440)] = 60
    idle_seconds: Seconds = 30
    stall_seconds: Seconds = 10
    start_timeout: Seconds = 5
    teardown_seconds: Seconds = 2
    interruptible_greeting: bool = True
    apology: str = "I'm sorry, something went wrong. Please call again."
    fallback_number: str = ""
    context_url: str = ""


class LimitSettings(Struct, frozen=True, kw_only=True):
    """`[limits]`: how many calls, 0 for no limit."""

    calls_per_number: Count = 0
    calls_per_minute: Count = 0
    account_calls: Count = 0


class FunctionSettings(Struct, frozen=True, kw_only=True):
    """`[functions]`: what the agent may do."""

    module: str = ""
    end_call: bool = True
    transfer_to: dict[str, str] = msgspec.field(default_factory=dict)


class RecordSettings(Struct, frozen=True, kw_only=True):
    """`[records]`: what is kept of a call, where, and for how many days."""

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


def default_agent() -> dict[str, Any]:
    """The agent of a file without `[agent]`. A file that has the table replaces it whole, since
    half of one agent and half of another (a voice's model under another provider) is an error.
    """
    return {
        "greeting": "Hello! How can I help you today?",
        "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
        "think": {
            "prompt": "You are a friendly assistant on the phone. Answer in one or two short"
            " sentences.",
            "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
        },
        "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
    }


class Settings(Struct, frozen=True, kw_only=True):
    """The whole of `config.toml`. `Settings()` is what an empty file means.

    `agent` goes to Deepgram as it is; each of `agents` has `numbers` (E.164), and the rest of it
    is what differs from `agent`. Both are the file's own objects: copy before changing them.
    """

    server: ServerSettings = ServerSettings()
    twilio: TwilioSettings = TwilioSettings()
    deepgram: DeepgramSettings = DeepgramSettings()
    call: CallSettings = CallSettings()
    limits: LimitSettings = LimitSettings()
    functions: FunctionSettings = FunctionSettings()
    records: RecordSettings = RecordSettings()
    costs: CostSettings = CostSettings()
    logging: LoggingSettings = LoggingSettings()
    agent: dict[str, Any] = msgspec.field(default_factory=default_agent)
    agents: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)


# Keys of the contract that are read and checked but change nothing yet. Whoever makes one work
# takes its line out, and puts the key into the shipped config.toml.
NOT_YET: tuple[str, ...] = ()


def warnings_for(settings: Settings) -> list[str]:
    """One line for each protection that is switched off, and for each key that was set and that
    this version does not act on (`NOT_YET`)."""
    default = Settings()
    lines = [
        f"{key} is accepted but has no effect in this version"
        for key in NOT_YET
        if _lookup(settings, key) != _lookup(default, key)
    ]
    if not settings.twilio.validate_signatures:
        lines.append(
            "twilio.validate_signatures is false: whoever finds this server can pass for Twilio, "
            "and talk to the agent at your expense"
        )
    if not settings.twilio.require_ticket:
        lines.append(
            "twilio.require_ticket is false: a media socket need not belong to a call that the "
            "webhook was told of"
        )
    agent = urlsplit(settings.deepgram.url)
    if agent.scheme == "ws" and not _is_loopback(agent.hostname or ""):
        lines.append(
            f"deepgram.url is ws://: the key and every word go unencrypted to {agent.hostname}; "
            "write wss://"
        )
    if any(ipaddress.ip_network(proxy).prefixlen == 0 for proxy in settings.server.trusted_proxies):
        lines.append(
            "server.trusted_proxies trusts every address: X-Forwarded-* headers are then anybody's "
            "to choose"
        )
    return lines


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Secrets:
    """What only the environment may hold. An empty value means not set.

    A dataclass and not a Struct: a Struct hands its fields to rich's pretty printer, past `repr`.
    """

    deepgram_api_key: str = ""
    twilio_account_sid: str = ""
    twilio_auth_tokens: tuple[str, ...] = ()
    api_token: str = ""
    ticket_key: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Secrets:
        """Read `DEEPGRAM_API_KEY`, `TWILIO_ACCOUNT_SID`, `TWILIO_AUTH_TOKEN` (a comma-separated
        list while tokens are being rotated) and `BRIDGE_API_TOKEN`; and `BRIDGE_TICKET_KEY`, which
        a server with neither of the last two gives to its own worker processes.

        Raises `ConfigError`, which names the variable and never its value, for a character that
        no key or token has: it would end in a header, where a line break is an injection.
        """

        def value(name: str) -> str:
            text = environ.get(name, "").strip()
            if not text.isascii() or not text.isprintable():
                raise ConfigError(
                    f"{name}: holds a control character or one outside ASCII; "
                    "set it again, copying the value alone"
                )
            return text

        tokens = (token.strip() for token in value("TWILIO_AUTH_TOKEN").split(","))
        return cls(
            deepgram_api_key=value("DEEPGRAM_API_KEY"),
            twilio_account_sid=value("TWILIO_ACCOUNT_SID"),
            twilio_auth_tokens=tuple(token for token in tokens if token),
            api_token=value("BRIDGE_API_TOKEN"),
            ticket_key=value("BRIDGE_TICKET_KEY"),
        )

    def ticket_keys(self) -> tuple[bytes, ...]:
        """The keys of the calls' tickets: from the first secret there is, so that every process
        and machine with the same environment has the same; random without any."""
        return ticket_keys(self.twilio_auth_tokens, (self.api_token,), (self.ticket_key,))

    def values(self) -> tuple[str, ...]:
        """Every value that is set, for those who must keep them out of sight."""
        single = (
            *(self.deepgram_api_key, self.twilio_account_sid),
            *(self.api_token, self.ticket_key),
        )
        return tuple(value for value in (*single, *self.twilio_auth_tokens) if value)

    def __repr__(self) -> str:
        def state(value: str) -> str:
            return "set" if value else "not set"

        return (
            f"Secrets(deepgram_api_key: {state(self.deepgram_api_key)}, "
            f"twilio_account_sid: {state(self.twilio_account_sid)}, "
            f"twilio_auth_tokens: {len(self.twilio_auth_tokens) or 'not'} set, "
            f"api_token: {state(self.api_token)})"
        )


def check_startup(settings: Settings, secrets: Secrets) -> None:
    """Raise `ConfigError` for what would fail every call, no key for an agent that needs one, and
    for what would let everybody in: no token to check Twilio's signatures with.

    An agent on this machine (`bridge agent`) is taken to need no key.
    """
    host = urlsplit(settings.deepgram.url).hostname or ""
    if not _is_loopback(host) and not secrets.deepgram_api_key:
        raise ConfigError(
            f"DEEPGRAM_API_KEY: not set, and the agent at {host} needs it; set it, or point "
            "deepgram.url at a local agent (`bridge agent`)"
        )
    if settings.twilio.validate_signatures and not secrets.twilio_auth_tokens:
        raise ConfigError(
            "TWILIO_AUTH_TOKEN: not set, and without it nobody can tell Twilio's requests from a "
            "stranger's; set it to the auth token in the Twilio console, or, to try the server "
            "without Twilio, set twilio.validate_signatures = false"
        )


def parse(text: str, name: str = "config.toml") -> Settings:
    """Settings from the text of a configuration file; `name` is how errors call that file.

    Raises `ConfigError`, and nothing else whatever the text.
    """
    try:
        return _settings(_toml(text))
    except _UnusableError as problem:
        raise ConfigError(f"{name}: {problem}") from None


_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 with line breaks and ESC, DEL, C1
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # breaks, bidi marks, the invisible
    "\ud800-\udfff\U000e0000-\U000e007f]"  # what no UTF-8 stream takes, and tag characters
)


def printable(text: str) -> str:
    r"""`text` with every character that could break, restyle or reorder a line of a terminal
    written as an escape (`\n`, `\x1b`, `\u202e`).
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class _UnusableError(Exception):
    """What is wrong in the file, without the file's name."""


def _toml(text: str) -> dict[str, Any]:
    try:
        text.encode()
        return tomllib.loads(text)
    except UnicodeEncodeError:
        raise _UnusableError("not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).removesuffix(")").rpartition(" (at ")
        if where.startswith("end"):
            lines = text.split("\n")
            where = f"line {len(lines)}, column {len(lines[-1]) + 1} (the end of the file)"
        raise _UnusableError(
            f"{where}: not valid TOML: {what}; text needs quotes, and a key stands once"
        ) from None
    except RecursionError:
        raise _UnusableError("tables or lists nested too deep; make them flatter") from None
    except ValueError:
        # tomllib lets Python's limit on the digits of a number through.
        raise _UnusableError("a number with too many digits; write a smaller one") from None


def _settings(document: dict[str, Any]) -> Settings:
    taken: dict[str, Any] = {}
    for name, content in document.items():
        if name not in _FREE and name not in _TABLES:
            raise _UnusableError(_unknown_at_top(name, content))
        if not isinstance(content, dict):
            raise _UnusableError(f"{name}: expected a table, got {_got(content)}; write [{name}]")
        if name == "agents":
            _check_agents(content)
        taken[name] = content if name in _FREE else _table(name, content)
    return Settings(**taken)


def _table(table: str, content: dict[str, Any]) -> Struct:
    fields = _TABLES[table]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in fields:
            raise _UnusableError(_unknown_key(table, key))
        dotted = f"{table}.{key}"
        values[key] = _convert(dotted, value, fields[key])
        if check := _CHECKS.get(dotted):
            try:
                values[key] = check(values[key])
            except ValueError as error:
                raise _UnusableError(f"{dotted}: {error}") from None
    return _STRUCTS[table](**values)


def _convert(dotted: str, value: Any, field: msgspec.inspect.Field) -> Any:
    kind, remedy = field.type, ""
    if isinstance(kind, msgspec.inspect.Metadata):
        remedy = (kind.extra or {}).get("remedy", "")
        kind = kind.type
    table = dotted.partition(".")[0]
    try:
        return msgspec.convert(value, _HINTS[table][field.name])
    except msgspec.ValidationError:
        text = f"{dotted}: expected {_expected(kind)}, got {_got(value)}"
        if close := _close(value, kind):
            text += f"; did you mean {close}?"
        raise _UnusableError(f"{text}; {remedy}" if remedy else text) from None


def _expected(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType():
            return "an integer" + _range(kind)
        case msgspec.inspect.FloatType():
            return "a number" + _range(kind)
        case msgspec.inspect.LiteralType():
            return "one of " + ", ".join(f'"{value}"' for value in kind.values)
        case msgspec.inspect.VarTupleType():
            return "a list of texts in quotes"
        case msgspec.inspect.DictType():
            return "a table of names and texts in quotes"
        case _:
            return "a text in quotes"


def _range(kind: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    low, high = (f"{bound or 0:.10g}" for bound in (kind.gt or kind.ge, kind.le))
    return f" above {low} and up to {high}" if kind.gt is not None else f" from {low} to {high}"


def _got(value: Any) -> str:
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


def _close(value: Any, kind: msgspec.inspect.Type) -> str:
    if not isinstance(value, str) or not isinstance(kind, msgspec.inspect.LiteralType):
        return ""
    close = difflib.get_close_matches(value[:40].lower(), [str(known) for known in kind.values], 1)
    return f'"{close[0]}"' if close else ""


def _unknown_key(table: str, key: str) -> str:
    # The same name in another table is a surer guess than a similar one in this.
    elsewhere = [f"{other}.{key}" for other, fields in _TABLES.items() if key in fields]
    here = difflib.get_close_matches(key[:80], _TABLES[table], 1)
    guess = elsewhere[:1] or here or _close_anywhere(key)
    hint = f"did you mean {guess[0]}?" if guess else "it has " + ", ".join(_TABLES[table])
    return f"{table}.{_short(key)}: unknown key; {hint}"


def _unknown_at_top(name: str, content: Any) -> str:
    tables = [*_TABLES, *_FREE]
    if isinstance(content, dict):
        close = difflib.get_close_matches(name[:80], tables, 1)
        hint = f"did you mean [{close[0]}]?" if close else "there are " + ", ".join(tables)
        return f"[{_short(name)}]: unknown table; {hint}"
    exact = [f"{table}.{name}" for table, fields in _TABLES.items() if name in fields]
    guess = exact[:1] or _close_anywhere(name)
    hint = f"did you mean {guess[0]}?" if guess else "keys belong under a table such as [server]"
    return f"{_short(name)}: unknown key; {hint}"


def _close_anywhere(key: str) -> list[str]:
    known = {field: f"{table}.{field}" for table, fields in _TABLES.items() for field in fields}
    return [known[close] for close in difflib.get_close_matches(key[:80], known, 1)]


def _short(key: str) -> str:
    return key if len(key) <= 80 else f"{key[:80]}…"


def _check_agents(agents: dict[str, Any]) -> None:
    owner: dict[str, str] = {}
    for name, agent in agents.items():
        where = f"agents.{_short(name)}"
        if not isinstance(agent, dict):
            raise _UnusableError(f"{where}: expected a table, got {_got(agent)}; write [{where}]")
        numbers = agent.get("numbers")
        if not isinstance(numbers, list) or not numbers:
            raise _UnusableError(
                f"{where}.numbers: expected a list of the numbers it answers, such as "
                '["+15557654321"]'
            )
        for number in numbers:
            try:
                _e164(number if isinstance(number, str) else "")
            except ValueError as error:
                raise _UnusableError(f"{where}.numbers: {error}") from None
            if owner.setdefault(number, name) != name:
                raise _UnusableError(
                    f"{where}.numbers: {number} already belongs to agents.{_short(owner[number])}; "
                    "leave it to one of them"
                )


def _e164(number: str) -> str:
    if not re.fullmatch(r"\+[1-9][0-9]{6,14}", number):
        raise ValueError(
            f"expected a phone number such as +15551234567, got {_got(number)}; write + and the "
            "country code, then digits alone"
        )
    return number


def _optional_e164(number: str) -> str:
    return number and _e164(number)


def _transfer_numbers(numbers: dict[str, str]) -> dict[str, str]:
    for name, number in numbers.items():
        try:
            _e164(number)
        except ValueError as error:
            raise ValueError(f"{_short(name)}: {error}") from None
    return numbers


def checked_bind(bind: str) -> str:
    """Return `server.bind`, or what stands in for it. Raises ValueError: what, and the remedy."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", bind)
    if not match or int(match[2]) > 65_535:
        raise ValueError(
            f"expected an address and a port from 0 to 65535, got {_got(bind)}; write "
            '"0.0.0.0:5000" or "[::]:5000"'
        )
    if bind.startswith("["):
        try:
            ipaddress.IPv6Address(match[1][1:-1])
        except ValueError:
            raise ValueError(f"{_got(bind)} holds no IPv6 address; write [::]:5000") from None
    return bind


def _proxies(proxies: tuple[str, ...]) -> tuple[str, ...]:
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise ValueError(
                f"expected addresses or networks, got {_got(proxy)}; write 10.0.0.7, or a network "
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
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError(
            "expected https://, since Twilio opens media sockets by wss:// only; put a proxy with "
            f"TLS in front and write {example}"
        )
    if parts.query or parts.fragment or url[-1] in "?#":
        raise ValueError(f"expected no ?query and no #fragment; write {example}")
    return url.rstrip("/")


def _overflow_url(url: str) -> str:
    if url:
        _url(url, ("https", "http"), "https://voice.example.com/busy.xml")
    return url


def _url(url: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    # No message shows the address: it may hold a password or a key.
    one_of = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        if not re.fullmatch(r"[!-~]+", url):
            raise ValueError
        parts = urlsplit(url)
        usable = parts.scheme in schemes and parts.hostname and parts.port != 0
        # What DNS takes for no name (a label of more than 63 characters) would fail in each call.
        (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"expected an address that begins {one_of}; write one such as {example}")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password; leave it out")
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _lookup(settings: Settings, dotted: str) -> Any:
    value: Any = settings
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _structs() -> Iterator[tuple[str, type[Struct]]]:
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield field.name, field.type


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "server.bind": checked_bind,
    "server.public_url": _public_url,
    "server.trusted_proxies": _proxies,
    "server.overflow_url": _overflow_url,
    "deepgram.url": _agent_url,
    "call.fallback_number": _optional_e164,
    "call.context_url": _overflow_url,
    "functions.transfer_to": _transfer_numbers,
}
_FREE = ("agent", "agents")
_STRUCTS = dict(_structs())
_HINTS = {
    table: {field.name: field.type for field in msgspec.structs.fields(struct)}
    for table, struct in _STRUCTS.items()
}
_TABLES = {
    table: {field.name: field for field in msgspec.inspect.type_info(struct).fields}  # type: ignore[attr-defined]
    for table, struct in _STRUCTS.items()
}
