"""What users mark, and what the agent is told of it."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from deepgram.types.think_settings_v1functions_item import ThinkSettingsV1FunctionsItem
from pydantic import TypeAdapter

from bridge.caller import CallInfo
from bridge.config.settings import ConfigError
from bridge.functions import Function, FunctionError, Functions, function
from bridge.testing.agent.schema import check_think


@function
async def book_table(
    guests: int, hour: Annotated[int, "24-hour clock"], call: CallInfo, terrace: bool = False
) -> dict[str, int]:
    """Book a table
    for tonight.

    Of no interest to the agent.
    """
    return {"guests": guests, "hour": hour}


@function(name="opening-hours", deadline=2.5, defer_until_eot=True)
def hours() -> str:
    return "9 to 5"


BOTH = Functions.of(book_table, hours)


def test_the_agent_is_told() -> None:
    assert BOTH.schemas() == [
        {
            "name": "book_table",
            "description": "Book a table for tonight.",
            "parameters": {
                "type": "object",
                "properties": {
                    "guests": {"type": "integer"},
                    "hour": {"type": "integer", "description": "24-hour clock"},
                    "terrace": {"type": "boolean", "default": False},
                },
                "required": ["guests", "hour"],
            },
        },
        {
            "name": "opening-hours",
            "parameters": {"type": "object", "properties": {}, "required": []},
            "defer_until_eot": True,
        },
    ]


def test_the_official_sdk_reads_what_the_agent_is_told() -> None:
    for entry in BOTH.schemas():
        read = TypeAdapter(ThinkSettingsV1FunctionsItem).validate_python(entry)
        assert set(entry) <= set(ThinkSettingsV1FunctionsItem.model_fields)
        assert json.loads(read.json(exclude_unset=True)) == entry
        assert read.endpoint is None, "client-side"


def test_a_strict_agent_accepts_it() -> None:
    provider = {"type": "open_ai", "model": "gpt-4o-mini"}
    check_think({"provider": provider, "functions": BOTH.schemas()})


def test_what_is_told_can_be_changed_without_harm() -> None:
    BOTH.schemas()[0]["parameters"]["properties"].clear()
    assert BOTH.schemas()[0]["parameters"]["properties"]


async def test_a_marked_function_stays_what_it_was() -> None:
    assert await book_table(2, 20, CallInfo()) == {"guests": 2, "hour": 20}
    assert hours() == "9 to 5"


def test_a_mark_stays_with_its_function() -> None:
    """No global table: what one module marks, another does not see."""

    @function
    def only_here() -> None: ...

    assert [one.name for one in Functions.of(only_here)] == ["only_here"]
    assert BOTH.get("only_here") is None


def test_looking_up() -> None:
    found = BOTH.get("opening-hours")
    assert found is not None
    assert (found.deadline, found.defer_until_eot, found.is_async) == (2.5, True, False)
    assert BOTH.get("hours") is None
    assert [one.name for one in BOTH] == ["book_table", "opening-hours"]
    assert (len(BOTH), len(Functions())) == (2, 0)
    assert repr(BOTH) == "Functions(book_table, opening-hours)"


def test_adding_makes_new_ones() -> None:
    class Desk:
        async def end_call(self, reason: str) -> None:
            """End the call."""

    more = BOTH + Functions.of(Desk().end_call)
    assert [one.name for one in more] == ["book_table", "opening-hours", "end_call"]
    assert len(BOTH) == 2
    assert more.schemas()[2]["parameters"]["required"] == ["reason"], "a method's self is bound"


def test_two_of_one_name_are_refused() -> None:
    @function(name="book_table")
    def other() -> None: ...

    with pytest.raises(FunctionError, match=r"other: .*book_table is called book_table, too; ren"):
        BOTH + Functions.of(other)
    assert len(BOTH + BOTH) == 2, "the same one twice is one"


def test_a_decorator_below_the_mark_or_above_it() -> None:
    def logged(implementation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(implementation)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return implementation(*args, **kwargs)

        return wrapper

    @function(name="below")
    @logged
    def one(a: int) -> None: ...

    @logged
    @function(name="above")
    def two(a: int) -> None: ...

    for entry in Functions.of(one, two).schemas():
        assert entry["name"] in ("below", "above")
        assert entry["parameters"]["properties"] == {"a": {"type": "integer"}}


@pytest.mark.parametrize("name", ["", "a b", "a.b", "größe", "x" * 65, "a\n", "<lambda>", 7])
def test_names_the_agent_does_not_take(name: Any) -> None:
    @function(name=name)
    def f() -> None: ...

    with pytest.raises(
        FunctionError, match=r"f: the agent accepts no function called .*give it @fu"
    ):
        Function.of(f)


@pytest.mark.parametrize("name", ["a", "-", "_", "x" * 64, "Book-Table_2"])
def test_names_it_takes(name: str) -> None:
    @function(name=name)
    def f() -> None: ...

    assert Function.of(f).schema()["name"] == name


@pytest.mark.parametrize("deadline", [0, -1, float("inf"), float("nan"), True, "5"])
def test_deadlines_that_are_none(deadline: Any) -> None:
    @function(deadline=deadline)
    def f() -> None: ...

    with pytest.raises(FunctionError, match=r"f: expected a deadline in seconds above 0, got"):
        Function.of(f)


def test_generators_are_refused() -> None:
    def one() -> Iterator[int]:
        yield 1

    async def two() -> AsyncIterator[int]:
        yield 1

    for implementation in (one, two):
        with pytest.raises(
            FunctionError, match=r"is a generator, but the agent accepts one answer; return"
        ):
            Function.of(implementation)


@pytest.mark.parametrize("target", ["book_table", CallInfo, len, functools.partial(hours), 3])
def test_only_functions_can_be_marked(target: Any) -> None:
    with pytest.raises(FunctionError, match=r"expected a function, got .*put @function"):
        function(target)
    with pytest.raises(FunctionError, match=r"expected a function, got .*write a def"):
        Function.of(target)


def test_an_error_is_an_error_of_the_configuration() -> None:
    """So that whoever starts the server shows it as one line."""
    assert issubclass(FunctionError, ConfigError)
    assert "\n" not in str(FunctionError("two\nlines"))
