"""Background tasks of a session: its opening, and its end by timeouts.

Order: developers.deepgram.com/docs/voice-agent-message-flow. Limits:
developers.deepgram.com/docs/voice-agent-errors-warnings.
"""

from __future__ import annotations

import trio

from bridge.testing.agent.session_protocol import Session

NEVER = float("inf")
WARN_BEFORE_END = 300.0  # seconds; the Warning comes at 1:55 of a session of 2:00 hours


async def welcome(session: Session) -> None:
    """Send Welcome. A client that sends Settings before it is tolerated."""
    if session.behaviour.sends_welcome:
        await trio.sleep(session.behaviour.welcome_delay)
        await session.send({"type": "Welcome", "request_id": session.request_id})
        session.welcomed.set()


async def apply_settings(session: Session) -> None:
    """Settings are accepted: SettingsApplied, then the script and the greeting."""
    knobs = session.behaviour
    if knobs.settings_error:
        await session.error(knobs.settings_error, "refused by the simulated agent's behaviour")
    if knobs.settings_error or not knobs.applies_settings:
        return
    if knobs.sends_welcome:
        await session.welcomed.wait()
    await trio.sleep(knobs.settings_applied_delay)
    assert session.settings is not None
    session.mouth.experimental = bool(session.settings.get("experimental"))
    # Set before sending: the client may send audio before our send returns.
    session.applied.set()
    await session.send({"type": "SettingsApplied"})
    if knobs.unknown_messages:
        await session.send({"type": "SomethingNew", "detail": {"since": "tomorrow"}})
    if knobs.stops_reading_after:
        session.nursery.start_soon(_stop_reading, session)
    if knobs.freezes_after:
        session.nursery.start_soon(_freeze, session)
    # Started before the greeting, yet spoken after it: the greeting takes its turn to speak
    # before it lets any other task run.
    session.start_script()
    agent = session.settings["agent"]
    greeting = agent.get("greeting") if isinstance(agent, dict) else None
    if knobs.greeting is not None:
        greeting = knobs.greeting
    if greeting:
        await session.say(greeting)
    last = session.context_messages[-1] if session.context_messages else {}
    if knobs.answers_context and last.get("role") == "user":
        await session.say(f"You asked: {last.get('content')}")


async def watch_time(session: Session) -> None:
    """End the session when the client is idle, or the session is open, for too long."""
    knobs = session.behaviour
    end = session.opened_at + (knobs.max_session or NEVER)
    warn_at = end - WARN_BEFORE_END if knobs.max_session > WARN_BEFORE_END else NEVER
    while not session.failed:
        idle_at = session.last_sign + (knobs.idle_timeout or NEVER)
        await trio.sleep_until(min(idle_at, end, warn_at))
        now = trio.current_time()
        if session.failed:
            return
        if now >= end:
            await session.error("MAXIMUM_SESSION_LENGTH_REACHED", "The session is too long.")
        elif now >= warn_at:
            warn_at = NEVER
            await session.warning("MAXIMUM_SESSION_LENGTH_APPROACHING", "It ends in 5 minutes.")
        elif now >= session.last_sign + (knobs.idle_timeout or NEVER):
            await session.error(
                "CLIENT_MESSAGE_TIMEOUT",
                "We waited too long for a websocket message. Please ensure that you're sending "
                "binary messages containing user speech.",
            )


async def _stop_reading(session: Session) -> None:
    await trio.sleep(session.behaviour.stops_reading_after)
    session.stop_reading()


async def _freeze(session: Session) -> None:
    await trio.sleep(session.behaviour.freezes_after)
    session.freeze()
