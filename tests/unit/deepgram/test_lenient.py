"""Messages of a known type in another shape: what is understood of them."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.deepgram import messages
from bridge.deepgram.messages import BadMessage, FunctionCall, parse_leniently


def read(kind: str, **fields: Any) -> Any:
    return parse_leniently(json.dumps({"type": kind, **fields}))


def call(**fields: Any) -> FunctionCall:
    (one,) = read("FunctionCallRequest", functions=[fields]).functions
    assert isinstance(one, FunctionCall)
    return one


def test_a_function_call_that_can_be_named_is_understood() -> None:
    assert call(name="book", arguments={"guests": 2}) == FunctionCall(
        name="book", arguments='{"guests":2}'
    )
    assert call(id=7, name="book", client_side=None) == FunctionCall(id="7", name="book")
    assert call(id="a", name="book", client_side="false", arguments=None) == FunctionCall(
        id="a", name="book", client_side=False
    )


def test_one_odd_call_does_not_cost_the_others() -> None:
    request = read("FunctionCallRequest", functions=[None, 3, {"id": "a", "name": "book"}])
    assert request.functions == (FunctionCall(id="a", name="book"),)
    assert read("FunctionCallRequest", functions=None).functions == ()
    lone = read("FunctionCallRequest", functions={"name": "book"})
    assert lone.functions == (FunctionCall(name="book"),)


def test_an_error_is_not_overlooked() -> None:
    assert read("Error", code=None, description="bad") == messages.Error(description="bad")
    assert read("Error", code=500, description={"a": 1}) == messages.Error("500", '{"a":1}')


def test_the_rest() -> None:
    assert read("Welcome", request_id=None) == messages.Welcome()
    assert read("FunctionCallResponse", id=None, content=[1]) == messages.FunctionCallResponse(
        content="[1]"
    )
    assert read("LatencyReport", tts_latency="0.25", total_latency="soon", stt_latency=True) == (
        messages.LatencyReport(tts_latency=0.25)
    )
    assert read("LatencyReport", tts_latency="nan") == messages.LatencyReport()
    assert read("History", role=None, content=5) == messages.History(content="5")


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{}", '{"type":"New"}', '{"type":[]}'])
def test_what_is_no_message_of_a_known_type_is_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        parse_leniently(text)


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
kinds = sorted(kind.__struct_config__.tag for kind in get_args(messages.Message))
names = ["id", "name", "functions", "code", "description", "role", "content", "arguments"]


@given(st.sampled_from(kinds), st.dictionaries(st.sampled_from(names), values))
def test_any_shape_of_a_known_type_is_understood(kind: str, fields: dict[str, Any]) -> None:
    message = read(kind, **fields)
    assert type(message).__struct_config__.tag == kind
