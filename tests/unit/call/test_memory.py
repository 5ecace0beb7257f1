"""What a new session is told of the conversation, and what it is asked again."""

from __future__ import annotations

from typing import Any

from bridge.call.memory import HISTORY_ITEMS, INTERRUPTED, Memory
from bridge.deepgram.messages import CancelledFunction, FunctionCall


def item(role: str, content: str) -> dict[str, Any]:
    return {"type": "History", "role": role, "content": content}


def told(memory: Memory) -> list[str]:
    """The context of a new session, in short."""
    return [
        str(one.get("content") or [call["name"] for call in one["function_calls"]])
        for one in memory.resume() or []
    ]


def asked() -> Memory:
    """A greeting, an answered question, and one that is not answered."""
    memory = Memory()
    memory.history(item("assistant", "Hello."))
    for question, answer in (("One?", "Yes."), ("Two?", "")):
        memory.caller_said(question)
        memory.history(item("user", question))
        if answer:
            memory.history(item("assistant", answer))
            memory.replied()
    return memory


def test_a_conversation_that_has_not_begun_begins_anew() -> None:
    memory = Memory()
    memory.history(item("assistant", "Hello."))
    assert memory.resume() is None
    assert memory.unanswered == ""


def test_a_greeting_that_was_heard_is_not_repeated() -> None:
    memory = Memory()
    memory.history(item("assistant", "Hello."))
    memory.begun = True
    assert told(memory) == ["Hello."]


def test_a_turn_without_a_reply_is_asked_again_and_not_in_the_context() -> None:
    memory = asked()
    assert told(memory) == ["Hello.", "One?", "Yes."]
    assert memory.unanswered == "Two?"


def test_several_lines_are_one_turn() -> None:
    memory = asked()
    memory.caller_said("Or three?")
    memory.history(item("user", "Or three?"))
    assert told(memory) == ["Hello.", "One?", "Yes."]
    assert memory.unanswered == "Two? Or three?"


def test_an_answer_that_nobody_heard_is_no_answer() -> None:
    memory = asked()
    memory.history(item("assistant", "It is two."))
    assert told(memory) == ["Hello.", "One?", "Yes."]
    assert memory.unanswered == "Two?"


def test_an_answer_that_was_heard_is_one() -> None:
    memory = asked()
    memory.history(item("assistant", "It is two."))
    memory.replied()
    assert told(memory)[-2:] == ["Two?", "It is two."]
    assert memory.unanswered == ""


def test_the_next_session_may_be_lost_as_well() -> None:
    memory = asked()
    told(memory)
    memory.history(item("user", "Two?"))
    assert told(memory) == ["Hello.", "One?", "Yes."]
    assert memory.unanswered == "Two?"


def test_no_context_ends_with_words_of_the_caller() -> None:
    """Their History came after the reply had begun; a session might answer them, or not."""
    memory = asked()
    memory.replied()
    memory.history(item("user", "Three?"))
    assert told(memory) == ["Hello.", "One?", "Yes."]
    assert memory.unanswered == "Two? Three?"


def test_what_an_earlier_leg_left_open_stays_in_the_context() -> None:
    memory = Memory([item("assistant", "Hello."), item("user", "One?")])
    assert told(memory) == ["Hello.", "One?"]
    assert memory.unanswered == ""


def test_without_history_the_words_are_known_all_the_same() -> None:
    """`flags.history = false` in the Settings."""
    memory = Memory()
    memory.caller_said("One?")
    assert memory.resume() == []
    assert memory.unanswered == "One?"


BOOK = FunctionCall(id="fc_1", name="book", arguments='{"guests": 2}', thought_signature="s")


def test_a_function_that_was_cut_short_is_told() -> None:
    memory = asked()
    memory.functions_called([BOOK])
    assert (memory.resume() or [])[-1] == {
        "type": "History",
        "function_calls": [
            {
                "id": "fc_1",
                "name": "book",
                "client_side": True,
                "arguments": '{"guests": 2}',
                "response": INTERRUPTED,
                "thought_signature": "s",
            }
        ],
    }
    assert memory.unanswered == "Two?"


def test_a_function_that_has_answered_is_told_with_its_answer() -> None:
    """The session broke between the answer and its History."""
    memory = asked()
    memory.functions_called([BOOK])
    memory.function_answered("fc_1", '"table 7"')
    memory.function_answered("fc_9", "nobody's")
    (call,) = (memory.resume() or [])[-1]["function_calls"]
    assert call["response"] == '"table 7"'


def test_a_function_in_history_is_told_once_and_stays_although_its_turn_goes() -> None:
    """It has happened; asked again without it, a model would book a second table."""
    memory = asked()
    memory.functions_called([BOOK])
    memory.history({"type": "History", "function_calls": [{"id": "fc_1", "name": "book"}]})
    assert told(memory) == ["Hello.", "One?", "Yes.", "['book']"]


def test_a_cancelled_function_is_not_told() -> None:
    memory = asked()
    memory.functions_called([BOOK])
    memory.functions_cancelled([CancelledFunction(id="fc_1")])
    assert told(memory) == ["Hello.", "One?", "Yes."]


def test_the_memory_is_bounded() -> None:
    memory = asked()
    for n in range(3 * HISTORY_ITEMS):
        memory.caller_said("again")
        memory.history(item("user", "again"))
        memory.functions_called([FunctionCall(id=str(n), name="f")])
    assert len(memory.resume() or []) == HISTORY_ITEMS
    assert memory.unanswered.count("again") <= HISTORY_ITEMS
    memory.replied()
    for _ in range(2 * HISTORY_ITEMS):
        memory.history(item("assistant", "on and on"))
    assert len(memory.resume() or []) == HISTORY_ITEMS
