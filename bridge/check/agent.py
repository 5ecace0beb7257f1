"""Checks the agent: opens a session with the key and each configured Settings.

A session is opened as for a call, functions included. Deepgram answers invalid Settings with an
Error, at once or when it first uses the voice; so the check waits for the greeting.
https://developers.deepgram.com/docs/voice-agent-errors-warnings
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import trio

from bridge.check.connect_error import connect_error
from bridge.check.finding import Finding, agent_name, ok, warning, wrong
from bridge.check.think_models import think_models
from bridge.config.agent import ID
from bridge.config.secrets import Secrets, check_startup
from bridge.config.settings import ConfigError, Settings
from bridge.deepgram import messages
from bridge.deepgram.session import (
    AgentClosed,
    AgentFailed,
    AgentSession,
    AgentUnavailable,
    open_session,
)
from bridge.deepgram.settings import settings_message
from bridge.deepgram.template import fill, fill_in
from bridge.functions import FunctionError, Functions
from bridge.functions.builtin import described
from bridge.functions.modules import FunctionModules, modules_of
from bridge.transport.websocket_client import OpenStream

# From Settings to the first audio: the voice is synthesised then, and perhaps rejected.
GREETING_SECONDS = 6.0
# Without a greeting there is no audio; an Error arrives soon or not at all.
QUIET_SECONDS = 1.5
GOODBYE_SECONDS = 2.0

# Meaning and remedy of a rejected handshake: developers.deepgram.com/docs/errors
_STATUSES = {
    401: ("the key was rejected", "set DEEPGRAM_API_KEY to a key from console.deepgram.com"),
    402: ("the project is out of credit", "add credit in the Deepgram console"),
    403: (
        "the key may not use the Voice Agent",
        "give it access in the Deepgram console, or make another",
    ),
    404: (
        "there is no Voice Agent at this address",
        "correct deepgram.url; Deepgram's is wss://agent.deepgram.com/v1/agent/converse",
    ),
    429: (
        "the limit of concurrent sessions is reached",
        "end other sessions of the project, or ask Deepgram for a higher limit",
    ),
}


def check_functions(settings: Settings) -> tuple[Functions, list[Finding]]:
    """Import the functions' modules as the server does. Blocks; it runs the user's code."""
    # Only their descriptions are wanted: no call of theirs will ever be made.
    own, modules = described(settings.functions), FunctionModules()
    if not (names := modules_of(settings)):
        return Functions(()), []
    try:
        modules.load(names)
    except FunctionError as error:
        reason = str(error)
        return Functions(()), [wrong("functions", "the agent's functions cannot be loaded", reason)]
    functions = modules.of(settings.functions.module)
    return functions, [ok("functions", f"{len(functions + own)} for the agent to call")]


async def check_agents(
    settings: Settings, secrets: Secrets, open_stream: OpenStream | None = None
) -> Iterable[Finding]:
    """Open a session for `[agent]` and each `[agents.NAME]`, one at a time, because a project has a
    limit of concurrent sessions.

    When a session cannot be opened at all, the rest are skipped: they would fail likewise.
    """
    functions, findings = await trio.to_thread.run_sync(
        check_functions, settings, abandon_on_cancel=True
    )
    try:
        check_startup(_unsigned(settings), secrets)
    except ConfigError as error:
        return [*findings, wrong("agent", "no session can be opened", str(error))]
    for name in ("", *settings.agents):
        found = await _check_one(name, settings, secrets, functions, open_stream)
        findings += [found, *check_names(name, settings), *check_language(name, settings)]
        if found.status == "wrong" and not found.what.startswith(_REFUSES):
            break
    return findings


def check_names(name: str, settings: Settings) -> list[Finding]:
    """Find variables in an agent's greeting and prompts that an inbound call does not have."""
    settings = settings.for_agent(name)
    if settings.call.context_url:
        return []  # its answer may define any variable
    table = settings.agent
    prompts = [one.get("prompt") for one in _thinking(table)]
    unknown: dict[str, None] = {}
    for text in (table.get("greeting"), *prompts):
        if isinstance(text, str):
            unknown.update(dict.fromkeys(fill(text, _KNOWN)[1]))
    if not unknown:
        return []
    return [
        warning(
            agent_name(name),
            "greeting or prompt names " + ", ".join(f"{{{one}}}" for one in unknown),
            "an inbound call has {caller} and {called}; others must be passed when dialling",
            "correct the name, write {{ and }} for braces, or set call.context_url",
        )
    ]


def check_language(name: str, settings: Settings) -> list[Finding]:
    """Find the key that Deepgram has deprecated and refuses beside Flux, though its examples still
    have it. https://developers.deepgram.com/docs/configure-voice-agent"""
    if "language" not in settings.for_agent(name).agent:
        return []
    return [
        warning(
            agent_name(name),
            "language is deprecated, and refused with Flux",
            remedy="write listen.provider.language (language_hints with Flux), and choose a voice"
            " that speaks the language",
        )
    ]


# The variables of every inbound call.
_KNOWN = dict.fromkeys(("caller", "called", "From", "To", "CallSid"), "")

_REFUSES = "the agent rejects the Settings"


async def _check_one(
    name: str,
    settings: Settings,
    secrets: Secrets,
    functions: Functions,
    open_stream: OpenStream | None,
) -> Finding:
    check = agent_name(name)
    settings = settings.for_agent(name)
    table = fill_in(settings.agent, {"caller": "+15550100001", "called": "+15550100002"})
    message = settings_message(
        table,
        (functions + described(settings.functions)).schemas(),
        beside=settings.deepgram.settings,
    )
    where = urlsplit(settings.deepgram.url).netloc
    started = trio.current_time()
    failure: Exception | None = None
    heard = "nothing"
    warnings: list[messages.Warning] = []
    try:
        async with open_session(
            settings.deepgram.url,
            key=secrets.deepgram_api_key,
            settings=message,
            timeout=settings.deepgram.connect_timeout,
            close_by=lambda: trio.current_time() + GOODBYE_SECONDS,
            open_stream=open_stream,
        ) as session:
            took = trio.current_time() - started
            warnings += session.warnings
            greets = bool(table.get("greeting")) or ID in table
            heard = await _first_words(session, greets, warnings)
    except (AgentUnavailable, AgentFailed, AgentClosed) as error:
        failure = error
    if failure is not None:
        found = explain(check, failure, where, name)
        if isinstance(failure, AgentFailed) and _is_about_a_model(str(failure)):
            models = await think_models(settings.deepgram.url, secrets.deepgram_api_key)
            if others := other_models(str(failure), table, models):
                found = wrong(check, found.what, found.why, f"{found.remedy}; {others}")
        return found
    if warnings:
        codes = ", ".join(f"{one.code} ({one.description})" for one in warnings)
        return warning(check, "the agent accepts the Settings with a warning", codes, _remedy(name))
    return ok(check, f"{where} accepts the Settings in {took:.1f} s; heard: {heard}")


def other_models(
    refusal: str, agent: Mapping[str, Any], models: Mapping[str, Sequence[str]]
) -> str:
    """Say which models the agent's think providers have, if the refusal is about a model."""
    providers = [one.get("provider") for one in _thinking(agent)]
    names = [str(one.get("type")) for one in providers if isinstance(one, dict)]
    known = [f"{name} has {', '.join(models[name])}" for name in names if name in models]
    return "; ".join(known) if _is_about_a_model(refusal) else ""


def _thinking(agent: Mapping[str, Any]) -> list[dict[str, Any]]:
    think = agent.get("think")
    several = think if isinstance(think, list) else [think]
    return [one for one in several if isinstance(one, dict)]


def _is_about_a_model(refusal: str) -> bool:
    return "model" in refusal.lower()


async def _first_words(
    session: AgentSession, greets: bool, warnings: list[messages.Warning]
) -> str:
    """Wait for the agent's first audio, for GREETING_SECONDS at most.

    Raises AgentFailed for an Error, AgentClosed when the session ends.
    """
    with trio.move_on_after(GREETING_SECONDS if greets else QUIET_SECONDS):
        while True:
            for message in await session.receive():
                match message:
                    case bytes() if message:
                        return "the greeting" if greets else "its voice"
                    case messages.Error():
                        raise AgentFailed(message)
                    case messages.Warning():
                        warnings.append(message)
    return f"nothing within {GREETING_SECONDS:g} s" if greets else "nothing, as it has no greeting"


def explain(check: str, failure: Exception, where: str, name: str = "") -> Finding:
    """Explain why no session could be opened, and what to do."""
    if isinstance(failure, AgentFailed):
        return wrong(check, _REFUSES, str(failure), _remedy(name))
    if isinstance(failure, AgentClosed):
        return wrong(check, "the agent ended the session at once", str(failure), _remedy(name))
    status = failure.status if isinstance(failure, AgentUnavailable) else None
    if status is not None:
        meaning, remedy = _STATUSES.get(
            status, ("it is not available", "try again later; see status.deepgram.com")
        )
        return wrong(check, f"{where} rejects the session", f"{status}, {meaning}", remedy)
    found = connect_error(failure)
    match found.kind:
        case "certificate":
            what = f"the certificate of {where} is not trusted"
            remedy = (
                "deepgram.url must use the name in the certificate; for an authority of your own,"
                " name its file in SSL_CERT_FILE"
            )
        case "tls":
            what = f"{where} does not speak TLS"
            remedy = "write ws:// in deepgram.url for a local agent, or correct the port"
        case "name":
            what = f"the name {where} cannot be resolved"
            remedy = "correct deepgram.url, or this machine's DNS"
        case "refused":
            what = f"nothing listens at {where}"
            remedy = "start the agent (`bridge agent`), or correct deepgram.url"
        case "other":
            what = f"no session at {where}"
            remedy = "check deepgram.url, and that a firewall allows outbound connections"
    return wrong(check, what, found.why, remedy)


def _remedy(name: str) -> str:
    table = f"[agents.{name}] or [agent]" if name else "[agent]"
    return f"correct {table} in the configuration"


def _unsigned(settings: Settings) -> Settings:
    """Turn signatures off; another check looks at them."""
    twilio = msgspec.structs.replace(settings.twilio, validate_signatures=False)
    return msgspec.structs.replace(settings, twilio=twilio)


def hosts(settings: Settings) -> list[str]:
    """Return the URLs at which the agent's clock can be read; none for a local agent."""
    parts = urlsplit(settings.deepgram.url)
    return [f"https://{parts.netloc}/"] if parts.scheme == "wss" else []
