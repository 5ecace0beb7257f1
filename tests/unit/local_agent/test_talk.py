"""Conversations with the restaurant, as text: what the agent answers, and what it asks for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.local_agent.dialogue import dialogue_of, load_dialogue
from bridge.local_agent.talk import CallFunction, SayText, Talk, declared
from bridge.local_agent.understanding import Understanding

DIALOGUE = load_dialogue()
UNDERSTANDING = Understanding(DIALOGUE)
FUNCTIONS: dict[str, Any] = {"book_table": {}, "end_call": {}, "transfer_call": {}}


@pytest.fixture
def talk() -> Talk:
    return Talk(DIALOGUE, UNDERSTANDING, FUNCTIONS)


def said(step: object) -> str:
    assert isinstance(step, SayText)
    return step.text


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("When are you open?", "hours"),
        ("what’s your address", "place"),
        ("What's on the menu?", "food"),
        ("hello, can you hear me", "hello"),
        ("please repeat that", "repeat"),
        ("Could you repeat that, please?", "repeat"),
        ("um so when are you open tomorrow then", "hours"),
        ("I need a reservation", "book"),
        ("I want to talk... no, to speak to somebody human", "person"),
        ("thank you goodbye", "goodbye"),
        ("they painted the kitchen bright yellow", None),
        ("seven", None),
        ("", None),
        ("yes and then she said no", None),
    ],
)
def test_which_turn_a_text_is(text: str, turn: str | None) -> None:
    meaning = UNDERSTANDING.meaning(text)
    assert (meaning and meaning.turn.name) == turn


@given(st.text(max_size=500))
def test_no_text_is_too_much_for_it(text: str) -> None:
    conversation = Talk(DIALOGUE, UNDERSTANDING, FUNCTIONS)
    assert isinstance(conversation.hear(text), SayText | CallFunction)


def test_a_table_in_one_breath(talk: Talk) -> None:
    step = talk.hear("A table for 4 at 7:30 on Friday, please")
    arguments = {"guests": 4, "time": "19:30", "day": "friday"}
    assert step == CallFunction("book_table", arguments)
    assert said(talk.answered('{"table": 3}')).startswith(
        "Table 3 is yours: for four, on friday at seven thirty."
    )


def test_what_is_missing_is_asked_for(talk: Talk) -> None:
    assert said(talk.hear("I would like to book a table")) == "For how many people?"
    assert said(talk.hear("for four people")) == "At what time?"
    step = talk.hear("seven o'clock")
    assert step == CallFunction("book_table", {"guests": 4, "time": "19:00", "day": "today"})


def test_an_answer_is_taken_for_what_was_asked(talk: Talk) -> None:
    """Seven may be people or a time."""
    talk.hear("book a table")
    assert said(talk.hear("seven")) == "At what time?"
    step = talk.hear("seven")
    assert isinstance(step, CallFunction)
    assert (step.arguments["guests"], step.arguments["time"]) == (7, "19:00")


def test_what_is_no_answer_is_asked_again_and_something_else_is_answered(talk: Talk) -> None:
    talk.hear("book a table")
    assert said(talk.hear("they painted the kitchen")).endswith("For how many people?")
    assert said(talk.hear("please repeat that")) == "For how many people?"
    assert said(talk.hear("four")) == "At what time?"
    assert said(talk.hear("when are you open")).startswith("We are open")
    assert said(talk.hear("seven")) in DIALOGUE.file.unknown


def test_a_name_is_remembered(talk: Talk) -> None:
    assert said(talk.hear("my name is Maria")) == "Nice to meet you, Maria. What can I do for you?"
    step = talk.hear("a table for two at eight")
    assert isinstance(step, CallFunction)
    assert step.arguments["name"] == "Maria"
    assert said(talk.answered('{"table": 1}')).startswith("Thank you, Maria, table 1 is yours")


@pytest.mark.parametrize(
    ("answer", "begins"),
    [
        ('{"error": "full"}', "I am sorry, we have no table for two tonight at eight."),
        ("not JSON", "Table  is yours"),
        ("[" * 50_000, "Table  is yours"),
    ],
)
def test_what_a_function_answers(talk: Talk, answer: str, begins: str) -> None:
    talk.hear("a table for two at eight")
    assert said(talk.answered(answer)).startswith(begins)


def test_repeat_is_what_was_said_last(talk: Talk) -> None:
    assert said(talk.hear("say that again")) == DIALOGUE.file.greeting
    hours = said(talk.hear("when are you open"))
    talk.hear("something it does not know")
    assert said(talk.hear("say that again")) == hours


def test_goodbye_is_end_call_and_then_words(talk: Talk) -> None:
    assert talk.hear("goodbye") == CallFunction("end_call", {})
    assert said(talk.answered('{"result": "…"}')).startswith("Goodbye!")


def test_functions_the_client_has_not(talk: Talk) -> None:
    talk.functions = {}
    assert said(talk.hear("a table for two at eight")) == DIALOGUE.file.undeclared
    assert said(talk.hear("can I speak to a person")) == DIALOGUE.file.undeclared
    assert said(talk.hear("goodbye")).startswith("Goodbye!"), "and the caller hangs up"


def test_who_the_client_can_transfer_to(talk: Talk) -> None:
    one_of = {"properties": {"destination": {"enum": ["sales", "kitchen"]}}}
    assert talk.hear("can I speak to a person") == CallFunction(
        "transfer_call", {"destination": "reception"}
    )
    talk.abandon()
    talk.functions = {"transfer_call": one_of}
    assert talk.hear("can I speak to a person") == CallFunction(
        "transfer_call", {"destination": "sales"}
    )


@pytest.mark.parametrize(
    ("think", "names"),
    [
        ({"functions": [{"name": "a", "parameters": {"type": "object"}}]}, {"a"}),
        ([{"functions": [{"name": "a"}]}, {"functions": [{"name": "b"}]}], {"a"}),
        ({}, set()),
        (None, set()),
        ({"functions": [3, {"name": 4}]}, set()),
    ],
)
def test_what_the_client_declares(think: Any, names: set[str]) -> None:
    assert declared(think).keys() == names


def test_a_dialogue_without_slots() -> None:
    small = dialogue_of({"turns": [{"name": "hi", "phrases": ["hello"], "reply": "Hi."}]})
    talk = Talk(small, Understanding(small))
    assert said(talk.hear("Hello!")) == "Hi."
    assert said(talk.hear("please repeat")) in small.file.unknown
