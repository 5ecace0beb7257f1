"""What each start tells of valid settings."""

from __future__ import annotations

from importlib.resources import files

import pytest

from bridge.config.settings import Settings
from bridge.config.toml import parse
from bridge.config.warnings import warnings_for
from bridge.config.words import Words

FRENCH = (files("bridge.config") / "languages" / "fr.toml").read_text("utf-8")


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


@pytest.mark.parametrize(
    ("voice", "language", "told"),
    [
        ("Google.fr-FR-Chirp3-HD-Aoede", "fr-FR", False),
        ("Google.fr-FR-Chirp3-HD-Aoede", "en-US", True),
        ("Google.cmn-CN-Standard-A", "", True),
        ("Polly.Lea-Neural", "en-US", False),
    ],
)
def test_a_voice_of_another_language_is_told_at_the_start(
    voice: str, language: str, told: bool
) -> None:
    words = f"{{ voice = '{voice}', language = '{language}' }}"
    settings = parse(f"words = {words}\n[agents.x]\nnumbers = ['+15557654321']\nwords = {words}")
    keys = [line.partition(":")[0] for line in warnings_for(settings) if "speaks" in line]
    assert keys == (["words.voice", "agents.x.words.voice"] if told else [])


def test_words_that_are_left_in_english_are_told_at_the_start() -> None:
    (line,) = warnings_for(
        parse(
            FRENCH + "[agents.x]\nnumbers = ['+15557654321']\n"
            f"words.busy = '{Words().busy}'\nwords.withheld = '{Words().withheld}'"
        )
    )
    assert "agents.x.words.language: fr-FR, while these are still English: busy, withheld;" in line
    assert warnings_for(parse(FRENCH)) == []
