"""Asks Deepgram which models an agent can think with.

https://developers.deepgram.com/reference/voice-agent/think-models
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

ANSWER_SECONDS: Final = 5.0
PATH: Final = "/v1/agent/settings/think/models"


class _Model(msgspec.Struct, frozen=True):
    id: str
    provider: str


class _Models(msgspec.Struct, frozen=True):
    models: list[_Model]


async def think_models(
    agent_url: str, key: str, transport: httpx.AsyncBaseTransport | None = None
) -> dict[str, list[str]]:
    """Return the models by provider, as the server of the agent at `agent_url` names them; none if
    it does not say. Takes ANSWER_SECONDS for each step at most."""
    parts = urlsplit(agent_url)
    url = f"{'http' if parts.scheme == 'ws' else 'https'}://{parts.netloc}{PATH}"
    headers = {"Authorization": f"Token {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS, transport=transport) as client:
            answer = await client.get(url, headers=headers)
        found = msgspec.json.decode(answer.content, type=_Models).models
    except (httpx.HTTPError, msgspec.DecodeError):
        return {}
    except (ImportError, OSError, ValueError):
        return {}  # the environment names a proxy or certificates that httpx cannot use
    models: dict[str, list[str]] = {}
    for model in found:
        models.setdefault(model.provider, []).append(model.id)
    return models
