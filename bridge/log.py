"""The log: one line per event on standard error, for people (`console`) or programs (`json`).

Everything that is logged, by bridge through structlog and by the libraries through `logging`,
passes one chain of processors, which makes the log safe to read:

- Secrets become `[secret]`, in every key, value and traceback.
- Phone numbers are masked (`+15…4567`) while `logging.mask_numbers` is on.
- Control characters are written as escapes, so that nothing a peer sends can forge a second line
  or restyle a terminal. Only a traceback has line breaks; in the console each of its lines is
  indented, as no event is, and in JSON it is one string.
- Nothing here raises into a call: a value that cannot be shown is replaced by a note, and a line
  that cannot be written is dropped.

Lines are written synchronously, on Trio's thread. That is acceptable because the number of lines
per call is constant (its start, its end, its errors) and does not grow with its audio; a queue and
a thread would cost more than they save, and lose the last lines of a crash.
"""

from __future__ import annotations

import enum
import json
import logging
import math
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence, Set
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from bridge.text import printable

TEXT_LIMIT = 8_192  # characters of one value: a peer's whole message does not belong in a log
TRACEBACK_LIMIT = 65_536  # more than an ExceptionGroup of all of a call's tasks
DEPTH_LIMIT = 4  # of nested values
ITEMS_LIMIT = 100  # of a list or table
SHORTEST_SECRET = 6  # anything shorter would redact ordinary words

# Hypercorn logs its addresses at INFO; other libraries matter only when something is wrong.
LIBRARY_LEVELS = {"hypercorn.error": logging.INFO}
LIBRARY_LEVEL = logging.WARNING

NUMBER_KEYS = frozenset(
    {"caller", "called", "number", "transfer_to", "from_", "from", "to", "From", "To"}
)


def configure(
    *,
    level: str = "info",
    format: str = "console",
    mask_numbers: bool = True,
    secrets: Sequence[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send structlog's and `logging`'s events to `stream` (standard error by default).

    The other arguments are the keys of `[logging]`, and the values that are written as `[secret]`.

    A second call replaces the first. A library's logger with handlers of its own (hypercorn's,
    when the `hypercorn` command runs the app) is left alone: its lines would be written twice.
    """
    stream = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    redact = _redactor(secrets)
    render = _json if format == "json" else _Console(colours=_wants_colours(stream))

    def finish(_logger: Any, _method: str, event: EventDict) -> str:
        return redact(render(event))

    chain: list[Processor] = [
        _add_name,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_time,
        _add_traceback,
        _Cleaner(redact, mask_numbers=mask_numbers),
    ]
    sink = _Sink(stream)
    structlog.configure(
        processors=[*chain, finish],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        context_class=dict,
        logger_factory=lambda name="": _Named(sink, name),
        # Module-level loggers must follow a later configure(), and structlog's test helpers.
        cache_logger_on_first_use=False,
    )
    _route_libraries(sink, chain, finish, threshold)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger whose lines carry `logger=name`; modules pass `__name__`.

    It follows `configure`, even if that is called later. `bind` it once per call: a bound logger
    filters at no cost.
    """
    return cast(FilteringBoundLogger, structlog.get_logger(name))


class _Sink:
    """Writes lines to the stream."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        # Users' functions log from threads too.
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        if self._stream is None:
            return
        with self._lock:
            try:
                self._put(self._stream, line + "\n")
            except (OSError, ValueError):
                # The stream is closed, or its reader is gone. That must not end a call.
                return

    @staticmethod
    def _put(stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        stream.flush()


class _Named:
    """A logger in structlog's sense: a method per level, each of which writes the line."""

    def __init__(self, sink: _Sink, name: str) -> None:
        self.name = name
        self.msg = sink.write

    def __getattr__(self, _level: str) -> Callable[[str], None]:
        return self.msg


class _LibraryHandler(logging.Handler):
    """Passes the libraries' records to the sink."""

    def __init__(self, sink: _Sink, level: int) -> None:
        super().__init__()
        self._sink = sink
        self._least = level

    def filter(self, record: logging.LogRecord) -> bool:
        wanted = max(self._least, LIBRARY_LEVELS.get(record.name, LIBRARY_LEVEL))
        return record.levelno >= wanted and not _speaks_for_itself(record.name)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # a library's arguments that do not fit its own message
            line = f"a line of {printable(record.name)} cannot be shown: {type(error).__name__}"
        self._sink.write(line)


def _route_libraries(
    sink: _Sink, chain: list[Processor], finish: Callable[..., str], level: int
) -> None:
    handler = _LibraryHandler(sink, level)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *chain, finish],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, _LibraryHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    # Also on the loggers, so that a filtered line costs nothing.
    root.setLevel(max(level, LIBRARY_LEVEL))
    for name, least in LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(level, least))


def _speaks_for_itself(name: str) -> bool:
    return name != "root" and bool(logging.getLogger(name).handlers)


def _add_name(logger: Any, _method: str, event: EventDict) -> EventDict:
    if isinstance(logger, _Named) and logger.name:
        event["logger"] = logger.name
    return event


def _add_time(_logger: Any, _method: str, event: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    event["time"] = now.replace("+00:00", "Z")
    return event


class _Traceback(str):
    """The text of a traceback: the only string whose line breaks are kept."""

    __slots__ = ()


def _add_traceback(_logger: Any, _method: str, event: EventDict) -> EventDict:
    info = event.pop("exc_info", None)
    error = info[1] if isinstance(info, tuple) and len(info) == 3 else info
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        try:
            lines = traceback.format_exception(error)
        except Exception as failure:  # a traceback too deep or too strange to be shown
            lines = [f"{type(error).__name__} (its traceback raised {type(failure).__name__})"]
        event["exception"] = _Traceback("".join(lines).rstrip("\n"))
    return event


class _Cleaner:
    """The processor that turns every key and value into safe, plain data: text, numbers, and lists
    and tables of them.
    """

    def __init__(self, redact: Callable[[str], str], *, mask_numbers: bool) -> None:
        self._redact = redact
        self._mask_numbers = mask_numbers

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        return {self._text(key): self._value(key, value) for key, value in event.items()}

    def _value(self, key: str, value: Any, depth: int = 0) -> Any:
        if isinstance(value, enum.Enum):
            value = value.value
        if self._mask_numbers and key in NUMBER_KEYS and type(value) is int:
            value = str(value) if value.bit_length() <= 64 else ""
        match value:
            case None | bool():
                return value
            case _Traceback():
                return _Traceback(
                    "\n".join(map(printable, self._hide(value, TRACEBACK_LIMIT).split("\n")))
                )
            case str():
                return self._text(value, number=key in NUMBER_KEYS)
            case int():
                return int(value) if value.bit_length() <= 64 else hex(value)[:TEXT_LIMIT]
            case float():
                return float(value) if math.isfinite(value) else str(float(value))
        if depth < DEPTH_LIMIT:
            match value:
                case Mapping():
                    return {
                        self._text(_shown(name)): self._value(_shown(name), item, depth + 1)
                        for name, item in islice(value.items(), ITEMS_LIMIT)
                    }
                case Sequence() | Set() if not isinstance(value, (bytes, bytearray, memoryview)):
                    return [
                        self._value(key, item, depth + 1) for item in islice(value, ITEMS_LIMIT)
                    ]
        return self._text(_shown(value))

    def _text(self, text: str, *, number: bool = False) -> str:
        return printable(self._hide(text, TEXT_LIMIT, number=number))

    def _hide(self, text: str, limit: int, *, number: bool = False) -> str:
        # Cut last: half a secret, or a number one digit short, would not be recognised.
        text = self._redact(text)
        if self._mask_numbers:
            text = _mask_whole(text) if number else _E164.sub(_mask, text)
        return text if len(text) <= limit else f"{text[:limit]}… (+{len(text) - limit} characters)"


def _shown(value: object) -> str:
    try:
        if isinstance(value, (str, os.PathLike, date)):
            return str(value)
        return repr(value)
    except Exception as error:  # a __repr__ may raise anything
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


# A number in E.164, also with its plus percent-encoded, as in forms and URLs.
_E164 = re.compile(r"(?:\+|%2[Bb])[0-9]{7,15}(?![0-9])")


def mask_number(text: str) -> str:
    """Mask a phone number as the log does, `+15…4567`; leave a word such as "anonymous" alone."""
    return _mask_whole(text)


def _mask(match: re.Match[str]) -> str:
    return _masked(match[0].replace("%2B", "+").replace("%2b", "+"))


def _mask_whole(text: str) -> str:
    # A value under a number's key is one number, in whatever notation; or a word such as
    # "anonymous", which need not be masked.
    digits = sum(character.isdigit() for character in text)
    return _masked(text) if digits >= 7 else text


def _masked(number: str) -> str:
    return f"{number[:3]}…{number[-4:] if len(number) > 10 else number[-2:]}"


def _redactor(secrets: Sequence[str]) -> Callable[[str], str]:
    # A secret is looked for in plain, and as repr and JSON would write it.
    forms: set[str] = set()
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            doubled = secret.replace("\\", "\\\\")
            single, double = doubled.replace("'", "\\'"), doubled.replace('"', '\\"')
            forms |= {secret, doubled, single, double}
    if not forms:
        return lambda text: text
    longest_first = sorted(forms, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return lambda text: pattern.sub("[secret]", text)


def _json(event: MutableMapping[str, Any]) -> str:
    first = {key: event.pop(key) for key in ("time", "level", "event") if key in event}
    return json.dumps({**first, **event}, ensure_ascii=False)


class _Console:
    """`time level event key=value ...`, a traceback indented below."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, event: MutableMapping[str, Any]) -> str:
        level = str(event.pop("level", ""))
        error = event.get("exception")
        if isinstance(error, _Traceback):
            del event["exception"]
        if str(event.get("logger", "")).startswith("bridge"):
            # bridge's own events are recognised by their words.
            del event["logger"]
        time, words = event.pop("time", ""), str(event.pop("event", ""))
        call = {"call_sid": event.pop("call_sid")} if "call_sid" in event else {}
        pairs = " ".join(
            f"{self._paint('36', _quoted(key))}={_quoted(value)}"
            for key, value in {**call, **event}.items()
        )
        line = (
            f"{self._paint('2', str(time))} "
            f"{self._paint(_LEVEL_COLOURS.get(level, '0'), f'{level:<8}')} "
            f"{words:<32} {pairs}"
        ).rstrip()
        if isinstance(error, _Traceback):
            line += "".join(f"\n    {part}" for part in error.split("\n"))
        return line

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


_LEVEL_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_PLAIN = re.compile(r"[^\s\"'=\[\]{}]+")


def _quoted(value: Any) -> str:
    # In double quotes, without any inside: text from a peer cannot close them and add a pair.
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value if _PLAIN.fullmatch(value) else '"' + value.replace('"', "'") + '"'


def _wants_colours(stream: TextIO | None) -> bool:
    if stream is None or os.environ.get("NO_COLOR"):
        return False
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False
