"""From type hints to the schema the agent gets, and from its JSON to keyword arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypedDict

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.caller import CallInfo
from bridge.functions import FunctionError
from bridge.functions.errors import BadArguments
from bridge.functions.parameters import parameters_of

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTheTypeChecker


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Guest:
    """Somebody who eats."""

    name: str
    age: Annotated[int, msgspec.Meta(description="in years", ge=0)] = 30
    wishes: list[str] = field(default_factory=list)


class Table(msgspec.Struct):
    seats: int
    guest: Guest | None = None


class Address(TypedDict):
    street: str


class ByCard(msgspec.Struct, tag="card"):
    number: str


class InCash(msgspec.Struct, tag="cash"):
    pass


@dataclass
class Folder:
    folders: list[Folder]


@dataclass
class OddNames:
    """Fields named as JSON Schema's own words."""

    title: str
    enum: int
    properties: bool
    default: str


@dataclass
class Range:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


GUEST = {
    "type": "object",
    "description": "Somebody who eats.",
    "properties": {
        "name": {"type": "string"},
        "age": {"description": "in years", "type": "integer", "minimum": 0, "default": 30},
        "wishes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
}
NULL = {"type": "null"}

SCHEMAS: list[tuple[Any, dict[str, Any]]] = [
    (int, {"type": "integer"}),
    (float, {"type": "number"}),
    (str, {"type": "string"}),
    (bool, {"type": "boolean"}),
    (Any, {}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
    (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
    (Literal[1, "a"], {"enum": [1, "a"]}),
    (Size, {"type": "string", "enum": ["large", "small"]}),
    (int | None, {"anyOf": [{"type": "integer"}, NULL]}),
    (Optional[str], {"anyOf": [{"type": "string"}, NULL]}),  # noqa: UP045
    (list[str], {"type": "array", "items": {"type": "string"}}),
    (list, {"type": "array"}),
    (Sequence[float], {"type": "array", "items": {"type": "number"}}),
    (dict, {"type": "object"}),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
    (
        tuple[int, str],
        {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": False,
        },
    ),
    (Guest, GUEST),
    (list[Guest], {"type": "array", "items": GUEST}),
    (
        Table,
        {
            "type": "object",
            "properties": {
                "seats": {"type": "integer"},
                "guest": {"anyOf": [GUEST, NULL], "default": None},
            },
            "required": ["seats"],
        },
    ),
    (
        Address,
        {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]},
    ),
    (
        OddNames,
        {
            "type": "object",
            "description": "Fields named as JSON Schema's own words.",
            "properties": {
                "title": {"type": "string"},
                "enum": {"type": "integer"},
                "properties": {"type": "boolean"},
                "default": {"type": "string"},
            },
            "required": ["title", "enum", "properties", "default"],
        },
    ),
    (Annotated[int, "24-hour clock"], {"type": "integer", "description": "24-hour clock"}),
    (
        Annotated[int, "how many", msgspec.Meta(ge=1, le=20)],
        {"type": "integer", "description": "how many", "minimum": 1, "maximum": 20},
    ),
    (
        Annotated[int, "a year"] | None,
        {"anyOf": [{"type": "integer", "description": "a year"}, NULL]},
    ),
    (
        list[Annotated[str, "a name"]],
        {"type": "array", "items": {"type": "string", "description": "a name"}},
    ),
    (Annotated[Guest, "the host"], {**GUEST, "description": "the host"}),
]


def taking(hint: Any, *default: Any) -> Callable[..., None]:
    """A function with one parameter, `x`."""

    def target(x: Any = default[0] if default else None) -> None: ...

    target.__annotations__ = {"x": hint}
    if not default:
        target.__defaults__ = None
    return target


@pytest.mark.parametrize(("hint", "schema"), SCHEMAS, ids=[str(hint) for hint, _ in SCHEMAS])
def test_the_schema_of_a_type(hint: Any, schema: dict[str, Any]) -> None:
    assert parameters_of(taking(hint), "f").schema == {
        "type": "object",
        "properties": {"x": schema},
        "required": ["x"],
    }


def test_a_tagged_union_is_written_out() -> None:
    schema = parameters_of(taking(ByCard | InCash), "f").schema
    kinds = [one["properties"]["type"]["enum"] for one in schema["properties"]["x"].pop("anyOf")]
    assert sorted(kinds) == [["card"], ["cash"]]
    assert schema["properties"]["x"] == {}, "nothing else, and no table of references"


def test_no_schema_refers_to_anything() -> None:
    for hint in [*(hint for hint, _ in SCHEMAS), ByCard | InCash, dict[str, Table]]:
        assert "$" not in json.dumps(parameters_of(taking(hint), "f").schema)


@pytest.mark.parametrize(
    ("hint", "default", "told"),
    [
        (int, 4, {"default": 4}),
        (str, "", {"default": ""}),
        (bool, False, {"default": False}),
        (list[int], [1], {"default": [1]}),
        (Size, Size.LARGE, {"default": "large"}),
        (Guest, Guest("Ada"), {"default": {"name": "Ada", "age": 30, "wishes": []}}),
        (int | None, None, {}),  # which mostly means: not given
        (int, "not a number", {}),
        (Any, object(), {}),
        (str, "\ud800", {}),
    ],
)
def test_a_default_is_told_when_json_can_say_it(
    hint: Any, default: Any, told: dict[str, Any]
) -> None:
    schema = parameters_of(taking(hint, default), "f").schema
    assert schema["required"] == []
    told_of_x = schema["properties"]["x"]
    assert {key: told_of_x[key] for key in told_of_x if key == "default"} == told


def test_no_parameters() -> None:
    def nothing() -> None: ...

    parameters = parameters_of(nothing, "f")
    assert parameters.schema == {"type": "object", "properties": {}, "required": []}
    assert parameters.read("{}") == {}


def test_call_info_is_not_the_agents_business() -> None:
    def f(a: int, call: CallInfo, same: Annotated[CallInfo, "again"], b: str = "") -> None: ...

    parameters = parameters_of(f, "f")
    assert parameters.info == ("call", "same")
    assert list(parameters.schema["properties"]) == ["a", "b"]
    with pytest.raises(BadArguments, match=r"unknown field `call`"):
        parameters.read('{"a":1,"call":{"caller":"+15551234567"}}')


def test_the_return_type_need_not_exist() -> None:
    def f(a: int) -> OnlyForTheTypeChecker:
        raise NotImplementedError

    assert parameters_of(f, "f").read('{"a":1}') == {"a": 1}


def no_hint(a: int, b) -> None: ...  # type: ignore[no-untyped-def]


def many(*guests: int) -> None: ...


def anything(**facts: int) -> None: ...


def by_position(a: int, /) -> None: ...


def unknown_hint(a: OnlyForTheTypeChecker) -> None: ...


def broken_hint(a: 1 + None) -> None: ...  # type: ignore[valid-type]


def complex_number(a: complex) -> None: ...


def callback(a: Callable[[int], int]) -> None: ...


def either(a: Guest | Table) -> None: ...


def tree(a: Folder) -> None: ...


def senseless(a: Annotated[str, msgspec.Meta(ge=3)]) -> None: ...


@pytest.mark.parametrize(
    ("implementation", "words"),
    [
        (no_hint, "m.f: parameter b has no type hint; write b: str, or its type"),
        (many, "m.f: *guests: 'int' cannot be described to the agent; name each parameter"),
        (anything, "m.f: **facts: 'int' cannot be described to the agent; name each parameter"),
        (by_position, "m.f: parameter a is positional-only, but the agent passes names; remove"),
        (unknown_hint, "m.f: its type hint OnlyForTheTypeChecker is not defined when bridge"),
        (broken_hint, "m.f: its type hints cannot be read: unsupported operand"),
        (complex_number, "m.f: parameter a: the type complex cannot be read from JSON; use int"),
        (callback, "m.f: parameter a: the type collections.abc.Callable[[int], int] cannot be"),
        (either, "cannot be read from JSON (Type unions may not contain more than one dict-like"),
        (tree, "m.f: parameter a: the type Folder contains itself, which not every model"),
        (senseless, "cannot be read from JSON (Can only set `ge` on a numeric type"),
    ],
)
def test_what_cannot_be_told_is_refused_with_a_remedy(
    implementation: Callable[..., Any], words: str
) -> None:
    with pytest.raises(FunctionError) as raised:
        parameters_of(implementation, "m.f")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def book(guests: int, hour: int = 19, host: Guest | None = None) -> None: ...


BOOK = parameters_of(book, "book")


def test_only_what_was_given_is_passed_on() -> None:
    """Python's own defaults apply to the rest, objects and all."""
    assert BOOK.read('{"guests":4}') == {"guests": 4}
    assert BOOK.read('{"guests":4,"host":{"name":"Ada"}}') == {"guests": 4, "host": Guest("Ada")}
    assert BOOK.read(' {"host":null, "guests":4} ') == {"guests": 4, "host": None}


@pytest.mark.parametrize("text", ["", "  \n", "{}", "null", " null "])
def test_no_arguments_in_every_spelling(text: str) -> None:
    assert parameters_of(taking(int, 3), "f").read(text) == {}


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, '"4"', 4),
        (int, "4.0", 4),
        (float, '"4.5"', 4.5),
        (bool, '"true"', True),
        (bool, '"False"', False),
        (int | None, '"4"', 4),
        (Literal[1, 2], '"2"', 2),
        (list[int], '["1", 2]', [1, 2]),
        (Guest, '{"name": "7", "age": "7"}', Guest("7", 7)),
        (str, '"4"', "4"),
        (int | str, '"4"', "4"),
        (str, '"true"', "true"),
    ],
)
def test_numbers_and_truths_as_text_are_read(hint: Any, text: str, value: Any) -> None:
    given = parameters_of(taking(hint), "f").read(f'{{"x":{text}}}')
    assert repr(given) == repr({"x": value})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Object missing required field `guests`; the parameters are: guests, hour, host"),
        ('{"guests":"four"}', "guests: Expected `int`, got `str`"),
        ('{"guests":"4.5"}', "guests: Expected `int`, got `str`"),
        ('{"guests":4.5}', "guests: Expected `int`, got `float`"),
        ('{"guests":true}', "guests: Expected `int`, got `bool`"),
        ('{"guests":1e400}', "guests: Number out of range"),
        ('{"guests":null}', "guests: Expected `int`, got `null`"),
        ('{"guests":4,"host":{"name":7}}', "host.name: Expected `str`, got `int`"),
        ('{"guests":4,"host":{}}', "host: Object missing required field `name`"),
        (
            '{"guests":4,"our":20}',
            "Object contains unknown field `our`; the parameters are: guests, hour, host",
        ),
        ("[4]", "Expected `object`, got `array`; the parameters are: guests, hour, host"),
        ('"4"', "Expected `object`, got `str`; the parameters are: guests, hour, host"),
        ("{guests: 4}", "the arguments are not a JSON object"),
        ('{"guests":4', "the arguments are not a JSON object"),
        ('{"guests":4}{"guests":4}', "the arguments are not a JSON object"),
        ("\ud800", "the arguments are not a JSON object"),
        ('{"guests":' + "[" * 100_000, "guests: Expected `int`, got `array`"),
    ],
)
def test_what_does_not_fit_is_explained(text: str, words: str) -> None:
    with pytest.raises(BadArguments) as raised:
        BOOK.read(text)
    assert str(raised.value) == words


def test_arguments_nested_without_end() -> None:
    with pytest.raises(BadArguments):
        parameters_of(taking(Any), "f").read('{"x":' + "[" * 100_000)


def test_an_explanation_has_an_end() -> None:
    with pytest.raises(BadArguments) as raised:
        BOOK.read(json.dumps({"guests": 1, "x" * 100_000: 1}))
    assert len(str(raised.value)) < 1000


def test_a_class_can_check_its_fields() -> None:
    with pytest.raises(BadArguments, match=r"^x: low is above high$"):
        parameters_of(taking(Range), "f").read('{"x":{"low":2,"high":1}}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
ODD = st.fixed_dictionaries({}, optional=dict.fromkeys(("guests", "hour", "host", "x"), JSON))


@given(st.text() | JSON.map(json.dumps) | ODD.map(json.dumps))
@example('{"guests":' + "9" * 5000 + "}")
@example("\x00")
def test_no_arguments_raise_anything_else(text: str) -> None:
    try:
        given = BOOK.read(text)
    except BadArguments:
        return
    assert isinstance(given["guests"], int)


@pytest.mark.parametrize(
    "hint",
    [int, float, str, bool, Size, Guest, Table, int | None, list[Guest], dict[str, bool],
     Literal["a", 3], tuple[int, str]],
)  # fmt: skip
def test_what_has_the_type_fits(hint: Any) -> None:
    parameters = parameters_of(taking(hint), "f")
    finite = {float: st.floats(allow_nan=False, allow_infinity=False)}

    @given(finite.get(hint, st.from_type(hint)))
    def check(value: Any) -> None:
        if hint in (Guest, Table, list[Guest]):
            try:
                msgspec.convert(msgspec.to_builtins(value), hint)
            except msgspec.ValidationError:
                return  # an age below zero, which its description forbids
        text = msgspec.json.encode({"x": value}).decode()
        assert parameters.read(text) == {"x": value}

    check()
