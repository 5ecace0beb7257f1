"""The simulated agent's handlers of client messages: one function per type.

Rules: developers.deepgram.com/docs/voice-agent-message-flow and the page of each message there.
A message against the rules raises Refused, which the session turns into Error and close.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bridge.testing.agent.record import CallerTurn
from bridge.testing.agent.schema import (
    ANY,
    INVALID,
    MAX_PROMPT,
    UNPARSABLE,
    Json,
    Refused,
    check,
    check_listen,
    check_settings,
    check_speak,
    check_think,
)
from bridge.testing.agent.session_protocol import Session

MAX_QUEUED_INJECTIONS = 16  # more than this waiting to be spoken are refused
FILLER = "One moment, please."


async def handle_message(session: Session, message: Json) -> None:
    """Act on one message of the client.

    Raises:
        Refused: the message is not allowed, or not now.
    """
    kind = message.get("type")
    if not isinstance(kind, str):
        raise Refused(UNPARSABLE, "missing field `type`")
    if session.settings is None and kind != "Settings":
        raise Refused("NON_SETTINGS_MESSAGE_BEFORE_SETTINGS", f"{kind} before Settings.")
    if kind not in _HANDLERS:
        raise Refused(UNPARSABLE, f"unknown variant `{kind}`")
    handler, keys = _HANDLERS[kind]
    if keys is not None:
        check(kind, message, {"type!": str, **keys})
    if kind not in ("Settings", "KeepAlive") and not session.applied.is_set():
        session.faults.append(f"{kind} before SettingsApplied")
    await handler(session, message)


async def _settings(session: Session, message: Json) -> None:
    if session.settings is not None:
        raise Refused("SETTINGS_ALREADY_APPLIED", "Settings have already been applied.")
    check_settings(message)
    session.settings = message
    agent = message["agent"]
    if isinstance(agent, dict):
        context = agent.get("context") or {}
        session.context_messages = list(context.get("messages") or agent.get("messages") or [])
        session.listen = agent.get("listen") or {}
        session.speak = agent.get("speak")
        await _set_think(session, agent.get("think"))
    wanted = {"encoding": "mulaw", "sample_rate": 8000}
    for side in ("input", "output"):
        audio = message["audio"].get(side) or {}
        if {key: audio.get(key) for key in wanted} != wanted:
            session.faults.append(f"audio.{side}: the simulated agent knows mulaw at 8000 Hz only")
            session.deaf |= side == "input"
    if (message["audio"].get("output") or {}).get("container", "none") != "none":
        session.faults.append("audio.output.container: the simulated agent sends none")
    session.start()


async def _keep_alive(session: Session, message: Json) -> None:
    session.keepalives += 1


async def _set_think(session: Session, think: Any) -> None:
    session.think = think
    first = think[0] if isinstance(think, list) and think else think
    prompt = first.get("prompt") or "" if isinstance(first, dict) else ""
    session.prompt = prompt[:MAX_PROMPT]
    if len(prompt) > MAX_PROMPT:
        await session.warning("PROMPT_TOO_LONG", f"The prompt was cut at {MAX_PROMPT} characters.")


async def _update_prompt(session: Session, message: Json) -> None:
    # It adds to the prompt, which real sessions confirm, whatever one page says.
    session.prompt = f"{session.prompt}\n{message['prompt']}".strip()
    await session.send({"type": "PromptUpdated"})


async def _update_think(session: Session, message: Json) -> None:
    check_think(message["think"], live=_think_live(session))
    await _set_think(session, message["think"])
    await session.send({"type": "ThinkUpdated"})


async def _update_think_live(session: Session, message: Json) -> None:
    if not _think_live(session):
        raise Refused(UNPARSABLE, "Think Live is not enabled for this project.")
    await session.send({"type": "ThinkLiveUpdated"})


async def _update_speak(session: Session, message: Json) -> None:
    assert session.settings is not None
    check_speak(message["speak"], session.settings["audio"].get("output") or {})
    session.speak = message["speak"]
    await session.send({"type": "SpeakUpdated"})


async def _update_listen(session: Session, message: Json) -> None:
    listen = message["listen"]
    before = dict(session.listen.get("provider") or {})
    # A partial update, except that language_hints left out are cleared.
    before.pop("language_hints", None)
    provider = check("listen", listen, {"provider!": dict})["provider"]
    if provider.get("version", before.get("version")) == before.get("version"):
        provider = {**before, **provider}
    merged = {"provider": provider}
    check_listen(merged)
    session.listen = merged
    await session.send({"type": "ListenUpdated"})


async def _inject_agent_message(session: Session, message: Json) -> None:
    behavior = message.get("behavior") or "default"
    if behavior not in ("default", "queue", "interrupt"):
        raise Refused(UNPARSABLE, f"InjectAgentMessage: unknown behavior `{behavior}`")
    if message.get("is_dynamic"):
        if not _think_live(session):
            raise Refused(INVALID, "is_dynamic needs agent.think_live")
        text, kind = FILLER, "filler"
    elif message.get("message") is None:
        raise Refused(UNPARSABLE, "InjectAgentMessage: missing field `message`")
    else:
        text, kind = message["message"], "default"
    speaking = session.mouth.current is not None or session.injecting
    if behavior == "interrupt":
        session.mouth.interrupt()
    elif session.user_speaking:
        await _refuse_injection(session, "the user is speaking")
        return
    elif speaking and behavior == "default":
        await _refuse_injection(session, "the agent is speaking")
        return
    elif session.injecting >= MAX_QUEUED_INJECTIONS:
        await _refuse_injection(session, "too many messages are waiting")
        return
    session.inject(text, kind)


async def _refuse_injection(session: Session, why: str) -> None:
    session.event(f"injection refused: {why}")
    refusal: Json = {"type": "InjectionRefused"}
    if session.behaviour.injection_refused_message:
        refusal["message"] = f"Injection refused because {why}."
    await session.send(refusal)


async def _inject_user_message(session: Session, message: Json) -> None:
    if session.behaviour.injected_words_interrupt:
        session.mouth.interrupt()
    await session.user_said(message["content"], trigger="manual")
    session.add_turn(CallerTurn(text=message["content"]))


async def _function_call_response(session: Session, message: Json) -> None:
    call = session.calls.answer(message)
    if call is not None:
        await session.function_answered(call)


async def _force_end_turn(session: Session, message: Json) -> None:
    if (session.listen.get("provider") or {}).get("version") == "v2":
        await session.end_turn()
    else:
        await session.warning("FORCE_END_TURN_UNSUPPORTED", "ForceEndTurn needs a v2 listen model.")


async def _nothing(session: Session, message: Json) -> None:
    """Recorded by the session; there is no think provider here to take it."""


def _think_live(session: Session) -> bool:
    agent = (session.settings or {}).get("agent")
    return isinstance(agent, dict) and agent.get("think_live") is not None


Handler = Callable[[Session, Json], Awaitable[None]]
_HANDLERS: dict[str, tuple[Handler, Mapping[str, Any] | None]] = {
    "Settings": (_settings, None),  # has a schema of its own
    "KeepAlive": (_keep_alive, {}),
    "UpdatePrompt": (_update_prompt, {"prompt!": str}),
    "UpdateThink": (_update_think, {"think!": (dict, list)}),
    "UpdateThink_Live": (_update_think_live, {"think_live!": dict}),
    "UpdateSpeak": (_update_speak, {"speak!": (dict, list)}),
    "UpdateListen": (_update_listen, {"listen!": dict}),
    "InjectAgentMessage": (
        _inject_agent_message,
        {"message": str, "behavior": str, "is_dynamic": bool},
    ),
    "InjectUserMessage": (_inject_user_message, {"content!": str}),
    "FunctionCallResponse": (
        _function_call_response,
        {"id": str, "name!": str, "content!": str, "thought_signature": str},
    ),
    "ForceEndTurn": (_force_end_turn, {}),
    "__customToThinkProvider": (_nothing, {"content!": ANY}),
}
