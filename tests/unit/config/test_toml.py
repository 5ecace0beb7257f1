"""config.toml's text to settings, the secrets of the environment, and what errors say."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.config.settings import ConfigError, Secrets, Settings, check_startup
from bridge.config.toml import parse
from bridge.config.warnings import warnings_for
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
[server] [agents.x] numbers bind url frame_ms [ ] { } 1 -1e9 nan . # = " ' \\u0000 call agent
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


class TestSecrets:
    ENVIRON = {  # noqa: RUF012
        "DEEPGRAM_API_KEY": " dg-very-secret\n",
        "TWILIO_ACCOUNT_SID": "AC-very-secret",
        "TWILIO_AUTH_TOKEN": "new-secret, old-secret,",
        "TWILIO_SIGNING_KEYS": "one=first-secret, two = second-secret==,",
        "BRIDGE_API_TOKEN": "api-secret",
    }

    def test_values_are_read_and_stripped(self) -> None:
        secrets = Secrets.from_environment(self.ENVIRON)
        assert secrets.deepgram_api_key == "dg-very-secret"
        assert secrets.twilio_auth_tokens == ("new-secret", "old-secret")
        assert secrets.twilio_signing_keys == {"one": "first-secret", "two": "second-secret=="}
        assert len(secrets.values()) == 7

    @pytest.mark.parametrize("value", ["5EC237", "=5EC237", "name=", "a=5EC237,5EC237"])
    def test_a_signing_key_without_a_name_is_refused_and_not_shown(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"^TWILIO_SIGNING_KEYS: .*NAME=SECRET") as caught:
            Secrets.from_environment({"TWILIO_SIGNING_KEYS": value})
        assert "5EC237" not in str(caught.value)

    @pytest.mark.parametrize(
        ("environ", "named"),
        [
            ({"TWILIO_API_KEY": "SK1"}, "TWILIO_API_SECRET"),
            ({"TWILIO_API_SECRET": "x"}, "TWILIO_API_KEY"),
            ({"TWILIO_REGION": "evil.example/"}, "TWILIO_REGION"),
            ({"TWILIO_EDGE": "dublin@evil"}, "TWILIO_EDGE"),
        ],
    )
    def test_half_a_login_or_a_strange_place_is_refused(
        self, environ: dict[str, str], named: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"^{named}: "):
            Secrets.from_environment(environ)

    @pytest.mark.parametrize("value", ['"abc"', "'abc'", '"abc, def"', "abc'"])
    def test_quotation_marks_are_noticed(self, value: str) -> None:
        assert Secrets.from_environment({"TWILIO_AUTH_TOKEN": value}).quoted == [
            "TWILIO_AUTH_TOKEN"
        ]
        keys = {"TWILIO_SIGNING_KEYS": f"name={value.replace(', ', '')}"}
        assert Secrets.from_environment(keys).quoted == ["TWILIO_SIGNING_KEYS"]
        assert Secrets.from_environment(self.ENVIRON).quoted == []

    def test_nothing_set(self) -> None:
        assert Secrets.from_environment({}) == Secrets()
        assert Secrets().values() == ()

    def test_no_value_is_ever_shown(self) -> None:
        secrets = Secrets.from_environment(self.ENVIRON)
        for text in (repr(secrets), str(secrets), f"{secrets}"):
            assert "secret" not in text.lower().removeprefix("secrets(")
        assert "deepgram_api_key: set" in repr(secrets)
        assert "api_token: not set" in repr(Secrets())

    def test_rich_does_not_show_them_either(self) -> None:
        pretty = pytest.importorskip("rich.pretty")
        assert "very" not in pretty.pretty_repr(Secrets.from_environment(self.ENVIRON))

    def test_they_reach_a_worker_process(self) -> None:
        secrets = Secrets.from_environment(self.ENVIRON)
        assert pickle.loads(pickle.dumps(secrets)) == secrets

    @pytest.mark.parametrize("value", ["se\ncret", "se\x00cret", "sécret", "\u202ex", "a\x7f"])
    def test_odd_characters_are_refused_by_name(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"^DEEPGRAM_API_KEY: ") as caught:
            Secrets.from_environment({"DEEPGRAM_API_KEY": value})
        assert "cret" not in str(caught.value)


TWILIO = Secrets(twilio_auth_tokens=("token",))


class TestStartup:
    def test_deepgrams_agent_needs_a_key(self) -> None:
        with pytest.raises(ConfigError, match=r"DEEPGRAM_API_KEY.*bridge agent"):
            check_startup(Settings(), TWILIO)
        check_startup(Settings(), Secrets(deepgram_api_key="key", twilio_auth_tokens=("token",)))

    @pytest.mark.parametrize(
        "host", ["127.0.0.1:9000", "[::1]:9000", "localhost", "agent.internal", "mydeepgram.com"]
    )
    def test_a_local_or_self_hosted_agent_may_not(self, host: str) -> None:
        check_startup(parse(f'[deepgram]\nurl = "ws://{host}/"'), TWILIO)

    @pytest.mark.parametrize("host", ["api.eu.deepgram.com", "x.us.api.deepgram.com:443"])
    def test_every_address_of_deepgrams_does(self, host: str) -> None:
        with pytest.raises(ConfigError):
            check_startup(parse(f'[deepgram]\nurl = "ws://{host}/"'), TWILIO)

    def test_without_a_token_signatures_cannot_be_checked_and_nothing_starts(self) -> None:
        key = Secrets(deepgram_api_key="key")
        with pytest.raises(ConfigError, match=r"^TWILIO_AUTH_TOKEN: .*validate_signatures = false"):
            check_startup(Settings(), key)
        check_startup(parse("[twilio]\nvalidate_signatures = false"), key)


class TestWarnings:
    def test_a_server_that_is_protected_has_none(self) -> None:
        assert warnings_for(Settings()) == []

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[twilio]\nvalidate_signatures = false", "twilio.validate_signatures is false"),
            ("[twilio]\nrequire_ticket = false", "twilio.require_ticket is false"),
            ('[deepgram]\nurl = "ws://10.0.0.7:9000/"', "unencrypted to 10.0.0.7; write wss://"),
            ('[server]\ntrusted_proxies = ["10.0.0.7", "::/0"]', "trusts every address"),
        ],
    )
    def test_each_protection_that_is_off_is_announced(self, text: str, words: str) -> None:
        (line,) = warnings_for(parse(text))
        assert words in line

    @pytest.mark.parametrize("url", ["ws://127.0.0.1:9000", "ws://localhost", "wss://10.0.0.7"])
    def test_an_agent_on_this_machine_or_behind_tls_is_none(self, url: str) -> None:
        assert warnings_for(parse(f'[deepgram]\nurl = "{url}"')) == []
