"""Voice Agent messages, both ways, against the official SDK's typed models."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from deepgram.agent.v1 import types as sdk
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from bridge.config.agent import default_agent
from bridge.deepgram import messages
from bridge.deepgram.messages import BadMessage, parse
from bridge.deepgram.settings import settings_message

FROM_AGENT: dict[str, dict[str, Any]] = {
    "Welcome": {"request_id": "r"},
    "SettingsApplied": {},
    "ConversationText": {"role": "user", "content": "hi"},
    "UserStartedSpeaking": {},
    "AgentThinking": {"content": "hm"},
    "AgentStartedSpeaking": {"total_latency": 1.2, "tts_latency": 0.3, "ttt_latency": 0.9},
    "AgentAudioDone": {},
    "EndOfTurn": {"trigger": "manual"},
    "FunctionCallRequest": {
        "functions": [{"id": "f", "name": "n", "arguments": "{}", "client_side": True}]
    },
    "FunctionCallCancelled": {"functions": [{"id": "f", "name": "n"}]},
    "FunctionCallResponse": {"id": "f", "name": "n", "content": "{}"},
    "LatencyReport": {"stt_latency": 0.1},
    "History": {"role": "assistant", "content": "hello"},
    "PromptUpdated": {},
    "SpeakUpdated": {},
    "ThinkUpdated": {},
    "ListenUpdated": {},
    "InjectionRefused": {"message": "busy"},
    "Error": {"description": "d", "code": "C"},
    "Warning": {"description": "d", "code": "C"},
}


# Undocumented, or a union with a name of its own.
NOT_IN_THE_SDK = {"EndOfTurn", "History", "FunctionCallResponse"}


def test_the_catalogue_is_whole() -> None:
    assert {kind.__struct_config__.tag for kind in get_args(messages.Message)} == set(FROM_AGENT)


@pytest.mark.parametrize("kind", FROM_AGENT)
def test_every_message_is_understood(kind: str) -> None:
    message = parse(json.dumps({"type": kind, **FROM_AGENT[kind], "a_new_field": [1]}))
    assert type(message).__name__ == kind
    for field, value in FROM_AGENT[kind].items():
        if not isinstance(value, list):
            assert getattr(message, field) == value


@pytest.mark.parametrize("kind", FROM_AGENT)
def test_no_field_is_relied_upon(kind: str) -> None:
    assert type(parse(json.dumps({"type": kind}))).__name__ == kind


def sdk_model(kind: str) -> Any:
    return getattr(sdk, f"AgentV1{kind}")


@pytest.mark.parametrize("kind", sorted(set(FROM_AGENT) - NOT_IN_THE_SDK))
def test_our_examples_are_what_the_official_sdk_takes(kind: str) -> None:
    model = sdk_model(kind)
    TypeAdapter(model).validate_python({"type": kind, **FROM_AGENT[kind]})


def test_both_shapes_of_history() -> None:
    spoken = parse('{"type":"History","role":"user","content":"hi"}')
    assert spoken == messages.History(role="user", content="hi")
    called = parse('{"type":"History","function_calls":[{"id":"f","name":"n","response":"r"}]}')
    assert isinstance(called, messages.History)
    assert called.function_calls == ({"id": "f", "name": "n", "response": "r"},)


def test_an_error_of_an_older_server() -> None:
    error = parse('{"type":"Error","message":"We waited too long"}')
    assert isinstance(error, messages.Error)
    assert error.reason == "We waited too long"


def test_unknown_types_are_named_not_refused() -> None:
    assert parse('{"type":"FrustrationDetected","count":3}') == messages.Unknown(
        "FrustrationDetected"
    )


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parse(text)
    except BadMessage:
        pass


@given(
    st.sampled_from(sorted(FROM_AGENT)),
    st.dictionaries(
        st.sampled_from(["content", "functions", "code", "role", "stt_latency"]),
        st.none() | st.integers() | st.text() | st.lists(st.integers()),
    ),
)
def test_no_shape_of_a_known_type_raises_anything_else(kind: str, fields: dict[str, Any]) -> None:
    try:
        parse(json.dumps({"type": kind, **fields}))
    except BadMessage:
        pass


@pytest.mark.parametrize(
    ("message", "model"),
    [
        (messages.KeepAlive(), "KeepAlive"),
        (messages.InjectAgentMessage("bye"), "InjectAgentMessage"),
        (messages.InjectAgentMessage("bye", behavior="queue"), "InjectAgentMessage"),
        (messages.FunctionResult("f", "n", "{}"), "SendFunctionCallResponse"),
        (messages.FunctionResult("f", "n", "{}", "sig"), "SendFunctionCallResponse"),
    ],
)
def test_the_official_sdk_reads_what_we_send(message: messages.ToAgent, model: str) -> None:
    written = json.loads(messages.encode(message))
    read = TypeAdapter(sdk_model(model)).validate_python(written)
    for field, value in written.items():
        assert getattr(read, field) == value


def test_the_official_sdk_reads_our_settings() -> None:
    written = json.loads(settings_message(default_agent()))
    read = TypeAdapter(sdk_model("Settings")).validate_python(written)
    assert read.audio.input.encoding == "mulaw"
    assert read.audio.output.container == "none"
    assert read.agent.greeting == default_agent()["greeting"]
    # The SDK writes out which version of a provider it took the settings for; the rest is ours.
    assert json.loads(read.json(exclude_unset=True).replace('"version":"v1",', "")) == written


def test_the_official_sdk_reads_what_stands_beside_the_agent_and_a_stored_one() -> None:
    beside = {"mip_opt_out": True, "tags": ["a"], "experimental": True, "flags": {"history": True}}
    stored = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
    written = json.loads(settings_message({"id": stored}, beside=beside))
    read = TypeAdapter(sdk_model("Settings")).validate_python(written)
    assert (read.agent, read.mip_opt_out, read.flags.history) == (stored, True, True)
    assert json.loads(read.json(exclude_unset=True)) == written


def test_settings_pass_the_agent_through_untouched() -> None:
    agent = {"greeting": "Grüß Gott", "listen": {"provider": {"n": 8000, "f": 0.5, "x": [None]}}}
    text = settings_message(agent)
    assert json.loads(text)["agent"] == agent
    assert '"n":8000,' in text
    assert json.loads(text)["audio"] == {
        "input": {"encoding": "mulaw", "sample_rate": 8000},
        "output": {"encoding": "mulaw", "sample_rate": 8000, "container": "none"},
    }


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


def test_functions_are_added_behind_the_tables_own() -> None:
    think = {"provider": {"type": "open_ai", "model": "m"}, "functions": [{"name": "own"}]}
    written = json.loads(settings_message({"think": think}, [FUNCTION]))
    assert written["agent"]["think"]["functions"] == [{"name": "own"}, FUNCTION]
    several = json.loads(settings_message({"think": [think, think]}, [FUNCTION]))
    assert [len(one["functions"]) for one in several["agent"]["think"]] == [2, 2]
    assert think["functions"] == [{"name": "own"}], "the configuration is not changed"


def test_an_agent_without_think_stays_without() -> None:
    """Half a think block is refused by the agent, and the call with it."""
    assert json.loads(settings_message({"greeting": "Hi"}, [FUNCTION]))["agent"] == {
        "greeting": "Hi"
    }


def test_a_resumed_conversation_has_its_history_and_no_greeting() -> None:
    history = [{"type": "History", "role": "user", "content": "hello"}]
    agent = {"greeting": "Hi", "context": {"messages": [{"role": "assistant", "content": "x"}]}}
    written = json.loads(settings_message(agent, history=history))["agent"]
    assert written == {"context": {"messages": [*agent["context"]["messages"], *history]}}
    assert json.loads(settings_message(agent, history=[]))["agent"] == {"context": agent["context"]}
