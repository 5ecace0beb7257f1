"""What a line looks like, and what can never be in one."""

from __future__ import annotations

import enum
import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.log import TEXT_LIMIT, configure, get_logger

Format = Literal["console", "json"]
FORMATS: tuple[Format, ...] = ("console", "json")
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
log = get_logger("bridge.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave logging, which is global, as it was."""
    root = logging.getLogger()
    names = ["hypercorn.error"]
    before = root.level, root.handlers[:], [logging.getLogger(name).level for name in names]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def start(
    form: Format = "console",
    *,
    level: Any = "info",
    mask: bool = True,
    secrets: Sequence[str] = (),
) -> io.StringIO:
    stream = io.StringIO()
    configure(format=form, level=level, mask_numbers=mask, stream=stream, secrets=secrets)
    return stream


class Outcome(enum.Enum):
    IDLE = "idle"


class TestConsole:
    def test_a_line(self) -> None:
        stream = start()
        log.info("call started", codec="mulaw", frames=3, call_sid="CA1", why="two words", x=None)
        time, _, rest = stream.getvalue().partition(" ")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
        assert rest == (
            "info     call started                     "
            'call_sid=CA1 codec=mulaw frames=3 why="two words" x=null\n'
        )

    def test_no_event_no_trailing_space(self) -> None:
        stream = start()
        log.info("done")
        assert stream.getvalue().endswith(" done\n")

    def test_quotes_cannot_be_closed_from_inside(self) -> None:
        stream = start()
        log.info("said", text='x" level=error y="')
        assert stream.getvalue().endswith("""text="x' level=error y='"\n""")

    def test_a_traceback_stands_indented_below(self) -> None:
        stream = start()
        try:
            raise ExceptionGroup("both", [ValueError("one\n2026 info forged"), KeyError("two")])
        except ExceptionGroup:
            log.exception("call failed")
        first, *below = stream.getvalue().splitlines()
        assert " error    call failed" in first
        assert all(line.startswith("    ") for line in below)
        text = "\n".join(below)
        assert text.count("Traceback (most recent call last)") == 1
        assert "ValueError: one" in text
        assert "KeyError: 'two'" in text

    def test_colours_only_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.delenv("NO_COLOR", raising=False)
        for no_color in ("", "1"):
            monkeypatch.setenv("NO_COLOR", no_color)
            terminal = Terminal()
            configure(stream=terminal)
            log.info("event", key="value\x1b[31m")
            assert ("\x1b[32m" in terminal.getvalue()) is not bool(no_color)
            assert "\x1b[31m" not in terminal.getvalue()


class TestJson:
    def test_a_line(self) -> None:
        stream = start("json")
        log.info("call ended", outcome=Outcome.IDLE, nested={"a": [1, 2.5, "x"]}, big=10**400)
        line = json.loads(stream.getvalue())
        assert list(line)[:3] == ["time", "level", "event"]
        assert line["level"] == "info"
        assert line["logger"] == "bridge.test"
        assert line["outcome"] == "idle"
        assert line["nested"] == {"a": [1, 2.5, "x"]}
        assert line["big"].startswith("0x")

    def test_what_json_cannot_say(self) -> None:
        stream = start("json")
        cyclic: list[Any] = []
        cyclic.append(cyclic)
        log.info("odd", a=float("nan"), b=b"\x00", c={1: {2, 3}}, d=cyclic, e=object())
        line = json.loads(stream.getvalue(), parse_constant=pytest.fail)
        assert line["a"] == "nan"
        assert line["c"] == {"1": [2, 3]}

    def test_a_traceback_is_one_string(self) -> None:
        stream = start("json")
        try:
            raise ValueError("one\x1b[2J")
        except ValueError:
            log.exception("call failed")
        (line,) = stream.getvalue().splitlines()
        text = json.loads(line)["exception"]
        assert text.startswith("Traceback (most recent call last):\n")
        assert text.endswith("ValueError: one\\x1b[2J")

    def test_an_exception_passed_by_hand(self) -> None:
        stream = start("json")
        log.warning("later", exc_info=ValueError("kept"))
        log.warning("none", exc_info=True)
        first, second = map(json.loads, stream.getvalue().splitlines())
        assert first["exception"] == "ValueError: kept"
        assert "exception" not in second


class TestLevelsAndContext:
    def test_levels(self) -> None:
        stream = start(level="warning")
        log.debug("no")
        log.info("no")
        log.warning("yes")
        assert stream.getvalue().count("\n") == 1

    def test_context_is_merged(self) -> None:
        stream = start("json")
        with structlog.contextvars.bound_contextvars(call_sid="CA1"):
            log.info("inside")
            logging.getLogger("library").warning("inside")
        log.info("outside")
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [line.get("call_sid") for line in lines] == ["CA1", "CA1", None]

    def test_reconfiguring_replaces(self) -> None:
        old, new = start(), start()
        log.warning("once")
        logging.getLogger("library").warning("once")
        assert old.getvalue() == ""
        assert new.getvalue().count("\n") == 2


class TestLibraries:
    def test_their_levels(self) -> None:
        stream = start(level="debug")
        loud = logging.getLogger("trio-websocket")
        loud.setLevel(logging.DEBUG)
        loud.debug("no")
        loud.warning("yes")
        logging.getLogger("hypercorn.error").info("Running on %s", "http://x")
        logging.getLogger("hypercorn.error").debug("no")
        lines = stream.getvalue().splitlines()
        assert len(lines) == 2
        assert "logger=trio-websocket" in lines[0]
        assert "Running on http://x" in lines[1]
        loud.setLevel(logging.NOTSET)

    def test_our_level_holds_for_them_too(self) -> None:
        stream = start(level="error")
        logging.getLogger("library").warning("no")
        logging.getLogger("hypercorn.error").info("no")
        assert stream.getvalue() == ""

    def test_same_processors(self) -> None:
        stream = start("json", secrets=["hunter2hunter2"])
        try:
            raise ValueError("hunter2hunter2")
        except ValueError:
            logging.getLogger("quart.app").exception("bad\nthing from %s", "+15551234567")
        (line,) = stream.getvalue().splitlines()
        event = json.loads(line)
        assert event["event"] == "bad\\nthing from +15…4567"
        assert event["level"] == "error"
        assert event["exception"].endswith("ValueError: [secret]")

    def test_a_library_that_cannot_format_its_own_line(self) -> None:
        stream = start()
        record = logging.makeLogRecord({"name": "library", "msg": "%d", "args": ("text",)})
        # Not through its logger: pytest's own handler there makes this an error.
        logging.getLogger().handlers[-1].emit(record)
        assert stream.getvalue() == "a line of library cannot be shown: TypeError\n"

    def test_a_logger_with_its_own_handlers_is_left_to_them(self) -> None:
        stream = start()
        logger = logging.getLogger("hypercorn.error")
        own = logging.StreamHandler(io.StringIO())
        logger.addHandler(own)
        try:
            logger.error("once")
        finally:
            logger.removeHandler(own)
        assert stream.getvalue() == ""


class TestMasking:
    def logged(self, **pairs: Any) -> dict[str, Any]:
        stream = start("json")
        log.info("event", **pairs)
        return dict(json.loads(stream.getvalue()))

    def test_numbers_in_any_text(self) -> None:
        line = self.logged(a="from +15551234567 to +4930123456.", b=["+15551234567"], c={"d": "x"})
        assert line["a"] == "from +15…4567 to +49…3456."
        assert line["b"] == ["+15…4567"]
        assert self.logged(a="From=%2B15551234567&To=x")["a"] == "From=+15…4567&To=x"

    def test_what_stands_under_a_numbers_key(self) -> None:
        line = self.logged(
            caller="15551234567", called=15551234567, number="(555) 123-4567", from_="+1234567"
        )
        assert line["caller"] == "155…4567"
        assert line["called"] == "155…4567"
        assert line["number"] == "(55…4567"
        assert line["from_"] == "+12…67"
        assert self.logged(caller="anonymous", to="agent", number=True)["caller"] == "anonymous"

    def test_what_is_no_number_stays(self) -> None:
        sid = "CA" + "0123456789" * 3 + "ab"
        line = self.logged(call_sid=sid, a="1+1", b="+123456", c="+" + "1" * 16, d=15551234567)
        assert line["call_sid"] == sid
        assert (line["a"], line["b"], line["c"], line["d"]) == (
            "1+1",
            "+123456",
            "+" + "1" * 16,
            15551234567,
        )

    def test_switched_off(self) -> None:
        stream = start(mask=False)
        log.info("event", caller="+15551234567")
        assert "caller=+15551234567" in stream.getvalue()

    def test_in_tracebacks(self) -> None:
        stream = start()
        log.error("event", exc_info=ValueError("+15551234567"))
        assert "15551234567" not in stream.getvalue()


class TestNeverRaises:
    @pytest.mark.parametrize("error", [OSError, BrokenPipeError, BlockingIOError, ValueError])
    def test_a_stream_that_fails(self, error: type[Exception]) -> None:
        class Broken(io.StringIO):
            def write(self, text: str) -> int:
                raise error

        configure(stream=Broken())
        log.error("lost")
        logging.getLogger("library").error("lost")

    def test_a_closed_stream(self) -> None:
        stream = start()
        stream.close()
        log.error("lost")
        configure(stream=stream)

    def test_no_standard_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stderr", None)
        configure()
        log.error("lost")

    def test_a_stream_that_only_knows_ascii(self) -> None:
        raw = io.BytesIO()
        configure(stream=io.TextIOWrapper(raw, "ascii"))
        log.info("event", text="déjà vu")
        assert b'text="d\\xe9j\\xe0 vu"\n' in raw.getvalue()

    def test_a_value_that_cannot_be_shown(self) -> None:
        class Bad:
            def __repr__(self) -> str:
                raise RuntimeError

        stream = start()
        log.info("event", bad=Bad())
        assert "<Bad whose repr raised RuntimeError>" in stream.getvalue()

    def test_a_value_without_end(self) -> None:
        stream = start()
        log.info("event", text="x" * 10_000_000, items=range(10**9))
        assert len(stream.getvalue()) < TEXT_LIMIT + 2_000


any_text = st.text() | st.text(st.sampled_from("\n\r\x1b[2J\x85\u2028\u202e\x7f\x00\ud800\"'= {}"))


@pytest.mark.parametrize("form", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event=any_text, key=any_text, value=any_text)
@example(event="a\n2026-01-01T00:00:00.000Z info forged", key="exception", value="a\nb")
@example(event="%s %d", key="positional_args", value="%")
def test_any_text_is_one_line_without_control_characters(
    form: Format, event: str, key: str, value: str
) -> None:
    stream = start(form)
    if key in {"event", "self"}:
        key += "_"
    log.info(
        event, **{key: value, "nested": [{value: value}], "raw": value.encode("utf-8", "replace")}
    )
    written = stream.getvalue()
    assert written.endswith("\n")
    assert written.count("\n") == 1
    assert not CONTROL.search(written)
    written.encode()
    if form == "json":
        json.loads(written)


secret_text = st.text("0123456789abcdefXYZ+/=\"\\'%{}", min_size=12, max_size=40)


@pytest.mark.parametrize("form", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=secret_text, before=st.text(), after=st.text())
@example(secret="abc+15551234567", before="", after="")
@example(secret="+15551234567ab", before="", after="")
@example(secret="quote'inside", before='"', after="\\")
@example(secret="x" * 12, before="y" * (TEXT_LIMIT - 6), after="")
def test_secrets_never_appear(form: Format, secret: str, before: str, after: str) -> None:
    stream = start(form, secrets=[secret, "other-token"])
    text = before + secret + after
    log.error(
        "event",
        text=text,
        nested={"key": [text]},
        odd=(text.encode("utf-8", "replace"),),
        caller=secret,
        exc_info=ValueError(text, {text}),
    )
    logging.getLogger("library").error("%s %r", text, text)
    written = stream.getvalue()
    assert secret not in written
    for line in written.splitlines() if form == "json" else ():
        assert secret not in str(json.loads(line).values())
    assert "[secret]" in written


def test_a_short_secret_does_not_strike_out_words() -> None:
    stream = start(secrets=["call"])
    log.info("call started")
    assert "call started" in stream.getvalue()
