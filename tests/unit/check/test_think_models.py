"""Which models an agent can think with, as Deepgram answers it and as a check tells it."""

from __future__ import annotations

import httpx
import pytest
from deepgram.types.agent_think_models_v1response import AgentThinkModelsV1Response

from bridge.check.agent import other_models
from bridge.check.think_models import think_models
from bridge.config.agent import default_agent

ANSWER = {
    "models": [
        {"id": "gpt-5-mini", "name": "GPT-5 mini", "provider": "open_ai"},
        {"id": "gpt-4o-mini", "name": "GPT-4o mini", "provider": "open_ai", "new": {"x": 1}},
        {"id": "claude-sonnet-4-5", "name": "Claude", "provider": "anthropic"},
    ]
}


def answering(response: httpx.Response, asked: list[httpx.Request]) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return response

    return httpx.MockTransport(answer)


async def test_the_agents_own_server_is_asked_with_the_key() -> None:
    AgentThinkModelsV1Response.model_validate(ANSWER)
    asked: list[httpx.Request] = []
    models = await think_models(
        "wss://api.eu.deepgram.com/v1/agent/converse?x=1",
        "dg-key",
        answering(httpx.Response(200, json=ANSWER), asked),
    )
    assert models == {
        "open_ai": ["gpt-5-mini", "gpt-4o-mini"],
        "anthropic": ["claude-sonnet-4-5"],
    }
    assert asked[0].url == "https://api.eu.deepgram.com/v1/agent/settings/think/models"
    assert asked[0].headers["Authorization"] == "Token dg-key"


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(404, text="Not Found"),
        httpx.Response(401, json={"err_code": "INVALID_AUTH"}),
        httpx.Response(200, json={"models": [{"id": 1}]}),
        httpx.Response(200, content=b"\xff"),
    ],
)
async def test_any_other_answer_names_none(response: httpx.Response) -> None:
    assert await think_models("ws://127.0.0.1:9000/x", "", answering(response, [])) == {}


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("INVALID_SETTINGS: The model gpt-9 is not available", "open_ai has gpt-5-mini, gpt-4o"),
        ("INVALID_SETTINGS: audio.output.encoding", ""),
    ],
)
def test_the_models_of_the_same_provider_are_told(refusal: str, told: str) -> None:
    models = {"open_ai": ["gpt-5-mini", "gpt-4o"], "anthropic": ["claude-sonnet-4-5"]}
    assert other_models(refusal, default_agent(), models) == told
    assert other_models(refusal, {"think": [{"provider": {"type": "groq"}}]}, models) == ""
