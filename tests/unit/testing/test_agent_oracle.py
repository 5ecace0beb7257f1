"""The official SDK as oracle: its types for all that the agent sends, its client for a session."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import trio

from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.agent.voice import hum
from tests.unit.testing.agent_client import Client, connected, settings

with warnings.catch_warnings():
    # Of the websockets library, which the SDK imports by names deprecated there.
    warnings.simplefilter("ignore", DeprecationWarning)
    from deepgram.agent.v1 import types as sdk
    from deepgram.agent.v1.socket_client import V1SocketClientResponse

MODELS: dict[str, type[Any]] = {
    "Welcome": sdk.AgentV1Welcome,
    "SettingsApplied": sdk.AgentV1SettingsApplied,
    "ConversationText": sdk.AgentV1ConversationText,
    "UserStartedSpeaking": sdk.AgentV1UserStartedSpeaking,
    "AgentThinking": sdk.AgentV1AgentThinking,
    "FunctionCallRequest": sdk.AgentV1FunctionCallRequest,
    "FunctionCallCancelled": sdk.AgentV1FunctionCallCancelled,
    "FunctionCallResponse": sdk.AgentV1ReceiveFunctionCallResponse,
    "AgentStartedSpeaking": sdk.AgentV1AgentStartedSpeaking,
    "AgentAudioDone": sdk.AgentV1AgentAudioDone,
    "LatencyReport": sdk.AgentV1LatencyReport,
    "PromptUpdated": sdk.AgentV1PromptUpdated,
    "SpeakUpdated": sdk.AgentV1SpeakUpdated,
    "ThinkUpdated": sdk.AgentV1ThinkUpdated,
    "ThinkLiveUpdated": sdk.AgentV1ThinkLiveUpdated,
    "ListenUpdated": sdk.AgentV1ListenUpdated,
    "InjectionRefused": sdk.AgentV1InjectionRefused,
    "Error": sdk.AgentV1Error,
    "Warning": sdk.AgentV1Warning,
}
# Sent by real servers, unknown to the SDK: EndOfTurn was seen with Flux; SomethingNew stands for
# all that is to come.
UNKNOWN_TO_SDK = {"EndOfTurn": {"type", "trigger"}}
FUNCTIONS = [
    {"name": "get_time", "arguments": {"zone": "UTC"}, "thought_signature": "abc"},
    {"name": "lookup", "client_side": False, "response": "{}"},
]


def check(message: dict[str, Any]) -> None:
    """Fail unless the SDK's model takes the message with no field missing and none too many."""
    kind = message["type"]
    if kind in UNKNOWN_TO_SDK:
        assert message.keys() == UNKNOWN_TO_SDK[kind]
        return
    if kind == "History":
        calls = "function_calls" in message
        model: Any = sdk.FunctionCallHistoryMessage if calls else sdk.ConversationHistoryMessage
    else:
        model = MODELS[kind]
    assert_no_extras(model.model_validate(message, strict=True))


def assert_no_extras(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            assert_no_extras(item)
    elif hasattr(value, "model_extra"):
        assert not value.model_extra, f"{type(value).__name__} does not have {value.model_extra}"
        for name in type(value).model_fields:
            assert_no_extras(getattr(value, name))


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "Welcome"},
        {"type": "Welcome", "request_id": "1", "session_id": "2"},
        {"type": "Error", "message": "no description", "code": "X"},
        {"type": "FunctionCallRequest", "functions": [{"id": "1", "name": "n", "arguments": {}}]},
        {"type": "History", "role": "user"},
    ],
)
def test_the_oracle_notices_a_wrong_message(broken: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(broken)


async def everything(session: AgentSession) -> None:
    await session.wait_for_end_of_speech()
    await session.user_said("Hello.")
    await session.say("One. Two.")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.call_functions, FUNCTIONS)
        nursery.start_soon(session.call_functions, [{"name": "slow"}])
        await session.wait_until(lambda: any(call.response for call in session.calls.all.values()))
        await session.wait_for_message("FunctionCallResponse")
        await session.cancel_functions()
    await session.warning("SLOW_THINK_REQUEST", "We have now waited 5 seconds.")
    await session.wait_for_message("UpdateListen")
    await session.error("INTERNAL_SERVER_ERROR", "It broke.")


async def provoke(client: Client) -> None:
    """Do all that makes the agent send something."""
    await client.wait_for("AgentAudioDone")
    await client.send({"type": "InjectUserMessage", "content": "typed"})
    await client.speak(hum(0.5))
    await client.send({"type": "InjectAgentMessage", "message": "Refused."})
    await client.speak(b"\xff" * 8000)
    await client.wait_for("FunctionCallRequest", 2)
    requests = client.all("FunctionCallRequest")
    function = next(r for r in requests if len(r["functions"]) == 2)["functions"][0]
    answer = {key: function[key] for key in ("id", "name", "thought_signature")}
    await client.send({"type": "FunctionCallResponse", "content": "noon", **answer})
    think = {"provider": {"type": "open_ai", "model": "m"}, "prompt": "p" * 25_001}
    live = {"provider": {"type": "deepgram", "version": "v1"}}
    await client.send({"type": "UpdatePrompt", "prompt": "more"})
    await client.send({"type": "UpdateThink", "think": think})
    await client.send({"type": "UpdateThink_Live", "think_live": live})
    speak = {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}}
    await client.send({"type": "UpdateSpeak", "speak": speak})
    await client.wait_for("FunctionCallCancelled")
    listen = {"provider": {"type": "deepgram", "version": "v2", "model": "flux-general-multi"}}
    await client.send({"type": "UpdateListen", "listen": listen})
    await client.wait_gone()


async def test_every_message_the_agent_can_send_is_one_the_sdk_knows(autojump_clock) -> None:
    listen = {"provider": {"type": "deepgram", "version": "v2", "model": "flux-general-multi"}}
    live = {"provider": {"type": "deepgram", "version": "v1"}}
    first = {**settings("Hello.", listen=listen, think_live=live), "experimental": True}
    agent = SimulatedAgent(everything, Behaviour(agent_thinking=True))
    async with connected(agent, first) as client:
        await provoke(client)
    seen = [message for _, message in client.received if isinstance(message, dict)]
    for message in seen:
        check(message)
    missing = MODELS.keys() | UNKNOWN_TO_SDK.keys() | {"History"}
    assert missing - {message["type"] for message in seen} == set(), "every type was tried"


def test_the_oracle_has_every_type_of_the_sdk() -> None:
    """A type that the SDK gains is to be looked at here."""
    known = set(MODELS.values()) | {bytes}
    known |= {sdk.FunctionCallHistoryMessage, sdk.ConversationHistoryMessage}
    rest = {getattr(t, "__name__", str(t)) for t in set(V1SocketClientResponse.__args__) - known}
    # Think Live and custom think providers, both by invitation only.
    assert rest == {"AgentV1FrustrationDetected", "AgentV1CustomFromThinkProvider"}
