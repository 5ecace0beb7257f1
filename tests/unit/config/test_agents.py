"""The agent of a call: which one answers, how its tables differ, and what Deepgram is sent."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config.agent import BESIDE_AGENT, default_agent, merged
from bridge.config.settings import PER_AGENT, ConfigError, Settings
from bridge.config.toml import parse
from bridge.config.warnings import warnings_for
from bridge.deepgram.settings import settings_message
from bridge.testing.agent.schema import SETTINGS, check_settings
from tests.unit.scribbling import scribble

CONFIG = """
[agent]
greeting = "Hello!"
[agent.think]
prompt = "Be kind."
[agent.think.provider]
temperature = 0.5
[agent.listen.provider]
keyterms = ["a", "b"]

[call]
idle_seconds = 20

[words]
busy = "Busy."

[deepgram.settings]
mip_opt_out = true
tags = ["all"]
flags = { history = true }

[agents.sales]
numbers = ["+15557654321", "+15557654322"]
greeting = "Sales, good morning!"
[agents.sales.think.provider]
model = "gpt-4o"
[agents.sales.listen.provider]
keyterms = ["c"]
[agents.sales.words]
still_there = "Still with me?"
[agents.sales.call]
max_minutes = 5
[agents.sales.functions]
transfer_to = { desk = "+15551112222" }
[agents.sales.limits]
calls_per_number = 2
[agents.sales.deepgram.settings]
tags = ["sales"]

[agents.night]
numbers = ["+15550000000"]
"""
ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return str(caught.value)


# ---- who answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("+15557654321", "sales"),
        ("+15557654322", "sales"),
        ("+15550000000", "night"),
        ("+15559999999", ""),
        ("", ""),
        ("anonymous", ""),
        ("5557654321", ""),
        # A number's calls by WhatsApp reach the same agent.
        ("whatsapp:+15557654321", "sales"),
    ],
)
def test_a_number_decides_which_agent_answers(called: str, name: str) -> None:
    assert parse(CONFIG).agent_for(called) == name


@pytest.mark.parametrize(
    ("line", "called", "answers"),
    [
        ("sip:sales@Example.sip.twilio.com", "sip:sales@example.SIP.twilio.com", True),
        ("sip:sales@example.com", "sip:sales@example.com:5060;transport=tls", True),
        ("sip:sales@example.com;user=phone", "sips:sales@example.com?X-Id=1", True),
        ("sip:sales@example.com", "SIP:sales@example.com", True),
        ("sip:+15551234567@example.com", "sip:+15551234567@example.com", True),
        ("sip:sales@[2001:db8::1]", "sip:sales@[2001:DB8::1]:5060", True),
        ("sip:sales@example.com", "sip:Sales@example.com", False),
        ("sip:sales@example.com", "sip:sales@example.org", False),
        ("client:sales", "client:sales", True),
        ("client:sales", "client:Sales", False),
        ("client:sales", "sales", False),
        ("whatsapp:+15557654321", "whatsapp:+15557654321", True),
        ("whatsapp:+15557654321", "+15557654321", False),
    ],
)
def test_other_addresses_than_numbers_choose_an_agent(
    line: str, called: str, answers: bool
) -> None:
    settings = parse(f"[agents.x]\nnumbers = ['{line}']")
    assert settings.agent_for(called) == ("x" if answers else "")


def test_whatsapp_may_have_an_agent_of_its_own() -> None:
    settings = parse(
        "[agents.voice]\nnumbers = ['+15557654321']\n"
        "[agents.chat]\nnumbers = ['whatsapp:+15557654321']"
    )
    assert settings.agent_for("whatsapp:+15557654321") == "chat"
    assert settings.agent_for("+15557654321") == "voice"


def test_one_address_in_two_forms_belongs_to_one_agent() -> None:
    text = "agents.a.numbers = ['sip:a@x.com']\nagents.b.numbers = ['sip:a@X.com;transport=tls']"
    assert "already belongs to agents.a" in problem(text)


def test_on_an_outbound_call_the_name_decides() -> None:
    settings = parse(CONFIG)
    assert settings.agent_for("+15557654321", "night") == "night"
    assert settings.agent_for("+15557654321", "") == ""
    assert settings.agent_for("+15557654321", "gone") == ""


# ---- how its settings differ ----------------------------------------------------------------


def test_an_agent_says_only_how_it_differs() -> None:
    settings = parse(CONFIG)
    sales = settings.for_agent("sales")
    assert sales.agent["greeting"] == "Sales, good morning!"
    assert sales.agent["think"]["prompt"] == "Be kind."
    assert sales.agent["think"]["provider"] == {
        "type": "open_ai",
        "model": "gpt-4o",
        "temperature": 0.5,
    }
    assert sales.agent["listen"]["provider"]["keyterms"] == ["c"]
    assert (sales.words.busy, sales.words.still_there) == ("Busy.", "Still with me?")
    assert (sales.call.idle_seconds, sales.call.max_minutes) == (20, 5)
    assert sales.functions.transfer_to == {"desk": "+15551112222"}
    assert sales.limits.calls_per_number == 2
    assert sales.deepgram.settings == {
        "mip_opt_out": True,
        "tags": ["sales"],
        "flags": {"history": True},
    }
    assert sales.deepgram.url == settings.deepgram.url


@pytest.mark.parametrize("name", ["", "night", "gone"])
def test_an_agent_that_differs_in_nothing_has_the_common_settings(name: str) -> None:
    settings = parse(CONFIG)
    assert settings.for_agent(name) == settings


def test_the_settings_of_an_agent_have_an_agents_settings_again() -> None:
    sales = parse(CONFIG).for_agent("sales")
    assert sales.for_agent("sales") == sales


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("call.idle_secs = 3", "agents.x.call.idle_secs: unknown key; did you mean"),
        ("call.idle_seconds = '3'", "agents.x.call.idle_seconds: expected a number"),
        ("call.start_timeout = 3", "the same for all agents; set it in [call]"),
        ("call.teardown_seconds = 3", "the same for all agents; set it in [call]"),
        ("limits.account_calls = 3", "the same for all agents; set it in [limits]"),
        ("deepgram.url = 'ws://127.0.0.1'", "the same for all agents; set it in [deepgram]"),
        ("deepgram.settings.mip_optout = true", "did you mean mip_opt_out?"),
        ("words.keypad = 'x'", "agents.x.words.keypad: expected {digits} in it"),
        ("functions.transfer_to = { a = '1' }", "agents.x.functions.transfer_to: a: expected"),
        ("word = { busy = 'x' }", "agents.x.word: unknown table; did you mean [agents.x.words]?"),
        ("words = 3", "agents.x.words: expected a table, got 3"),
        ("[agents.'']\nnumbers = ['+15550001111']", "an agent needs a name"),
    ],
)
def test_its_tables_are_checked_like_the_common_ones(line: str, expected: str) -> None:
    assert expected in problem(f"[agents.x]\nnumbers = ['+15557654321']\n{line}")


def test_a_table_that_deepgram_may_add_is_passed_on() -> None:
    text = "numbers = ['+15557654321']\ncallbacks.x = 1\nthink_live.model = 'y'"
    agent = parse(f"[agents.x]\n{text}").for_agent("x").agent
    assert (agent["callbacks"], agent["think_live"]) == ({"x": 1}, {"model": "y"})


def test_the_keys_that_may_differ_exist() -> None:
    for table, keys in PER_AGENT.items():
        assert keys <= set(type(getattr(Settings(), table)).__struct_fields__)


# ---- [agent], whole or in part ---------------------------------------------------------------


def test_an_agent_given_in_part_is_merged_over_the_default_one() -> None:
    agent = parse("[agent.think]\nprompt = 'Be brief.'").agent
    expected = default_agent()
    expected["think"]["prompt"] = "Be brief."
    assert agent == expected


def test_an_empty_greeting_lets_the_caller_speak_first() -> None:
    agent = parse("[agent]\ngreeting = ''").agent
    assert "greeting" not in json.loads(settings_message(agent))["agent"]
    assert json.loads(settings_message(default_agent()))["agent"]["greeting"]


# Providers of every kind, each with an option that the others of its section refuse.
LISTEN = [
    {"type": "deepgram", "model": "nova-3", "language": "fr", "smart_format": True},
    {"type": "deepgram", "version": "v1", "model": "nova-2", "language": "fr"},
    {"type": "deepgram", "version": "v2", "model": "flux-general-en", "eot_threshold": 0.8},
    {"type": "deepgram", "version": "v2", "model": "flux-general-multi", "language_hints": ["fr"]},
]
SPEAK = [
    {"type": "deepgram", "model": "aura-2-thalia-en", "speed": 0.9},
    {"type": "deepgram", "version": "v2", "model": "flux-kit-en", "expressivity": 1},
    {"type": "open_ai", "model": "tts-1", "voice": "alloy"},
    {"type": "cartesia", "model_id": "sonic-2", "voice": {"id": "a"}, "language": "fr"},
]
THINK = [
    {"type": "open_ai", "model": "gpt-4o-mini", "temperature": 0.5},
    {"type": "open_ai", "model": "gpt-5", "reasoning_mode": "low"},
    {"type": "anthropic", "model": "claude-sonnet-4-5", "temperature": 1},
]
PAIRS = [
    (section, base, changes)
    for section, providers in (("listen", LISTEN), ("speak", SPEAK), ("think", THINK))
    for base, changes in itertools.permutations(providers, 2)
]


@pytest.mark.parametrize(("section", "base", "changes"), PAIRS)
def test_an_agent_may_have_a_provider_of_any_other_kind(
    section: str, base: dict[str, Any], changes: dict[str, Any]
) -> None:
    """The strict schema accepts what comes of it: no option of the other provider is left."""
    settings = Settings(
        agent={section: {"provider": base}},
        agents={"x": {"numbers": ["+15557654321"], section: {"provider": changes}}},
    )
    agent = settings.for_agent("x").agent
    check_settings(json.loads(settings_message(agent)))
    assert changes.items() <= agent[section]["provider"].items()


def test_a_model_of_another_family_keeps_nothing_but_the_type() -> None:
    base = {"type": "open_ai", "model": "gpt-4o-mini", "temperature": 0.5}
    for model, expected in {
        "gpt-4o": {**base, "model": "gpt-4o"},
        "gpt-5-mini": {"type": "open_ai", "model": "gpt-5-mini"},
    }.items():
        assert merged({"provider": base}, {"provider": {"model": model}}) == {"provider": expected}


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 2}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [{"b": 1}]}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3}}}, {"a": {"b": {"c": 3, "d": 2}}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
        ({"a": {"type": "x", "b": 1}}, {"a": {"type": "y"}}, {"a": {"type": "y"}}),
        (
            {"a": {"type": "x", "b": 1}},
            {"a": {"type": "x", "c": 2}},
            {"a": {"type": "x", "b": 1, "c": 2}},
        ),
        (
            {"a": {"type": "x", "model": "m", "b": 1}},
            {"a": {"version": "v1"}},
            {"a": {"type": "x", "model": "m", "b": 1, "version": "v1"}},
        ),
    ],
)
def test_tables_are_merged_and_all_else_is_replaced(
    base: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merged(base, changes) == expected


trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), st.integers() | st.lists(st.integers())),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner | st.integers()),
)


@given(trees, trees, st.sampled_from(["x", ""]))
def test_the_settings_are_never_touched(
    base: dict[str, Any], changes: dict[str, Any], name: str
) -> None:
    agents = {"x": {"numbers": ["+15557654321"], **changes}}
    settings = Settings(agent=base, agents=agents)
    before = copy.deepcopy((base, agents))
    scribble(settings.for_agent(name).agent)
    assert (settings.agent, settings.agents) == before


# ---- an agent that Deepgram stores -----------------------------------------------------------


@pytest.mark.parametrize("table", ["agent", "agents.x"])
def test_a_stored_configuration_is_sent_as_its_id_alone(table: str) -> None:
    text = f"[{table}]\nid = '{ID}'"
    settings = parse(text + ("\nnumbers = ['+15557654321']" if table == "agents.x" else ""))
    agent = settings.for_agent("x" if table == "agents.x" else "").agent
    function = {"name": "f", "description": "", "parameters": {}}
    history = [{"type": "History", "role": "user", "content": "Hi"}]
    message = json.loads(settings_message(agent, [function], history, {"mip_opt_out": True}))
    assert (message["agent"], message["mip_opt_out"]) == (ID, True)
    check_settings(message)
    (warning,) = warnings_for(settings)
    assert warning.startswith(f"{table}.id: bridge adds no functions")


def test_it_cannot_be_changed_in_part() -> None:
    assert "agent.greeting: a stored configuration (agent.id) holds all" in problem(
        f"[agent]\nid = '{ID}'\ngreeting = 'Hi'"
    )
    assert problem("[agent]\nid = 'front desk'").endswith('got "front desk"; write its UUID')


def test_another_agent_beside_it_differs_from_the_default_one() -> None:
    settings = parse(
        f"[agent]\nid = '{ID}'\n[agents.x]\nnumbers = ['+15557654321']\ngreeting = 'Hi'\n"
        "[agents.y]\nnumbers = ['+15557654322']\nwords.busy = 'Busy.'"
    )
    assert settings.for_agent("x").agent == {**default_agent(), "greeting": "Hi"}
    assert settings.for_agent("y").agent == {"id": ID}


# ---- what is sent beside it ------------------------------------------------------------------


def test_deepgrams_own_switches_are_sent_beside_the_agent() -> None:
    beside = parse(
        "[deepgram.settings]\nmip_opt_out = true\ntags = ['a']\nexperimental = true\n"
        "flags = { history = false }\nsomething_new = { x = 1 }"
    ).deepgram.settings
    message = json.loads(settings_message(default_agent(), beside=beside))
    assert beside.items() <= message.items()
    assert "mip_opt_out" not in json.loads(settings_message(default_agent()))


@pytest.mark.parametrize("key", BESIDE_AGENT)
def test_none_of_them_belongs_in_an_agent(key: str) -> None:
    assert key in SETTINGS
    assert problem(f"[agent]\n{key} = true").endswith(
        f"agent.{key}: belongs in [deepgram.settings]"
    )
    assert problem(f"[agents.x]\nnumbers = ['+15557654321']\n{key} = true").endswith(
        f"agents.x.{key}: belongs in [agents.x.deepgram.settings]"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mip_opt_out = 'yes'", 'mip_opt_out: expected true or false, got "yes"'),
        ("mip_opt_ou = true", "unknown key mip_opt_ou; did you mean mip_opt_out?"),
        ("tags = 'a'", "tags: expected a list of texts"),
        ("audio = {}", "audio is bridge's own"),
        ("agent = 'x'", "agent is bridge's own"),
    ],
)
def test_a_switch_that_would_be_ignored_is_refused(line: str, expected: str) -> None:
    assert expected in problem(f"[deepgram.settings]\n{line}")


@pytest.mark.parametrize("key", [*PER_AGENT, "numbers"])
def test_a_table_of_bridges_in_agent_is_refused(key: str) -> None:
    assert f"agent.{key}: " in problem(f"[agent]\n{key} = {{}}")
