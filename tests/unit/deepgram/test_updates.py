"""Changes in mid-call: the messages as the official SDK knows them, and the table that is kept."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import pytest

from bridge.config.agent import default_agent
from bridge.deepgram.messages import encode
from bridge.deepgram.settings import uses_flux
from bridge.deepgram.updates import AgentTable, Changes, checked
from bridge.testing.agent.schema import check_listen, check_speak, check_think

with warnings.catch_warnings():
    # Of the websockets library, which the SDK imports by names deprecated there.
    warnings.simplefilter("ignore", DeprecationWarning)
    from deepgram.agent.v1 import types as sdk

MODELS: dict[str, Any] = {
    "UpdatePrompt": sdk.AgentV1UpdatePrompt,
    "UpdateThink": sdk.AgentV1UpdateThink,
    "UpdateSpeak": sdk.AgentV1UpdateSpeak,
    "UpdateListen": sdk.AgentV1UpdateListen,
}
FUNCTIONS = [{"name": "end_call", "parameters": {"type": "object", "properties": {}}}]
FLUX = {"provider": {"type": "deepgram", "version": "v2", "model": "flux-general-multi"}}
CLAUDE = {"type": "anthropic", "model": "claude-sonnet-5"}


def table(**changes: Any) -> AgentTable:
    one = AgentTable()
    one.opened({**default_agent(), **changes})
    return one


def sent(one: AgentTable, changes: Changes) -> list[dict[str, Any]]:
    """The messages, as they are on the wire: each one that the SDK and the strict schema take."""
    given = [json.loads(encode(message)) for message in one.update(changes, FUNCTIONS)]
    for message in given:
        MODELS[message["type"]].model_validate(message, strict=True)
        match message["type"]:
            case "UpdateThink":
                check_think(message["think"], live=False)
            case "UpdateSpeak":
                check_speak(message["speak"], {"encoding": "mulaw", "container": "none"})
            case "UpdateListen":
                check_listen(message["listen"])
    return given


def test_a_prompt_is_added_as_deepgram_adds_it() -> None:
    one = table()
    before = one.now["think"]["prompt"]
    assert sent(one, Changes(prompt="Be brief.")) == [
        {"type": "UpdatePrompt", "prompt": "Be brief."}
    ]
    assert one.now["think"]["prompt"] == f"{before}\nBe brief."


def test_a_prompt_in_think_replaces_it_and_the_functions_stay() -> None:
    one = table()
    (message,) = sent(one, Changes(think={"prompt": "You are a pirate."}))
    assert message["think"] == {
        "prompt": "You are a pirate.",
        "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
        "functions": FUNCTIONS,
    }
    assert "functions" not in one.now["think"], "settings_message adds them"


def test_another_provider_replaces_the_one_before() -> None:
    one = table(think={"provider": {"type": "open_ai", "model": "gpt-4o", "reasoning_mode": "low"}})
    (message,) = sent(one, Changes(think={"provider": CLAUDE}))
    assert message["think"]["provider"] == CLAUDE


def test_a_prompt_beside_think_is_a_part_of_it() -> None:
    (message,) = sent(table(), Changes("Be brief.", think={"prompt": "You are a pirate."}))
    assert message["think"]["prompt"] == "You are a pirate.\nBe brief."


def test_several_providers_to_fall_back_on_are_all_told() -> None:
    several = [{"provider": CLAUDE, "prompt": "a"}, {"provider": CLAUDE, "prompt": "b"}]
    one = table(think=several)
    sent(one, Changes(prompt="c"))
    assert [think["prompt"] for think in one.now["think"]] == ["a\nc", "b\nc"]
    (message,) = sent(one, Changes(think=several[:1]))
    assert message["think"] == [{**several[0], "functions": FUNCTIONS}]


@pytest.mark.parametrize(
    ("provider", "voice", "changed"),
    [
        (
            {"type": "deepgram", "model": "aura-2-thalia-en"},
            "aura-2-agathe-fr",
            {"type": "deepgram", "model": "aura-2-agathe-fr"},
        ),
        (
            {"type": "deepgram", "model": "aura-2-thalia-en"},
            "flux-alexis-en",
            {"type": "deepgram", "version": "v2", "model": "flux-alexis-en"},
        ),
        (
            {"type": "open_ai", "model": "tts-1", "voice": "alloy"},
            "nova",
            {"type": "open_ai", "model": "tts-1", "voice": "nova"},
        ),
        (
            {"type": "cartesia", "model_id": "sonic", "voice": {"mode": "id", "id": "1"}},
            "2",
            {"type": "cartesia", "model_id": "sonic", "voice": {"mode": "id", "id": "2"}},
        ),
    ],
)
def test_a_voice(provider: Any, voice: str, changed: Any) -> None:
    speak = {"provider": provider}
    if provider["type"] == "open_ai":
        speak["endpoint"] = {"url": "https://api.openai.com/v1/audio/speech"}
    one = table(speak=speak)
    (message,) = sent(one, Changes(speak=one.voice(voice)))
    assert message == {"type": "UpdateSpeak", "speak": {**speak, "provider": changed}}


@pytest.mark.parametrize(
    "speak",
    [{"provider": {"type": "eleven_labs", "model_id": "x"}}, [{"provider": {"type": "deepgram"}}]],
)
def test_a_voice_that_is_not_named_by_one_key(speak: Any) -> None:
    with pytest.raises(ValueError, match=r"^voice: .*use speak$"):
        table(speak=speak).voice("somebody")


def test_listen_sends_what_changes_and_what_deepgram_would_forget() -> None:
    provider = {**FLUX["provider"], "language_hints": ["en"], "keyterms": ["Aura"]}
    one = table(listen={"provider": provider})
    (message,) = sent(one, Changes(listen={"provider": {"eot_threshold": 0.8}}))
    assert message["listen"]["provider"] == {
        **FLUX["provider"],
        "language_hints": ["en"],
        "eot_threshold": 0.8,
    }
    assert one.now["listen"]["provider"] == {**provider, "eot_threshold": 0.8}


def test_another_kind_of_ears_takes_other_messages() -> None:
    one = table()
    assert not uses_flux(one.now)
    sent(one, Changes(listen=FLUX))
    assert uses_flux(one.now)


def test_only_what_was_acknowledged_survives_an_error() -> None:
    one = table()
    first = one.now
    assert not one.take_back(), "nothing was changed"
    sent(one, Changes(prompt="Be brief.", speak=one.voice("aura-2-agathe-fr")))
    one.acknowledged()
    assert one.take_back()
    assert one.now is first, "one of two was acknowledged"

    sent(one, Changes(prompt="Be brief."))
    second = one.now
    one.acknowledged()
    sent(one, Changes(speak=one.voice("nobody")))
    assert one.take_back()
    assert one.now is second

    sent(one, Changes(speak=one.voice("nobody")))
    third = one.now
    one.opened(third)
    assert not one.take_back(), "a session was opened with it"


def test_a_table_that_calls_share_is_not_changed() -> None:
    shared = default_agent()
    one = AgentTable()
    one.opened(shared)
    everything = Changes("p", {"prompt": "x"}, one.voice("aura-2-agathe-fr"), FLUX)
    assert len(one.update(everything, FUNCTIONS)) == 3
    assert shared == default_agent()


def test_a_stored_configuration_is_told_its_changes_again() -> None:
    one = AgentTable()
    stored = {"id": "f81d4fae"}
    assert one.opened(stored) == []
    first = one.update(Changes(prompt="Be brief."), FUNCTIONS)
    one.acknowledged()
    second = one.update(Changes(listen=FLUX), FUNCTIONS)
    assert one.opened(one.now) == [*first, *second]

    one.update(Changes(speak={"provider": {"colour": "blue"}}), FUNCTIONS)
    assert one.take_back()
    assert one.opened(one.now) == [*first, *second], "without what was refused"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": 5}, "prompt: Expected `str`, got `int`"),
        ({"think": 5}, "think: Expected `object | array | null`, got `int`"),
        ({"speak": ["x"]}, "speak[0]: Expected `object`, got `str`"),
        ({"listen": {"provider": "nova"}}, "listen[...]: Expected `object`, got `str`"),
        ({"think": {"prompt": object()}}, "a change: Encoding objects of type object is unsup"),
    ],
)
def test_what_is_not_a_change_is_refused_where_it_is_written(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        checked(**changes)
    assert checked(prompt="a", speak=[{"x": 1}]) == Changes("a", speak=[{"x": 1}])
