"""Turns the text of `config.toml` into settings, key by key, so that every error can name the key,
what it expects and what it got, in the operator's own terms.

The keys, their types and ranges are the structs of `settings`; checks that a type cannot express
are in `checks`. What `[agent]`, `[agents.NAME]` and `[deepgram.settings]` hold for Deepgram is
passed through: its models and options grow faster than any list here.
"""

from __future__ import annotations

import tomllib
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from bridge.config.agent import BESIDE_AGENT, ID, agent_from, default_agent
from bridge.config.checks import CHECKS, got
from bridge.config.settings import PER_AGENT, ConfigError, Settings
from bridge.text import closest
from bridge.twilio.numbers import check_line


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
            raise _UnusableError(f"{name}: expected a table, got {got(content)}; write [{name}]")
        match name:
            case "agent":
                taken[name] = agent_from(default_agent(), _agent("agent", content))
            case "agents":
                taken[name] = _agents(content)
            case _:
                taken[name] = _STRUCTS[name](**_values(name, content, within=""))
    return Settings(**taken)


def _values(table: str, content: dict[str, Any], *, within: str) -> dict[str, Any]:
    """Return the values of a table; `within` is "agents.NAME." for one that an agent has."""
    fields = _TABLES[table]
    values: dict[str, Any] = {}
    for key, value in content.items():
        dotted, where = f"{table}.{key}", f"{within}{table}.{_short(key)}"
        if key not in fields:
            raise _UnusableError(f"{where}: unknown key; {_known(table, key)}")
        if within and key not in PER_AGENT[table]:
            raise _UnusableError(f"{where}: the same for all agents; set it in [{table}]")
        values[key] = _convert(where, table, value, fields[key])
        if check := CHECKS.get(dotted):
            try:
                values[key] = check(values[key])
            except ValueError as error:
                raise _UnusableError(f"{where}: {error}") from None
    return values


def _agents(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    agents: dict[str, dict[str, Any]] = {}
    owner: dict[str, str] = {}
    for name, table in content.items():
        where = f"agents.{_short(name)}"
        if not name:
            raise _UnusableError('agents."": an agent needs a name; write [agents.NAME]')
        if not isinstance(table, dict):
            raise _UnusableError(f"{where}: expected a table, got {got(table)}; write [{where}]")
        own: dict[str, Any] = {"numbers": _numbers(where, name, table.get("numbers"), owner)}
        for key in [key for key in table if key in PER_AGENT]:
            if not isinstance(table[key], dict):
                raise _UnusableError(f"{where}.{key}: expected a table, got {got(table[key])}")
            own[key] = _values(key, table[key], within=f"{where}.")
        agents[name] = {**_agent(where, {k: v for k, v in table.items() if k not in own}), **own}
    return agents


def _numbers(where: str, name: str, numbers: Any, owner: dict[str, str]) -> list[str]:
    if not isinstance(numbers, list) or not numbers:
        raise _UnusableError(
            f'{where}.numbers: expected a list of the numbers it answers, such as ["+15557654321"]'
        )
    lines = []
    for number in numbers:
        try:
            lines.append(check_line(number if isinstance(number, str) else ""))
        except ValueError as error:
            raise _UnusableError(f"{where}.numbers: {error}") from None
        if owner.setdefault(lines[-1], name) != name:
            raise _UnusableError(
                f"{where}.numbers: {number} already belongs to agents.{_short(owner[lines[-1]])}; "
                "leave it to one of them"
            )
    return lines


def _agent(where: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return what Deepgram is sent of `[agent]` or `[agents.NAME]`, free of keys that it is not
    sent as part of an agent."""
    prefix = "" if where == "agent" else f"{where}."
    for key, value in table.items():
        if key in BESIDE_AGENT:
            raise _UnusableError(f"{where}.{key}: belongs in [{prefix}deepgram.settings]")
        if key in PER_AGENT:
            raise _UnusableError(f"{where}.{key}: belongs in [{key}]")
        if key == "numbers":
            raise _UnusableError(f"{where}.{key}: [agent] answers every number that no other does")
        # Deepgram's keys are its own, but a table so like one of bridge's is meant for bridge.
        meant = closest(key, PER_AGENT) if isinstance(value, dict) else ""
        if meant and abs(len(meant) - len(key)) <= 2:
            raise _UnusableError(f"{where}.{key}: unknown table; did you mean [{prefix}{meant}]?")
    if ID in table:
        try:
            uuid.UUID(table[ID])
        except (ValueError, TypeError, AttributeError):
            raise _UnusableError(
                f"{where}.id: expected the id of a stored agent configuration, got "
                f"{got(table[ID])}; write its UUID"
            ) from None
        if more := [key for key in table if key != ID]:
            raise _UnusableError(
                f"{where}.{_short(more[0])}: a stored configuration ({where}.id) holds all of the "
                "agent; leave out one or the other"
            )
    return table


def _convert(where: str, table: str, value: Any, field: msgspec.inspect.Field) -> Any:
    kind, remedy = field.type, ""
    if isinstance(kind, msgspec.inspect.Metadata):
        remedy = (kind.extra or {}).get("remedy", "")
        kind = kind.type
    try:
        return msgspec.convert(value, _HINTS[table][field.name])
    except msgspec.ValidationError:
        text = f"{where}: expected {_expected(kind)}, got {got(value)}"
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
        case msgspec.inspect.DictType(value_type=msgspec.inspect.AnyType()):
            return "a table"
        case msgspec.inspect.DictType():
            return "a table of names and texts in quotes"
        case _:
            return "a text in quotes"


def _range(kind: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    low, high = (f"{bound or 0:.10g}" for bound in (kind.gt or kind.ge, kind.le))
    return f" above {low} and up to {high}" if kind.gt is not None else f" from {low} to {high}"


def _close(value: Any, kind: msgspec.inspect.Type) -> str:
    if not isinstance(value, str) or not isinstance(kind, msgspec.inspect.LiteralType):
        return ""
    close = closest(value.lower(), map(str, kind.values))
    return f'"{close}"' if close else ""


def _known(table: str, key: str) -> str:
    # The same name in another table is a better guess than a similar one in this table.
    guess = _in_any_table(key) or closest(key, _TABLES[table]) or _close_in_any_table(key)
    return f"did you mean {guess}?" if guess else "it has " + ", ".join(_TABLES[table])


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


def _structs() -> Iterator[tuple[str, type[Struct]]]:
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield field.name, field.type


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
