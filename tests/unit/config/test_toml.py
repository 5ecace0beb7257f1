"""config.toml's text to settings, and what errors say."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.config.settings import ConfigError, Settings
from bridge.config.toml import parse
from bridge.deepgram.settings import settings_message
from bridge.testing.agent.schema import check_settings
from bridge.text import printable

SHIPPED = Path(__file__).parents[3] / "config.toml"


def uncommented(text: str) -> str:
    """The lines of a commented block that are TOML."""
    lines = (line.removeprefix("# ") for line in text.splitlines())
    return "\n".join(line for line in lines if re.match(r"\[|\w+ = ", line))


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestDefaults:
    def test_an_empty_file_means_the_defaults(self) -> None:
        assert parse("") == Settings()

    def test_the_shipped_file_holds_the_defaults(self) -> None:
        assert parse(SHIPPED.read_text()) == Settings()

    def test_the_shipped_file_has_every_key_in_force_and_no_other(self) -> None:
        document = tomllib.loads(SHIPPED.read_text())
        shipped = {f"{t}.{key}" for t, keys in document.items() if t != "agent" for key in keys}
        known = {
            f"{table.name}.{key.name}"
            for table in msgspec.structs.fields(Settings)
            if isinstance(table.type, type) and issubclass(table.type, msgspec.Struct)
            for key in msgspec.structs.fields(table.type)
        }
        assert shipped == known

    def test_the_blocks_in_its_comments_can_be_uncommented(self) -> None:
        text, _, block = SHIPPED.read_text().partition("# Flux, instead of the two lines above")
        flux, _, rest = block.partition("[agent.think]")
        provider = text.rindex("[agent.listen.provider]")
        text = f"{text[:provider]}[agent.listen.provider]\n{uncommented(flux)}\n[agent.think]{rest}"
        another = text.index("# [agents.sales]")
        settings = parse(text[:another] + uncommented(text[another:]))
        heard = settings.for_agent("sales").agent["listen"]["provider"]
        assert heard["model"] == "flux-general-en"
        check_settings(json.loads(settings_message(settings.for_agent("sales").agent)))
        assert settings.for_agent("sales").words.still_there == "Still with me?"
        beside = parse(SHIPPED.read_text().replace("# mip", "mip").replace("# tags", "tags"))
        assert beside.deepgram.settings == {"mip_opt_out": True, "tags": ["reception"]}

    def test_defaults_are_not_shared_between_settings(self) -> None:
        Settings().agent["greeting"] = "changed"
        assert Settings().agent["greeting"] == "Hello! How can I help you today?"


class TestValues:
    def test_seconds_may_be_whole_or_not(self) -> None:
        assert parse("[call]\nstart_timeout = 5").call.start_timeout == 5
        assert parse("[call]\nstart_timeout = 5.0").call.start_timeout == 5
        assert parse("[call]\nstart_timeout = 0.25").call.start_timeout == 0.25

    def test_agent_passes_through_with_integers_as_integers(self) -> None:
        agent = parse("[agent]\nanything = 8000\nratio = 1.0\nspeak = [{ x = 1 }]").agent
        own = {"anything": 8000, "ratio": 1.0, "speak": [{"x": 1}]}
        assert agent == {**Settings().agent, **own}
        assert type(agent["anything"]) is int
        assert type(agent["ratio"]) is float

    def test_agents_pass_through_with_their_numbers(self) -> None:
        settings = parse('[agents.sales]\nnumbers = ["+15557654321"]\ngreeting = "Sales!"')
        assert settings.agents == {"sales": {"numbers": ["+15557654321"], "greeting": "Sales!"}}

    def test_public_url_loses_its_trailing_slash(self) -> None:
        settings = parse('[server]\npublic_url = "https://voice.example.com/base/"')
        assert settings.server.public_url == "https://voice.example.com/base"

    @pytest.mark.parametrize(
        "line",
        [
            'server.bind = "[::1]:0"',
            'server.bind = "localhost:65535"',
            'server.public_url = "http://127.0.0.1:5000"',
            'server.public_url = "http://[::1]:5000"',
            'server.public_url = "http://localhost:5000"',
            'server.overflow_url = "https://example.com/busy?lang=en"',
            "server.drain_seconds = 0",
            'server.trusted_proxies = ["10.0.0.7", "10.0.0.0/8", "fd00::/8"]',
            'deepgram.url = "ws://127.0.0.1:9000"',
            'deepgram.url = "ws://agent.internal:9000/v1?x=1"',
            "deepgram.max_reconnects = 0",
            "call.frame_ms = 20",
            "call.frame_ms = 250",
            'call.fallback_number = "+15551234567"',
            'call.after_url = "https://webhooks.twilio.com/v1/Accounts/AC1/Flows/FW1?Call=return"',
            'functions.transfer_to = { reception = "+15551112222" }',
            'words.language = "cmn-CN"',
            'words.language = ""',
            'words.voice = "Google.fr-FR-Chirp3-HD-Aoede"',
            'words.apology = ""',
            'words.keypad = "{digits}#"',
            'records.url = ""',
            'logging.format = "json"',
        ],
    )
    def test_accepted(self, line: str) -> None:
        parse(line)

    @pytest.mark.parametrize(
        "line",
        [
            'server.bind = "5000"',
            'server.bind = ":5000"',
            'server.bind = "0.0.0.0:65536"',
            'server.bind = "[zz]:5000"',
            'server.bind = "[1]:5000"',
            'server.public_url = "http://voice.example.com"',
            'server.public_url = "voice.example.com"',
            'server.public_url = "https://voice.example.com/?a=1"',
            'server.public_url = "https://voice.example.com/#a"',
            'server.public_url = "https://voice.example.com?"',
            'server.public_url = "https://u:p@voice.example.com"',
            'server.public_url = "https://voice.example.com:99999"',
            'server.public_url = "https://voice\\n.example.com"',
            'server.public_url = "https://[voice"',
            'server.trusted_proxies = ["10.0.0.1/8"]',
            'server.trusted_proxies = ["proxy"]',
            "server.trusted_proxies = [10]",
            'server.trusted_proxies = "10.0.0.1"',
            "server.workers = 0",
            "server.max_calls = 0",
            "server.drain_seconds = -1",
            'deepgram.url = "https://agent.deepgram.com"',
            'deepgram.url = "wss://"',
            'deepgram.url = "wss://' + "a" * 64 + '.example"',
            'deepgram.url = ""',
            'deepgram.url = "wss://agent.deepgram.com/#x"',
            "deepgram.connect_timeout = 0",
            "deepgram.connect_timeout = -1",
            "deepgram.connect_timeout = nan",
            "deepgram.connect_timeout = inf",
            "deepgram.connect_timeout = true",
            'deepgram.connect_timeout = "5"',
            "deepgram.max_reconnects = -1",
            "deepgram.prewarm = 1",
            "call.frame_ms = 19",
            "call.frame_ms = 251",
            "call.frame_ms = 60.5",
            "call.frame_ms = true",
            'call.fallback_number = "15551234567"',
            'call.fallback_number = "+0551234567"',
            'call.fallback_number = "+1 555 123 4567"',
            'functions.transfer_to = { reception = "5551112222" }',
            'call.after_url = "example.com"',
            "functions.transfer_to = { reception = 1 }",
            "words.apology = 2026-01-01",
            'words.language = "French"',
            'words.voice = "Polly Lea"',
            'words.still_there = " "',
            'words.keypad = "I pressed a key."',
            'logging.level = "loud"',
            'logging.format = "xml"',
            "agents.sales.greeting = 'no numbers'",
            "agents.sales.numbers = []",
            "agents.sales.numbers = ['5551234567']",
            "agents.sales.numbers = [1]",
            "agents.sales.numbers = ['sip:example.com']",
            "agents.sales.numbers = ['client:']",
            "agents.sales.numbers = ['whatsapp:5551234567']",
            "agents.numbers = ['+15551234567']",
        ],
    )
    def test_refused(self, line: str) -> None:
        """The error names the key, what it expects, and holds a remedy."""
        key = ".".join(line.partition(" =")[0].split(".")[:2])
        message = problem(line)
        assert message.startswith(f"config.toml: {key}")
        assert "expected" in message or ";" in message

    def test_two_agents_cannot_have_one_number(self) -> None:
        text = "agents.a.numbers = ['+15551234567']\nagents.b.numbers = ['+15551234567']"
        assert "already belongs to agents.a" in problem(text)


class TestMessages:
    def test_a_value_out_of_range(self) -> None:
        assert problem("[call]\nframe_ms = 400") == (
            "config.toml: call.frame_ms: expected an integer from 20 to 250, got 400; "
            "Deepgram's guidance is 20 to 250 ms per message"
        )

    def test_a_misspelt_key(self) -> None:
        assert problem("[server]\nmax_call = 5") == (
            "config.toml: server.max_call: unknown key; did you mean max_calls?"
        )

    def test_a_key_of_another_table(self) -> None:
        assert problem("[server]\nframe_ms = 60").endswith("did you mean call.frame_ms?")
        assert problem("[server]\nretention_day = 60").endswith("records.retention_days?")

    def test_a_key_that_has_moved(self) -> None:
        assert problem("[call]\napology = 'x'").endswith("did you mean words.apology?")

    def test_a_key_of_no_table(self) -> None:
        assert problem("[limits]\nzzz = 1").endswith("calls_per_minute, account_calls")

    def test_a_key_without_its_table(self) -> None:
        assert problem("frame_ms = 60").endswith("did you mean call.frame_ms?")

    def test_a_misspelt_table(self) -> None:
        assert problem("[sever]\nbind = 1").endswith("did you mean [server]?")

    def test_a_value_where_a_table_belongs(self) -> None:
        assert "server: expected a table, got 5" in problem("server = 5")
        assert "agent: expected a table" in problem('agent = "uuid"')

    def test_a_misspelt_choice(self) -> None:
        assert problem("[logging]\nlevel = 'INFO'").endswith('did you mean "info"?')

    def test_syntax_errors_give_line_and_column(self) -> None:
        assert problem("[call]\nframe_ms : 60").startswith("config.toml: line 2, column 10: ")
        assert problem("[call]\nframe_ms =").startswith("config.toml: line 2, column 11 ")

    def test_control_characters_come_out_escaped(self) -> None:
        message = problem('[call]\n"a\\u001b[2J\\u202e" = 1')
        assert "call.a\\x1b[2J\\u202e: unknown key" in message

    def test_an_address_with_credentials_is_not_repeated(self) -> None:
        assert "hunter2" not in problem('[deepgram]\nurl = "wss://me:hunter2@example.com"')
        assert "hunter2" not in problem('[deepgram]\nurl = "http://example.com/?key=hunter2"')

    def test_the_file_is_called_what_the_caller_calls_it(self) -> None:
        with pytest.raises(ConfigError, match=r"^/etc/bridge\.toml: "):
            parse("x = 1", "/etc/bridge.toml")


PIECES = """
[server] [agents.x] [agents.x.words] [deepgram.settings] id busy tags call agent
numbers bind url frame_ms [ ] { } 1 -1e9 nan . # = " ' \\u0000
"""
toml_like = st.text() | st.lists(st.sampled_from([*PIECES.split(), "\n", " ", "\x1b"])).map("".join)


@given(toml_like)
@example("a = " + "[" * 20_000)
@example("[server]\nworkers = " + "9" * 5_000)
@example("[server]\nworkers = 0x" + "f" * 9_000)
@example("[deepgram]\nconnect_timeout = 1" + "0" * 400)
@example("a." * 5_000 + "b = 1")
@example("a = '\ud800'")
@example("\ufeff")
def test_any_text_is_settings_or_a_config_error(text: str) -> None:
    try:
        assert isinstance(parse(text), Settings)
    except ConfigError as error:
        message = str(error)
        assert message == printable(message)
        assert len(message) < 1_000


@given(
    st.sampled_from(["server.trusted_proxies", "deepgram.url", "server.bind", "call.frame_ms"]),
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.lists(st.text())),
)
def test_any_value_under_a_key_is_taken_or_refused(key: str, value: object) -> None:
    text = f"{key} = {_toml_value(value)}"
    with contextlib.suppress(ConfigError):
        parse(text)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return (
            '"'
            + "".join(f"\\U{ord(c):08x}" if c < "\ud800" or c > "\udfff" else "?" for c in value)
            + '"'
        )
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return str(value)
