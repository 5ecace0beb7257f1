"""The secrets of the environment, and what a server does not start without."""

from __future__ import annotations

import pickle

import pytest

from bridge.config.secrets import Secrets, check_startup
from bridge.config.settings import ConfigError, Settings
from bridge.config.toml import parse


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
