"""Turns the text of `config.toml` into settings, key by key, so that every error can name the key,
what it expects and what it got, in the operator's own terms.

The keys, their types and ranges are the structs of `settings`; checks that a type cannot express
are in the table `_CHECKS`. `[agent]` and `[agents.NAME]` are passed through unchecked: Deepgram's
models and options grow faster than any list here.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Struct

from bridge.addresses import is_loopback
from bridge.config.settings import ConfigError, DeepgramSettings, Settings
from bridge.config.words import DIGITS, MAY_BE_EMPTY, Words
from bridge.text import closest
from bridge.twilio.numbers import EXPECTED_NUMBER, HOW_TO_WRITE_NUMBERS, is_number


def parse(text: str, name: str = "config.toml") -> Settings:
    """Read settings from the text of a configuration file; `name` is how errors call that file.

    Raises `ConfigError`, and nothing else for any text.
    """
    try:
        return _settings(_toml(text))
    except _UnusableError as problem:
        raise ConfigError(f"{name}: {problem}") from None


class _UnusableError(Exception):
    """The error in the file, without the file's name."""


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
        # Python's limit on the digits of a number, which tomllib does not translate.
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
    close = closest(value.lower(), map(str, kind.values))
    return f'"{close}"' if close else ""


def _unknown_key(table: str, key: str) -> str:
    # The same name in another table is a better guess than a similar one in this table.
    guess = _in_any_table(key) or closest(key, _TABLES[table]) or _close_in_any_table(key)
    hint = f"did you mean {guess}?" if guess else "it has " + ", ".join(_TABLES[table])
    return f"{table}.{_short(key)}: unknown key; {hint}"


def _unknown_at_top(name: str, content: Any) -> str:
    tables = [*_TABLES, *_FREE]
    if isinstance(content, dict):
        close = closest(name, tables)
        hint = f"did you mean [{close}]?" if close else "there are " + ", ".join(tables)
        return f"[{_short(name)}]: unknown table; {hint}"
    guess = _in_any_table(name) or _close_in_any_table(name)
    hint = f"did you mean {guess}?" if guess else "keys belong under a table such as [server]"
    return f"{_short(name)}: unknown key; {hint}"


def _in_any_table(key: str) -> str:
    """`table.key` of the first table that has this key, "" if none has."""
    return next((f"{table}.{key}" for table, fields in _TABLES.items() if key in fields), "")


def _close_in_any_table(key: str) -> str:
    close = closest(key, (field for fields in _TABLES.values() for field in fields))
    return _in_any_table(close) if close else ""


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
    if not is_number(number):
        raise ValueError(f"{EXPECTED_NUMBER}, got {_got(number)}; {HOW_TO_WRITE_NUMBERS}")
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


def _language(tag: str) -> str:
    if tag and not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*", tag):
        raise ValueError(f"expected a language of <Say>, got {_got(tag)}; write one such as en-US")
    return tag


def _voice(name: str) -> str:
    if name and not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"expected a voice of <Say>, got {_got(name)}; write Polly.Lea-Neural")
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
    if parts.scheme == "http" and not is_loopback(parts.netloc):
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
        # A name that DNS refuses (a label of more than 63 characters) would fail in each call.
        (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"expected an address that begins {one_of}; write one such as {example}")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password; leave it out")
    return parts


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
    **{
        f"words.{field.name}": _words
        for field in msgspec.structs.fields(Words)
        if field.name not in MAY_BE_EMPTY
    },
    "words.language": _language,
    "words.voice": _voice,
    "words.keypad": _keypad,
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
