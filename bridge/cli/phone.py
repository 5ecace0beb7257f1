"""`bridge phone`: call a running bridge as Twilio would, and watch the call from the caller's side.

A phone has no transcript: the conversation is who speaks when, and what the two sides do to each
other (interruptions, marks, keys, and what Twilio does once the stream has ended); `call_view`
shows it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import trio
from rich.console import Console

from bridge.cli import Failure, Misconfigured
from bridge.cli.call_view import CallView
from bridge.simulator.activity import Turn
from bridge.simulator.media_stream import KEYS
from bridge.simulator.phone import (
    CallEndedError,
    SimulatedPhone,
    TwimlError,
    UnreachableError,
    WebhookError,
)
from bridge.simulator.speech import SpeechFileError, load_clip, read_wav, write_wav

TICK_SECONDS = 0.1
QUIET_SECONDS = 2.0  # the agent is taken to have finished when silent for so long
REPLY_SECONDS = 5.0  # how long the agent may think before its reply to the last words
LINGER_SECONDS = 20.0  # the longest wait for the agent to finish
GREETING_GAP_SECONDS = 0.7  # of quiet after the greeting, before the caller speaks
GREETING_SECONDS = 15.0  # the longest greeting the caller listens to


@dataclass(frozen=True)
class Plan:
    """What the caller is going to do."""

    audio: bytes
    keys: str = ""
    wait: float = 4.0
    linger: float | None = None
    seconds: float | None = None


@click.command(context_settings={"show_default": True})
@click.argument("audio", metavar="[AUDIO.wav]", required=False, type=click.Path(path_type=Path))
@click.option("--url", default="http://127.0.0.1:5000", help="The bridge to call.")
@click.option("--save", type=click.Path(path_type=Path), help="Write what the caller heard (WAV).")
@click.option("--from", "from_number", default="+15550100001", help="The caller's number.")
@click.option("--to", "to_number", default="+15550100002", help="The number called.")
@click.option("--press", "keys", default="", help="Keys to press when the audio has ended.")
@click.option(
    "--wait",
    default=4.0,
    help="Let the agent greet first: speak after its greeting, or when it has said nothing for so"
    " many seconds. 0: speak at once.",
)
@click.option(
    "--linger",
    type=float,
    help="Hang up this many seconds after the audio ends.  [default: when the agent has finished]",
)
@click.option("--seconds", type=float, help="Hang up after this many seconds, come what may.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def phone(
    audio: Path | None,
    url: str,
    save: Path | None,
    from_number: str,
    to_number: str,
    keys: str,
    wait: float,
    linger: float | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Call a running bridge as Twilio would: webhook, then media socket.

    Plays AUDIO.wav (PCM, any rate; without it, a caller with three short questions), shows who
    speaks when, and reports everything Twilio would complain about. TWILIO_AUTH_TOKEN in the
    environment signs the requests.
    """
    if save is not None and not save.parent.is_dir():
        raise Misconfigured(f"--save {save}: there is no folder {save.parent}")
    if strange := set(keys) - set(KEYS):
        raise Misconfigured(f"--press: a keypad has no {''.join(sorted(strange))}; it has {KEYS}")
    if not url.startswith(("http://", "https://")):
        raise Misconfigured(f"--url {url}: must begin with http:// or https://")
    plan = Plan(speech(audio), keys, wait, linger, seconds)
    token = os.environ.get("TWILIO_AUTH_TOKEN", "").partition(",")[0].strip() or None
    view = CallView(Console(stderr=True))
    caller = SimulatedPhone(
        from_number=from_number, to_number=to_number, auth_token=token, on_event=view.event
    )
    try:
        try:
            trio.run(call, caller, url, plan, view)
        finally:
            # Also after an interruption: what was heard until then is there to be listened to.
            if save is not None and view.watching:
                write_wav(save, caller.heard)
    except BaseExceptionGroup as group:
        # Trio's nurseries hand on Ctrl-C in a group; whatever else is in it fell with it.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise click.Abort from None
    except UnreachableError as error:
        why = error.detail.rpartition(": ")[2]
        raise Failure(f"cannot reach {url} ({why}): is `bridge serve` running?") from error
    except (WebhookError, TwimlError) as error:
        raise Failure(f"Twilio would refuse the call, error {error}") from error
    except OSError as error:
        raise Failure(f"cannot write {save}: {error.strerror}") from error
    click.echo(_json(caller, view) if as_json else summary(caller, view, save))
    if caller.faults:
        count = len(caller.faults)
        first = caller.faults[0]
        raise Failure(f"Twilio would report {count} fault{'s' * (count > 1)}; the first: {first}")


def speech(audio: Path | None) -> bytes:
    """The caller's words as µ-law at 8 kHz: of a WAV file, or the built-in caller's."""
    if audio is None:
        return load_clip("caller")
    try:
        return read_wav(audio)
    except SpeechFileError as error:
        raise Misconfigured(str(error)) from error
    except OSError as error:
        raise Misconfigured(f"cannot read {audio}: {error.strerror}") from error


async def call(caller: SimulatedPhone, url: str, plan: Plan, view: CallView) -> None:
    """Place the call, do what the plan says, hang up; `view` shows it meanwhile."""
    with view.showing():
        async with caller.place_call(url):
            view.watching = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, caller, view)
                with trio.move_on_after(float("inf") if plan.seconds is None else plan.seconds):
                    await _converse(caller, plan, view)
                nursery.cancel_scope.cancel("the caller has finished")
        view.look(caller, last=True)


async def _watch(caller: SimulatedPhone, view: CallView) -> None:
    while True:
        view.look(caller)
        await trio.sleep(TICK_SECONDS)


async def _converse(caller: SimulatedPhone, plan: Plan, view: CallView) -> None:
    """The caller's side of the call; returns when it is time to hang up."""
    try:
        if plan.wait > 0:
            await _silence_of_agent(
                caller, view, plan.wait, GREETING_GAP_SECONDS, max(plan.wait, GREETING_SECONDS)
            )
        await caller.say(plan.audio)
        await caller.press(plan.keys)
    except CallEndedError:
        pass  # the server ended it; what Twilio does then is still to be seen
    if plan.linger is not None:
        with trio.move_on_after(plan.linger):
            await caller.wait_ended(timeout=float("inf"))
    else:
        await _silence_of_agent(caller, view, REPLY_SECONDS, QUIET_SECONDS, LINGER_SECONDS)


async def _silence_of_agent(
    caller: SimulatedPhone, view: CallView, first_word: float, gap: float, most: float
) -> None:
    """Wait until the agent has spoken from now on and been quiet for `gap` seconds.

    It has `first_word` seconds to begin; `most` bounds it all. Returns early when the call ends.
    """
    began = caller.elapsed
    while caller.ending is None and (now := caller.elapsed) < began + most:
        voice = view.agent.last_voice_at
        spoke = voice is not None and voice > began
        quiet_since, needed = (voice, gap) if spoke and voice else (began, first_word)
        if view.agent.speaking_since is None and now - quiet_since >= needed:
            return
        await trio.sleep(TICK_SECONDS)


def summary(caller: SimulatedPhone, view: CallView, save: Path | None) -> str:
    """What came of the call, in a few lines for people."""
    spoken = sum((turn.end or turn.start) - turn.start for turn in view.caller.turns)
    lines = [
        f"call      {caller.call_sid}: {caller.elapsed:.1f} s, {caller.ending}",
        f"caller    spoke {spoken:.1f} s",
        f"agent     heard {caller.heard_seconds:.1f} s in {len(view.agent.turns)} turns,"
        f" interruptions {view.interruptions}",
    ]
    if replies := view.reply_seconds:
        middle, longest = statistics.median(replies), max(replies)
        lines.append(f"replies   median {middle:.1f} s, longest {longest:.1f} s")
    lines.append(f"faults    {len(caller.faults) or 'none'}")
    lines += [f"          {fault}" for fault in caller.faults]
    if save is not None:
        lines.append(f"saved     {save}")
    return "\n".join(lines)


def _json(caller: SimulatedPhone, view: CallView) -> str:
    turns: list[tuple[Turn, str]] = [(turn, "caller") for turn in view.caller.turns]
    turns += [(turn, "agent") for turn in view.agent.turns]
    turns.sort(key=lambda entry: entry[0].start)
    result = {
        "call_sid": caller.call_sid,
        "stream_sid": caller.stream_sid,
        "ending": caller.ending,
        "seconds": round(caller.elapsed, 3),
        "sent_bytes": len(caller.sent_audio),
        "received_bytes": len(caller.received_audio),
        "heard_seconds": round(caller.heard_seconds, 3),
        "interruptions": view.interruptions,
        "reply_seconds": [round(seconds, 3) for seconds in view.reply_seconds],
        "turns": [
            {"who": who, "start": round(turn.start, 3), "end": round(turn.end or turn.start, 3)}
            for turn, who in turns
        ],
        "after": [event.text for event in caller.events if event.kind == "twiml"],
        "faults": [{"code": f.code, "detail": f.detail, "at": f.at} for f in caller.faults],
    }
    return json.dumps(result, indent=2 if sys.stdout.isatty() else None)
