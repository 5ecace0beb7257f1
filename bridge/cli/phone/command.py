"""`bridge phone`: calls a running bridge as Twilio would, and shows the caller's side.

The caller is a recording, a text spoken by a synthesiser, or a person at the microphone. `view`
shows who speaks when, interruptions, marks, keys, the TwiML that follows the stream, and the
transcript if the bridge provides it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import get_args

import click
import trio
from rich.console import Console

from bridge.cli.failure import Failure, Misconfigured, reason
from bridge.cli.phone.caller import Plan, call
from bridge.cli.phone.handset import Handset, SoundCardError
from bridge.cli.phone.result import as_json as call_as_json
from bridge.cli.phone.result import summary
from bridge.cli.phone.sound_card import SystemSoundCard
from bridge.cli.phone.view import CallView
from bridge.local_agent.synthesis import SynthesisError, synthesise_all
from bridge.testing.phone.exchange import DialStatus
from bridge.testing.phone.media_stream import KEYS
from bridge.testing.phone.phone import SimulatedPhone, TwimlError, UnreachableError, WebhookError
from bridge.testing.speech import SpeechFileError, load_clip, read_wav, write_wav

MOST_CHARACTERS = 1000  # of one --say


@click.command(context_settings={"show_default": True})
@click.argument("audio", metavar="[AUDIO.wav]", required=False, type=click.Path(path_type=Path))
@click.option("--url", default="http://127.0.0.1:5000", help="The bridge to call.")
@click.option(
    "--say",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="Say this with a synthesised voice. May be repeated for a conversation: each waits for"
    " the agent's reply to the one before.",
)
@click.option("--mic", is_flag=True, help="Talk yourself: microphone, loudspeaker, and typed keys.")
@click.option("--save", type=click.Path(path_type=Path), help="Write what the caller heard (WAV).")
@click.option("--from", "from_number", default="+15550100001", help="The caller's number.")
@click.option("--to", "to_number", default="+15550100002", help="The number called.")
@click.option(
    "--dial",
    "dialled",
    type=click.Choice(get_args(DialStatus)),
    default="completed",
    help="What becomes of a transfer: the result of <Dial>, as Twilio reports it.",
)
@click.option("--press", "keys", default="", help="Keys to press after the audio.")
@click.option(
    "--wait",
    default=4.0,
    help="Let the agent greet first: speak after its greeting, or after this many seconds of"
    " silence. 0: speak at once.",
)
@click.option(
    "--linger",
    type=float,
    help="Hang up this many seconds after the audio ends.  [default: when the agent has finished]",
)
@click.option("--seconds", type=float, help="Hang up after this many seconds in any case.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def phone(
    audio: Path | None,
    url: str,
    texts: tuple[str, ...],
    mic: bool,
    save: Path | None,
    from_number: str,
    to_number: str,
    dialled: DialStatus,
    keys: str,
    wait: float,
    linger: float | None,
    seconds: float | None,
    as_json: bool,
) -> int:
    """Call a running bridge as Twilio would: webhook, then media socket.

    Plays AUDIO.wav (PCM, any rate), says --say, or lets you talk with --mic; without any of these
    the built-in caller asks three short questions. Shows who speaks when, everything that Twilio
    would report as an error, and the transcript (set BRIDGE_API_TOKEN to the server's; a server
    that you run on this machine without one needs none). TWILIO_AUTH_TOKEN in the environment signs
    the requests.

    Ctrl-C hangs up; with --mic that is how to end a call, and Ctrl-D does the same.
    """
    if sum((audio is not None, bool(texts), mic)) > 1:
        raise Misconfigured("AUDIO.wav, --say and --mic: choose one of them")
    if save is not None and not save.parent.is_dir():
        raise Misconfigured(f"--save {save}: there is no folder {save.parent}")
    if strange := set(keys) - set(KEYS):
        raise Misconfigured(f"--press: a keypad has no {''.join(sorted(strange))}; it has {KEYS}")
    if not url.startswith(("http://", "https://")):
        raise Misconfigured(f"--url {url}: must begin with http:// or https://")
    words = [b""] if mic else speak(texts) if texts else [speech(audio)]
    plan = Plan(
        words[0], keys, wait, linger, seconds, tuple(words[1:]), _handset() if mic else None
    )
    token = os.environ.get("TWILIO_AUTH_TOKEN", "").partition(",")[0].strip() or None
    view = CallView(Console(stderr=True))
    caller = SimulatedPhone(
        from_number=from_number,
        to_number=to_number,
        auth_token=token,
        dials=(dialled,),
        on_event=view.event,
    )
    interrupted = _carry(caller, url, plan, view, save)
    click.echo(call_as_json(caller, view) if as_json else summary(caller, view, save))
    if caller.faults:
        count = len(caller.faults)
        first = caller.faults[0]
        raise Failure(f"Twilio would report {count} error{'s' * (count > 1)}; the first: {first}")
    return 130 if interrupted and not mic else 0


def _carry(caller: SimulatedPhone, url: str, plan: Plan, view: CallView, save: Path | None) -> bool:
    """Place the call and save what was heard; return whether Ctrl-C ended it."""
    try:
        try:
            return trio.run(_until_interrupted, caller, url, plan, view)
        finally:
            # Also after an interruption: save what was heard until then.
            if save is not None and view.watching:
                write_wav(save, caller.heard)
    except BaseExceptionGroup as group:
        # Trio raises KeyboardInterrupt inside a group, beside the errors that it caused.
        if group.subgroup(KeyboardInterrupt) is not None:
            raise click.Abort from None
        raise _failure(reason(group), url, save) from group
    except (WebhookError, TwimlError, SoundCardError, OSError) as error:
        raise _failure(error, url, save) from error


def _failure(error: BaseException, url: str, save: Path | None) -> BaseException:
    """Return the Failure that explains an expected error; any other error unchanged."""
    match error:
        case UnreachableError():
            why = error.detail.rpartition(": ")[2]
            return Failure(f"cannot reach {url} ({why}): is `bridge serve` running?")
        case WebhookError() if error.detail.endswith(("HTTP status 401", "HTTP status 403")):
            return Failure(
                f"{url} rejects the signature of the call: set TWILIO_AUTH_TOKEN to the"
                " server's, or server.public_url for the server"
            )
        case WebhookError() | TwimlError():
            return Failure(f"Twilio would fail the call with error {error}")
        case SoundCardError():
            return Failure(str(error))
        case OSError():
            return Failure(f"cannot write {save}: {error.strerror}")
    return error


async def _until_interrupted(caller: SimulatedPhone, url: str, plan: Plan, view: CallView) -> bool:
    """Run `call`; the first Ctrl-C hangs up, a second one aborts."""
    hang_up = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def listen() -> None:
                async for _ in signals:
                    if hang_up.is_set() or not view.watching:
                        raise KeyboardInterrupt
                    hang_up.set()

            await call(caller, url, plan, view, hang_up)
            nursery.cancel_scope.cancel("the call is over")
    return hang_up.is_set()


def speech(audio: Path | None) -> bytes:
    """Return a WAV file, or the built-in caller's speech, as µ-law at 8 kHz."""
    if audio is None:
        return load_clip("caller")
    try:
        return read_wav(audio)
    except SpeechFileError as error:
        raise Misconfigured(str(error)) from error
    except OSError as error:
        raise Misconfigured(f"cannot read {audio}: {error.strerror}") from error


def speak(texts: tuple[str, ...]) -> list[bytes]:
    """Return the texts spoken by the best synthesiser on this machine, as µ-law at 8 kHz."""
    for text in texts:
        if not text.strip() or len(text) > MOST_CHARACTERS:
            raise Misconfigured(f"--say: expected 1 to {MOST_CHARACTERS} characters of text")
    try:
        return trio.run(synthesise_all, list(texts))
    except SynthesisError as error:
        raise Misconfigured(f"--say: {error}") from None


def _handset() -> Handset:
    try:
        return Handset(SystemSoundCard())
    except SoundCardError as error:
        raise Misconfigured(str(error)) from None
