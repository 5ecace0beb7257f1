"""The tables that go to Deepgram: `[agent]`, and how `[agents.NAME]` differs from it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Final

# The key of a reusable agent configuration: Deepgram stores the agent, and Settings names it.
# https://developers.deepgram.com/docs/reusable-agent-configurations
ID: Final = "id"

# What Settings holds beside `agent` and `audio`, by its type.
# https://developers.deepgram.com/docs/configure-voice-agent
BESIDE_AGENT: Final[Mapping[str, type]] = {
    "mip_opt_out": bool,
    "tags": list,
    "flags": dict,
    "experimental": bool,
}

# `open_ai`'s gpt-4o and gpt-5, Deepgram's nova-2, nova-3 and flux take different options.
_FAMILY: Final = re.compile(r"[a-z]+(-[0-9]+)?")


def default_agent() -> dict[str, Any]:
    """Return the agent of a file without `[agent]`, from which a given `[agent]` differs."""
    return {
        "greeting": "Hello! How can I help you today?",
        "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
        "think": {
            "prompt": "You are a friendly assistant on the phone. Answer in one or two short"
            " sentences.",
            "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
        },
        "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
    }


def agent_from(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the agent that differs from `base` in `changes`.

    A stored configuration is all or nothing: nothing is merged into one, and what differs from one
    differs from the default agent.
    """
    if ID in changes:
        return copy.deepcopy(dict(changes))
    return merged(default_agent() if ID in base and changes else base, changes)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` in which the keys of `changes` are replaced, tables key by key.

    A provider of another kind (another type, version or family of models) is replaced whole, except
    for its type: it refuses the options of the one before.
    """
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        below = result.get(key)
        if not isinstance(value, dict) or not isinstance(below, dict):
            result[key] = copy.deepcopy(value)
        elif _is_another_kind(below, value):
            result[key] = {"type": below["type"], **copy.deepcopy(value)}
        else:
            result[key] = merged(below, value)
    return result


def _is_another_kind(below: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Return whether the changes name another kind of provider; a provider has a type."""
    return "type" in below and (
        changes.get("type", below["type"]) != below["type"]
        # Deepgram takes v1 where no version is given.
        or changes.get("version", below.get("version", "v1")) != below.get("version", "v1")
        or _family(changes.get("model", below.get("model"))) != _family(below.get("model"))
    )


def _family(model: Any) -> str:
    match = _FAMILY.match(model.lower()) if isinstance(model, str) else None
    return match[0] if match else ""
