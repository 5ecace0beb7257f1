"""The filling in of an agent's greeting and prompt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.caller import CallInfo
from bridge.deepgram.template import VALUE_LIMIT, fill, fill_in, variables_of
from tests.unit.scribbling import scribble

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)
values = st.text(st.characters(exclude_categories=("Cs",)))
# Text in which braces and names are likely.
templates = st.lists(st.one_of(st.sampled_from(["{", "}", "a", "b", "0", " "]), values)).map(
    "".join
)


# ---- what a template may name ---------------------------------------------------------------


def test_the_facts_of_the_call_outrank_what_others_say_of_it() -> None:
    info = CallInfo(
        caller="+15551234567",
        called="+15557654321",
        parameters={"caller": "the president", "plan": "basic", "campaign": "spring"},
    )
    assert variables_of(info, {"called": "elsewhere", "plan": "gold"}) == {
        "caller": "+15551234567",
        "called": "+15557654321",
        "plan": "gold",
        "campaign": "spring",
    }


def test_a_withheld_number_has_words_of_its_own() -> None:
    info = CallInfo(caller="", called="+15557654321", parameters={"From": "+266696687"})
    variables = variables_of(info, {}, withheld="un numéro inconnu")
    assert fill("{caller}, {From}", variables) == ("un numéro inconnu, un numéro inconnu", [])


# ---- the template ---------------------------------------------------------------------------

VARIABLES = {"name": "Ada", "x1": "1", "_u": "u"}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("Hello {name}, {x1}{_u}!", "Hello Ada, 1u!"),
        ("{{name}}", "{name}"),
        ("{{{name}}}", "{Ada}"),
        ("{{{{", "{{"),
        ("a { b } c", "a { b } c"),
        ("{", "{"),
        ("{name", "{name"),
        ("{}", "{}"),
        ("{0}", "{0}"),
        ("{ name }", "{ name }"),
        ("{name.upper}", "{name.upper}"),
        ("{name.__class__.__mro__}", "{name.__class__.__mro__}"),
        ("{name[0]}", "{name[0]}"),
        ("{name!r}", "{name!r}"),
        ("{name:>100}", "{name:>100}"),
        ("{näme}", "{näme}"),
        ("%(name)s $name ${name}", "%(name)s $name $Ada"),
        ('{"plan": "{name}"}', '{"plan": "Ada"}'),
    ],
)
def test_a_name_in_braces_is_replaced_and_nothing_else(template: str, filled: str) -> None:
    assert fill(template, VARIABLES) == (filled, [])


def test_unknown_names_stay_as_written_and_are_told_once() -> None:
    assert fill("{b} {name} {a} {b}", VARIABLES) == ("{b} Ada {a} {b}", ["b", "a"])


@given(templates, st.dictionaries(names, values))
def test_no_template_and_no_value_is_too_strange(template: str, variables: dict[str, str]) -> None:
    _filled, unknown = fill(template, variables)
    assert not set(unknown) & set(variables)
    assert len(unknown) == len(set(unknown))


@given(st.dictionaries(names, templates, min_size=1))
def test_a_value_is_never_a_template(variables: dict[str, str]) -> None:
    """A chosen value cannot reveal another variable, in any order of replacement."""
    secret = {**variables, "secret": "S3CRET"}
    for name in variables.keys() - {"secret"}:
        filled, unknown = fill(f"{{{name}}}", {**secret, name: variables[name] + "{secret}"})
        assert "S3CRET" not in filled.replace(variables[name], "")
        assert unknown == []


@given(st.text(st.characters(categories=("Cc", "Cs", "Zl", "Zp", "Lu"))))
def test_a_value_is_one_short_line_that_can_be_sent(value: str) -> None:
    filled, _ = fill("{v}", {"v": value})
    assert filled.isprintable()
    assert len(filled) <= VALUE_LIMIT
    assert filled == filled.strip()
    filled.encode()


def test_words_around_a_line_break_stay_two() -> None:
    assert fill("<{v}>", {"v": "\nAda\r\n\r\nLovelace\0 "}) == ("<Ada Lovelace>", [])


@pytest.mark.parametrize("hidden", ["\u202e", "\u2066", "\u2028", "\U000e0041", "\x1b", "\x85"])
def test_invisible_characters_are_not_passed_on(hidden: str) -> None:
    assert fill("{v}", {"v": f"a{hidden}b"}) == ("a b", [])


def test_long_values_are_cut() -> None:
    assert fill("{v}!", {"v": "x" * 10_000}) == ("x" * VALUE_LIMIT + "!", [])


# ---- greeting and prompt --------------------------------------------------------------------


def test_greeting_and_prompt_are_filled_in() -> None:
    agent = {
        "greeting": "Hello {name}!",
        "think": {"prompt": "You talk to {name}.", "provider": {"model": "{name}"}},
        "speak": {"prompt": "{name}"},
    }
    before = copy.deepcopy(agent)
    assert fill_in(agent, VARIABLES) == {
        "greeting": "Hello Ada!",
        "think": {"prompt": "You talk to Ada.", "provider": {"model": "{name}"}},
        "speak": {"prompt": "{name}"},
    }
    assert agent == before


def test_every_think_provider_is_filled_in() -> None:
    agent = {"think": [{"prompt": "{name}"}, {"provider": {}}, {"prompt": "2 {name}"}]}
    assert fill_in(agent, VARIABLES) == {
        "think": [{"prompt": "Ada"}, {"provider": {}}, {"prompt": "2 Ada"}]
    }


@pytest.mark.parametrize(
    "agent",
    [{}, {"greeting": 7, "think": "none"}, {"think": [1, {"prompt": None}]}, {"think": {}}],
)
def test_a_greeting_or_prompt_that_is_not_text_is_left_to_deepgram(agent: dict[str, Any]) -> None:
    assert fill_in(agent, VARIABLES) == agent


def test_unknown_names_are_logged_in_one_line_and_values_never() -> None:
    agent = {"greeting": "{name} {nobody}", "think": [{"prompt": "{nobody}"}, {"prompt": "{it}"}]}
    with capture_logs() as lines:
        fill_in(agent, {"name": "Ada Lovelace"})
    assert [(line["log_level"], line["names"]) for line in lines] == [("warning", ["nobody", "it"])]
    assert "Lovelace" not in str(lines)


def test_nothing_is_logged_when_all_names_are_known() -> None:
    with capture_logs() as lines:
        fill_in({"greeting": "{name} {{x}}"}, VARIABLES)
    assert lines == []


def test_the_copy_is_whole() -> None:
    agent: dict[str, Any] = {"think": {"functions": [{"name": "f"}]}, "greeting": "x"}
    before = copy.deepcopy(agent)
    scribble(fill_in(agent, {}))
    assert agent == before
