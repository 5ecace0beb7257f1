"""The Settings message: the configured agent, with the phone's audio format. Sans-I/O.

https://developers.deepgram.com/docs/configure-voice-agent
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bridge.audio import SAMPLE_RATE
from bridge.config.agent import ID

# Not configurable: Twilio carries only this format, and a container's header would be played to the
# caller as noise.
PHONE_AUDIO = {
    "input": {"encoding": "mulaw", "sample_rate": SAMPLE_RATE},
    "output": {"encoding": "mulaw", "sample_rate": SAMPLE_RATE, "container": "none"},
}


def settings_message(
    agent: Mapping[str, Any],
    functions: Sequence[Mapping[str, Any]] = (),
    history: Sequence[Mapping[str, Any]] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> str:
    """Return the Settings message for an `[agent]` table, passed through key by key.

    Deepgram's schema is strict and grows faster than any list here, so nothing is renamed or
    checked, and integers stay integers. Only `functions`, the schemas of the functions that bridge
    runs, are added after the table's own, in each think provider if the table lists several to fall
    back on.

    `history` resumes a conversation: the History messages of the earlier sessions, verbatim. The
    greeting, which the caller has heard, is then left out. None begins a new conversation. An empty
    greeting is left out, too: the agent waits for the caller to speak.

    `beside` is `[deepgram.settings]`: what Settings holds beside the agent, such as `mip_opt_out`.

    An agent that is the id of a stored configuration is sent as this id alone. It takes neither
    functions nor a history, so a new session begins a new conversation.

    https://developers.deepgram.com/docs/voice-agents-function-calling,
    https://developers.deepgram.com/docs/voice-agent-history,
    https://developers.deepgram.com/docs/reusable-agent-configurations
    """
    if ID in agent:
        return _written(agent[ID], beside)
    if history is not None or not agent.get("greeting"):
        agent = {key: value for key, value in agent.items() if key != "greeting"}
    if history:
        context = agent.get("context", {})
        messages = [*context.get("messages", ()), *history]
        agent = {**agent, "context": {**context, "messages": messages}}
    # Without a think provider there is nothing to add functions to: Deepgram refuses a `think` that
    # has only functions.
    if functions and (think := agent.get("think")):
        agent = {**agent, "think": with_functions(think, functions)}
    return _written(agent, beside)


def with_functions(think: Any, functions: Sequence[Mapping[str, Any]]) -> Any:
    """Return `think`, one table or several to fall back on, with the functions that bridge runs
    behind each table's own."""
    if not functions:
        return think
    if isinstance(think, list):
        return [with_functions(one, functions) for one in think]
    return {**think, "functions": [*think.get("functions", ()), *functions]}


def uses_flux(agent: Mapping[str, Any]) -> bool:
    """Return whether an agent's table is for Flux, which alone accepts ForceEndTurn."""
    listen = agent.get("listen")
    provider = listen.get("provider") if isinstance(listen, Mapping) else None
    return isinstance(provider, Mapping) and provider.get("version") == "v2"


def tagged(beside: Mapping[str, Any], call_sid: str) -> dict[str, Any]:
    """Return `[deepgram.settings]` with the call's SID among its tags, so that Deepgram's usage can
    be joined to the call.

    https://developers.deepgram.com/docs/configure-voice-agent
    """
    return {**beside, "tags": [*beside.get("tags", ()), call_sid]}


def _written(agent: Mapping[str, Any] | str, beside: Mapping[str, Any] | None) -> str:
    message = {"type": "Settings", **(beside or {}), "audio": PHONE_AUDIO, "agent": agent}
    return msgspec.json.encode(message).decode()
