"""The caller of `bridge phone`: speaks, waits for replies, presses keys, hangs up."""

from __future__ import annotations

import os
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio

from bridge.addresses import is_loopback
from bridge.cli.phone.handset import Handset, SoundCardError, typed_keys
from bridge.cli.phone.live_call import LiveCall, follow
from bridge.cli.phone.view import CallView
from bridge.server.kept_token import kept_token
from bridge.testing.phone.phone import CallEndedError, SimulatedPhone

TICK_SECONDS = 0.1
QUIET_SECONDS = 2.0  # the agent counts as finished after this much silence
REPLY_SECONDS = 5.0  # how long the agent may take to reply to the last words
LINGER_SECONDS = 20.0  # the longest wait for the agent to finish
LAST_NEWS_SECONDS = 1.0  # after the call, for the rest of the bridge's transcript
TURN_GAP_SECONDS = 1.0  # of silence after a reply, before the caller's next words
GREETING_GAP_SECONDS = 0.7  # of silence after the greeting, before the caller speaks
GREETING_SECONDS = 15.0  # the longest greeting the caller listens to


@dataclass(frozen=True)
class Plan:
    """The caller's plan. `audio` (µ-law at 8 kHz) is said first, each of `then` after a reply.

    `wait`, `linger` and `seconds` are in seconds. With a `handset` the caller is a person: nothing
    is said automatically, and the call lasts until either side hangs up. `transcript`: whether to
    ask the bridge for the transcript.
    """

    audio: bytes
    keys: str = ""
    wait: float = 4.0
    linger: float | None = None
    seconds: float | None = None
    then: tuple[bytes, ...] = ()
    handset: Handset | None = None
    transcript: bool = True


async def call(
    caller: SimulatedPhone,
    url: str,
    plan: Plan,
    view: CallView,
    hang_up: trio.Event | None = None,
) -> None:
    """Place the call, follow the plan, hang up; `view` shows the call.

    Setting `hang_up` ends it early. Raises SoundCardError and what
    `SimulatedPhone.place_call` raises.
    """
    # Raised after the nursery: the caller hangs up first, and it is not wrapped in a group.
    failure: Exception | None = None
    with view.showing():
        async with trio.open_nursery() as around:
            try:
                async with caller.place_call(url):
                    view.watching = True
                    followed = trio.Event()
                    if plan.transcript:
                        around.start_soon(_follow, caller, url, view, followed)
                    else:
                        followed.set()
                    await _talk(caller, plan, view, hang_up)
                with trio.move_on_after(LAST_NEWS_SECONDS):
                    await followed.wait()
            except Exception as error:
                failure = error
            around.cancel_scope.cancel("the call has ended")
        if view.watching:
            view.look(caller, last=True)
    if failure is not None:
        raise failure


async def _talk(
    caller: SimulatedPhone, plan: Plan, view: CallView, hang_up: trio.Event | None
) -> None:
    failure: SoundCardError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, caller, view)
        if hang_up is not None:
            nursery.start_soon(_cancel_when, hang_up, nursery.cancel_scope)
        with trio.move_on_after(float("inf") if plan.seconds is None else plan.seconds):
            try:
                await _converse(caller, plan, view)
            except SoundCardError as error:
                failure = error
        nursery.cancel_scope.cancel("the caller has finished")
    if failure is not None:
        raise failure


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel("the caller hangs up")


async def _follow(caller: SimulatedPhone, url: str, view: CallView, followed: trio.Event) -> None:
    """Show the bridge's transcript, if it may be read; `followed` is set when it is complete."""
    token = os.environ.get("BRIDGE_API_TOKEN", "").strip() or kept_token(url)
    if not may_ask(url, token):
        followed.set()
        return
    live = LiveCall()

    def news() -> None:
        view.live = live
        view.news()

    if why := await follow(url, caller.call_sid, token, live, news):
        view.note(why)
    followed.set()


def may_ask(url: str, token: str) -> bool:
    """Return whether to ask the server at `url` for its transcript: on this machine, or over TLS
    with a token, which is never sent unencrypted.
    """
    parts = urlsplit(url)
    return is_loopback(parts.netloc) or (bool(token) and parts.scheme == "https")


async def _watch(caller: SimulatedPhone, view: CallView) -> None:
    while True:
        view.look(caller)
        await trio.sleep(TICK_SECONDS)


async def _converse(caller: SimulatedPhone, plan: Plan, view: CallView) -> None:
    """Play the caller's side of the call; return when it is time to hang up."""
    if plan.handset is not None:
        view.note("speak, best with headphones; type 0-9 * # to press keys; Ctrl-C hangs up")
        async with aclosing(typed_keys()) as keys:
            await plan.handset.talk(caller, keys)
        return
    try:
        if plan.wait > 0:
            await _silence_of_agent(
                caller, view, plan.wait, GREETING_GAP_SECONDS, max(plan.wait, GREETING_SECONDS)
            )
        await caller.say(plan.audio)
        for words in plan.then:
            await _silence_of_agent(caller, view, REPLY_SECONDS, TURN_GAP_SECONDS, LINGER_SECONDS)
            await caller.say(words)
        await caller.press(plan.keys)
    except CallEndedError:
        pass  # the server ended the stream; still show what Twilio does next
    if plan.linger is not None:
        with trio.move_on_after(plan.linger):
            await caller.wait_ended(timeout=float("inf"))
    else:
        await _silence_of_agent(caller, view, REPLY_SECONDS, QUIET_SECONDS, LINGER_SECONDS)


async def _silence_of_agent(
    caller: SimulatedPhone, view: CallView, first_word: float, gap: float, most: float
) -> None:
    """Wait until the agent has spoken and then been silent for `gap` seconds.

    The agent has `first_word` seconds to begin; `most` seconds bound the whole wait. Returns early
    when the call ends.
    """
    began = caller.elapsed
    while caller.ending is None and (now := caller.elapsed) < began + most:
        voice = view.agent.last_voice_at
        spoke = voice is not None and voice > began
        quiet_since, needed = (voice, gap) if spoke and voice else (began, first_word)
        if view.agent.speaking_since is None and now - quiet_since >= needed:
            return
        await trio.sleep(TICK_SECONDS)
