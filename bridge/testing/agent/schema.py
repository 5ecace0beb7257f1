"""The schema of client messages that a Voice Agent server accepts, and its Errors for others.

Deepgram's schema is strict: a key it does not know ends the session. The tables below hold, for
each object, the keys it may have ("!" marks a required one) and the type each must have.
Rules: developers.deepgram.com/docs/configure-voice-agent and .../voice-agent-errors-warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

UNPARSABLE = "UNPARSABLE_CLIENT_MESSAGE"
INVALID = "INVALID_SETTINGS"
MAX_PROMPT = 25_000  # characters, for managed models; longer ones are cut, with a Warning


class Refused(Exception):
    """The server answers this message with an Error of `code` and ends the session."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(code, description)
        self.code = code
        self.description = description


ANY = object
NUMBER = (int, float)
SETTINGS = {
    "type!": str,
    "tags": list,
    "experimental": bool,
    "mip_opt_out": bool,
    "flags": dict,
    "audio!": dict,
    "agent!": (dict, str),
}
AUDIO_INPUT = {"encoding!": str, "sample_rate!": int}
AUDIO_OUTPUT = {"encoding": str, "sample_rate": int, "bitrate": int, "container": str}
AGENT = {
    "language": str,
    "context": dict,
    "messages": list,
    "greeting": str,
    "listen": dict,
    "think": (dict, list),
    "think_live": dict,
    "speak": (dict, list),
}
LISTEN_V1 = {
    "type!": str,
    "version": str,
    "model": str,
    "language": str,
    "keyterms": list,
    "smart_format": bool,
}
LISTEN_V2 = {
    "type!": str,
    "version!": str,
    "model!": str,
    "language_hints": list,
    "eot_threshold": NUMBER,
    "eager_eot_threshold": NUMBER,
    "eot_timeout_ms": int,
    "keyterms": list,
}
THINK = {
    "provider!": dict,
    "endpoint": dict,
    "functions": list,
    "prompt": str,
    "context_length": (int, str),
}
FILLERS = {
    "initial_agent_filler": ANY,
    "agent_filler_max_count": int,
    "agent_filler_interval_ms": int,
}
FUNCTION = {
    "name!": str,
    "description": str,
    "parameters": dict,
    "defer_until_eot": bool,
    "endpoint": dict,
    **FILLERS,
}
_MODEL = {"type!": str, "version": str, "model!": str, "temperature": NUMBER}
_REASONING = {**_MODEL, "reasoning_mode": str}
THINK_PROVIDERS: dict[str, Mapping[str, Any]] = {
    "open_ai": _REASONING,
    "anthropic": _MODEL,
    "google": _MODEL,
    "groq": _REASONING,
    "aws_bedrock": {"type!": str, "model!": str, "temperature": NUMBER, "credentials": dict},
    "deepgram": {**_REASONING, "voice_prompt_opt_out": bool},
}
SPEAK = {"provider!": dict, "endpoint": dict}
SPEAK_PROVIDERS: dict[str, Mapping[str, Any]] = {
    "deepgram": {
        "type!": str,
        "version": str,
        "model!": str,
        "speed": NUMBER,
        "expressivity": int,
    },
    "eleven_labs": {
        "type!": str,
        "version": str,
        "model_id!": str,
        "language": str,
        "language_code": str,
    },
    "cartesia": {
        "type!": str,
        "version": str,
        "model_id!": str,
        "voice!": dict,
        "language": str,
        "volume": NUMBER,
    },
    "open_ai": {"type!": str, "version": str, "model!": str, "voice!": str},
    "aws_polly": {
        "type!": str,
        "voice!": str,
        "language!": str,
        "language_code": str,
        "engine!": str,
        "credentials!": dict,
    },
}
NEEDS_ENDPOINT = {"groq", "aws_bedrock", "eleven_labs", "aws_polly"}


def check(where: str, value: Any, keys: Mapping[str, Any]) -> Json:
    """Return `value` if it is an object with these `keys`.

    Raises:
        Refused: UNPARSABLE_CLIENT_MESSAGE, naming the key at fault.
    """
    if not isinstance(value, dict):
        raise Refused(UNPARSABLE, f"{where} must be an object")
    types = {key.rstrip("!"): kind for key, kind in keys.items()}
    for key, item in value.items():
        if key not in types:
            raise Refused(UNPARSABLE, f"{where}: unknown field `{key}`")
        # JSON's true is not a number, though Python's True is an int.
        wanted = types[key]
        if isinstance(item, bool) and wanted in (int, NUMBER):
            raise Refused(UNPARSABLE, f"{where}.{key} has the wrong type")
        if item is not None and not isinstance(item, wanted):
            raise Refused(UNPARSABLE, f"{where}.{key} has the wrong type")
    for key in keys:
        if key.endswith("!") and value.get(key[:-1]) is None:
            raise Refused(UNPARSABLE, f"{where}: missing field `{key[:-1]}`")
    return value


def check_settings(settings: Json) -> None:
    """Check a Settings message; raise Refused if it is invalid."""
    check("Settings", settings, SETTINGS)
    check("flags", settings.get("flags") or {}, {"history": bool})
    audio = check("audio", settings["audio"], {"input": dict, "output": dict})
    if audio.get("input") is not None:
        check("audio.input", audio["input"], AUDIO_INPUT)
    output = check("audio.output", audio.get("output") or {}, AUDIO_OUTPUT)
    agent = settings["agent"]
    if isinstance(agent, str):  # the id of a stored configuration, which may hold anything
        return
    check("agent", agent, AGENT)
    context = check("agent.context", agent.get("context") or {}, {"messages": list})
    for item in context.get("messages") or agent.get("messages") or []:
        if not isinstance(item, dict) or not ("role" in item or "function_calls" in item):
            raise Refused(UNPARSABLE, "agent.context.messages: not a History message")
    listen = agent.get("listen")
    if listen is not None:
        check_listen(listen)
        if agent.get("language") and listen["provider"].get("version") == "v2":
            raise Refused(INVALID, "agent.language cannot be set with a v2 listen provider")
    if agent.get("think") is not None:
        check_think(agent["think"], live=agent.get("think_live") is not None)
    if agent.get("speak") is not None:
        check_speak(agent["speak"], output)


def check_listen(listen: Any) -> None:
    """Check agent.listen or the `listen` of UpdateListen; raise Refused if it is invalid."""
    provider = check("agent.listen", listen, {"provider!": dict})["provider"]
    flux = str(provider.get("model", "")).startswith("flux-")
    if provider.get("version") == "v2":
        check("agent.listen.provider", provider, LISTEN_V2)
        if not flux:
            raise Refused(INVALID, f"{provider['model']} is not a v2 model")
    else:
        check("agent.listen.provider", provider, LISTEN_V1)
        if flux:
            raise Refused(INVALID, f'{provider["model"]} needs agent.listen.provider.version "v2"')


def check_think(think: Any, *, live: bool = False) -> None:
    """Check agent.think or the `think` of UpdateThink, one or a list; raise Refused if invalid."""
    for block in think if isinstance(think, list) else [think]:
        check("agent.think", block, THINK)
        _check_provider("agent.think", block, THINK_PROVIDERS)
        for function in block.get("functions") or []:
            check("agent.think.functions", function, FUNCTION)
            if not live and FILLERS.keys() & function.keys():
                raise Refused(INVALID, "function fillers need agent.think_live")


def check_speak(speak: Any, output: Json) -> None:
    """Check agent.speak or the `speak` of UpdateSpeak, one or a list; raise Refused if invalid.

    `output` is Settings.audio.output, which limits the voices.
    """
    for block in speak if isinstance(speak, list) else [speak]:
        check("agent.speak", block, SPEAK)
        _check_provider("agent.speak", block, SPEAK_PROVIDERS)
        provider = block["provider"]
        if provider.get("type") != "deepgram":
            continue
        flux = provider["model"].startswith("flux-")
        if flux != (provider.get("version") == "v2"):
            raise Refused(INVALID, 'flux voices, and no others, need agent.speak version "v2"')
        if flux and (
            output.get("encoding", "linear16") not in ("linear16", "mulaw", "alaw")
            or output.get("container", "none") != "none"
        ):
            raise Refused(INVALID, "this audio.output is not possible with a flux voice")


def _check_provider(where: str, block: Json, tables: Mapping[str, Mapping[str, Any]]) -> None:
    provider = block["provider"]
    kind = provider.get("type")
    # Providers are added faster than they are documented: unknown ones pass.
    if kind in tables:
        check(f"{where}.provider", provider, tables[kind])
    elif not isinstance(kind, str):
        raise Refused(UNPARSABLE, f"{where}.provider: missing field `type`")
    if kind in NEEDS_ENDPOINT and not block.get("endpoint"):
        raise Refused(INVALID, f"{where}.provider {kind} needs an endpoint")
