"""`bridge demo`: runs the server, an agent and a softphone on this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console

from bridge.cli.agent import FILES, FUNCTIONS, read_dialogue
from bridge.cli.failure import Failure, Misconfigured, reason
from bridge.cli.phone.caller import Plan, call
from bridge.cli.phone.command import speech
from bridge.cli.phone.result import summary
from bridge.cli.phone.view import CallView
from bridge.config.agent import default_agent
from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.settings import (
    DeepgramSettings,
    FunctionSettings,
    LoggingSettings,
    RecordSettings,
    ServerSettings,
    Settings,
)
from bridge.local_agent import missing, recognition_unavailable
from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import Dialogue
from bridge.local_agent.pool import Pool
from bridge.local_agent.synthesis import SynthesisError, synthesise_all
from bridge.local_agent.worker_client import WorkerBroken
from bridge.server.kept_token import keeping, page_address
from bridge.testing.agent.script import ECHO_BEHAVIOUR, echo
from bridge.testing.agent.server import SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.speech import write_wav
from bridge.text import printable

# What the built-in caller says to the restaurant; each line waits for the agent's reply.
CALLER = (
    "When are you open?",
    "I would like to book a table for two at half past seven.",
    "Could you repeat that, please?",
    "Goodbye.",
)

RECEPTION = "+15550100003"  # a number reserved for fiction
INSTALL_SECONDS = 600

BANNER = """\
bridge demo: everything runs on this machine, no accounts and no keys

  softphone  {softphone}
             open it, press Call, and talk or type
  console    {console}
             live calls, transcripts, timings
  agent      {agent}
  records    {records}
{say}
To call from another terminal, as Twilio would:
  TWILIO_AUTH_TOKEN={token} {bridge} phone {example} --url {server}
To answer a real number: get a key from https://console.deepgram.com, then
  export DEEPGRAM_API_KEY=… TWILIO_AUTH_TOKEN=…; {bridge} serve --tunnel
and, with TWILIO_ACCOUNT_SID set as well:
  {bridge} number +15551234567 --url ADDRESS
"""

SAY = """\

Say, for instance (the softphone lists all {count} phrases it understands):
{examples}
"""

SPOKEN = str.maketrans("", "", "⟨⟩")
EXAMPLES = ("hours", "book", "repeat", "person", "help", "goodbye")


@dataclass(frozen=True)
class House:
    """The running demo: `server` is its URL, `softphone` the page's with the API token, `token` is
    the auth token that signs requests."""

    server: str
    softphone: str
    token: str


@click.command()
@click.option("--open", "opens", is_flag=True, help="Open the softphone in the browser.")
@click.option(
    "--phone", "audio", metavar="AUDIO.wav", help="Have a simulated phone call and say this."
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Write what that caller heard (WAV); without --phone, the built-in caller calls.",
)
@click.option("--stay", is_flag=True, help="Keep running after that call, until Ctrl-C.")
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    help="The server's port.  [default: a free one]",
)
@click.option(
    "--dialogue", type=FILES, help="A dialogue (TOML): what the agent understands and says."
)
@click.option("--echo", "echoes", is_flag=True, help="An agent that only repeats what it hears.")
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the call records in this folder.  [default: deleted afterwards]",
)
def demo(
    opens: bool,
    audio: str | None,
    save: Path | None,
    stay: bool,
    port: int,
    dialogue: Path | None,
    echoes: bool,
    records: Path | None,
) -> int:
    """Run everything on this machine; needs no accounts and no keys.

    Starts the real server, an agent that hears and speaks, and a softphone page, and prints what to
    open and what to say; Ctrl-C stops it. With --phone or --save, a simulated phone calls instead,
    and the transcript is printed. The machine's config.toml and environment are not used.
    """
    if save is not None and not save.parent.is_dir():
        raise Misconfigured(f"--save {save}: there is no folder {save.parent}")
    if echoes and dialogue is not None:
        raise Misconfigured("--dialogue, --echo: choose one of them")
    if records is not None:
        records = records.absolute()
        try:
            records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Misconfigured(f"--records {records}: {error.strerror or error}") from None
    # Read the caller's audio first, so that a wrong file is reported before anything starts.
    words = [speech(Path(audio))] if audio else []
    known = None if echoes else read_dialogue(dialogue)
    if known is not None:
        _provide()
    if echoes and save is not None and not words:
        words = [speech(None)]
    calls = bool(words) or save is not None
    work = partial(
        _demo,
        known,
        words,
        calls=calls,
        save=save,
        stay=stay or not calls,
        port=port,
        opens=opens,
        records=records,
    )
    try:
        signum = trio.run(_until_signalled, work)
    except* (OSError, WorkerBroken, SynthesisError) as group:
        raise Failure(f"cannot start: {reason(group)}") from None
    return 130 if signum == signal.SIGINT else 0


async def _until_signalled(work: Callable[[], Awaitable[None]]) -> int | None:
    """Run `work` until it is done or SIGINT or SIGTERM arrives; return the signal.

    Signals arrive as events: hypercorn would swallow a KeyboardInterrupt raised in its own tasks.
    """
    received: int | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def listen() -> None:
                nonlocal received
                received = await anext(aiter(signals))
                nursery.cancel_scope.cancel(reason="a signal")

            await work()
            nursery.cancel_scope.cancel(reason="done")
    return received


async def _demo(
    dialogue: Dialogue | None,
    words: list[bytes],
    *,
    calls: bool,
    save: Path | None,
    stay: bool,
    port: int,
    opens: bool,
    records: Path | None,
) -> None:
    with ExitStack() as stack:
        if records is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-demo-")))
        else:
            folder = records
        async with _house(dialogue, port, folder, kept=records is not None) as house:
            if opens:
                await _open(house.softphone)
            if calls:
                if not words:
                    words = await synthesise_all(list(CALLER))
                await _call(house, words, save)
            if stay:
                click.echo("Press Ctrl-C to stop.", err=True)
                await trio.sleep_forever()


@asynccontextmanager
async def _house(
    dialogue: Dialogue | None, port: int, folder: Path, *, kept: bool
) -> AsyncIterator[House]:
    """Run agent and server while the context is open."""
    # Not above: importing the server takes longer than all else that --help does.
    from bridge.http.app import create_app
    from bridge.server.serve import hypercorn_config, serve

    async with trio.open_nursery() as nursery:
        phrases: list[str] = []
        max_calls = ServerSettings().max_calls
        agent_settings, functions = default_agent(), FunctionSettings()
        if dialogue is None:
            agent = SimulatedAgent(echo, ECHO_BEHAVIOUR, keep_sessions=1)
            who = "repeats what it hears, in the caller's own voice"
        else:
            pool = Pool(dialogue.setup())
            await nursery.start(pool.run)
            agent = local_agent(dialogue, pool, keep_sessions=1)
            phrases = dialogue.readable()
            max_calls = pool.size  # callers beyond it hear "busy" at once
            who = f"understands {len(phrases)} phrases; its voice is {pool.voice}"
            if dialogue.file.greeting:
                agent_settings["greeting"] = dialogue.file.greeting
            functions = FunctionSettings(module=FUNCTIONS, transfer_to={"reception": RECEPTION})
        agent_port = await nursery.start(agent.serve)
        settings = Settings(
            server=ServerSettings(bind=f"127.0.0.1:{port}", max_calls=max_calls),
            deepgram=DeepgramSettings(url=f"ws://127.0.0.1:{agent_port}/v1/agent/converse"),
            functions=functions,
            logging=LoggingSettings(level="warning"),
            records=RecordSettings(url=f"sqlite:///{folder / 'calls.db'}"),
            agent=agent_settings,
        )
        # Signatures are checked as in production: the phone signs with a token made here.
        token = secrets.token_hex(16)
        app = create_app(FixedConfig(settings), Secrets(twilio_auth_tokens=(token,)))
        app.extensions["bridge"].phrases = tuple(phrases)
        run_server = partial(serve, app, hypercorn_config(settings), shutdown=trio.Event())
        server = (await nursery.start(run_server))[0]
        api_token = app.extensions["bridge"].api_token
        softphone = page_address(server, api_token, "/softphone")
        where = f"{folder / 'calls.db'}" + (
            "" if kept else " (deleted afterwards; keep them with --records FOLDER)"
        )
        banner = BANNER.format(
            server=server,
            softphone=softphone,
            console=page_address(server, api_token),
            agent=who,
            records=where,
            token=token,
            bridge=_this_command(),
            say=_what_to_say(dialogue) if dialogue else "",
            example=f'--say "{_examples(dialogue)[0].translate(SPOKEN)}"'
            if dialogue
            else "speech.wav",
        )
        click.echo(banner, err=True)
        with keeping(api_token, [server]):
            yield House(server, softphone, token)
        nursery.cancel_scope.cancel(reason="the demo has ended")


def _this_command() -> str:
    """Return the command that runs bridge from this shell: PATH may lack it, or have iproute2's."""
    started_as, found = sys.argv[0], shutil.which("bridge")
    if Path(started_as).name != "bridge":
        return "bridge"
    if found and Path(found).resolve() == Path(started_as).resolve():
        return "bridge"
    return shlex.quote(started_as)


async def _open(page: str) -> None:
    if not await trio.to_thread.run_sync(webbrowser.open, page, abandon_on_cancel=True):
        click.echo(f"Cannot open a browser here; open {page} yourself.", err=True)


def _examples(dialogue: Dialogue) -> list[str]:
    """Return a phrase of each turn in EXAMPLES, or the first phrases of another dialogue."""
    named = {
        turn.name: phrases[0]
        for turn, phrases in zip(dialogue.file.turns, dialogue.phrases, strict=True)
    }
    chosen = [dialogue.shown(named[name]) for name in EXAMPLES if name in named]
    return chosen if len(chosen) > 2 else dialogue.readable()[: len(EXAMPLES)]


def _what_to_say(dialogue: Dialogue) -> str:
    examples = "\n".join(f"  {phrase}" for phrase in _examples(dialogue))
    return SAY.format(count=len(dialogue.readable()), examples=examples)


async def _call(house: House, words: list[bytes], save: Path | None) -> None:
    """Have a simulated phone call and say `words`, one after each reply."""
    view = CallView(Console(stderr=True))
    caller = SimulatedPhone(on_event=view.event, auth_token=house.token)
    try:
        await call(caller, house.server, Plan(words[0], then=tuple(words[1:])), view)
    finally:
        # Also after an interruption: save what was heard until then.
        if save is not None and view.watching:
            write_wav(save, caller.heard)
    click.echo(transcript(view))
    click.echo(summary(caller, view, save))


def transcript(view: CallView) -> str:
    """Return the transcript as text, with the reply time of each spoken turn."""
    if view.live is None:
        return ""
    # A line of the caller's is confirmed together with its turn.
    replies = {turn.get("confirmed_at"): turn.get("reply_seconds") for turn in view.live.turns}
    lines, seconds = [], None
    for line in view.live.transcript:
        at, role = line.get("at"), str(line.get("role", ""))
        shown = f"{at:6.1f} s" if isinstance(at, int | float) else " " * 8
        took = ""
        if role == "agent" and isinstance(seconds, int | float):
            took = f"  ({seconds:.2f} s after the caller)"
        seconds = None if role == "agent" else replies.get(at)
        heard = "  [cut off]" if line.get("heard") == "cut" else ""
        lines.append(f"{shown}  {role:<7} {printable(str(line.get('words', '')))}{heard}{took}")
    return "\n".join([*lines, ""])


def _provide() -> None:
    """Install the local agent's packages if they are missing. Raises Failure with the remedy."""
    if not missing():
        return
    if why := recognition_unavailable():
        raise Failure(f"{why}; or bridge demo --echo, which needs no recognition")
    wanted = local_requirements(importlib.metadata.requires("bridge") or [])
    click.echo(
        f"Installing the local agent's packages (half a minute): {', '.join(wanted)}", err=True
    )
    command = [sys.executable, "-m", "pip", "install", "--quiet", *wanted]
    try:
        done = subprocess.run(  # noqa: S603 - our own list of requirements
            command, stdout=stderr_descriptor(), timeout=INSTALL_SECONDS, check=False
        )
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired):
        failed = True
    importlib.invalidate_caches()
    if failed or missing():
        raise Failure(
            f"{missing() or 'they cannot be installed'}; or bridge demo --echo, which needs none"
        )


def stderr_descriptor() -> int:
    """Return the descriptor for pip's output: standard output is for results only."""
    return sys.stderr.fileno()


def local_requirements(requirements: list[str]) -> list[str]:
    """Return the requirements of the extra `local`, without its marker.

    pip is given these and not `bridge[local]`: see `extras.install_command`.
    """
    found = []
    for text in requirements:
        requirement, _, marker = text.partition(";")
        if re.search(r"extra == ['\"]local['\"]", marker):
            rest = re.sub(r"\s*(and\s+)?extra == ['\"]local['\"]", "", marker).strip(" ()")
            found.append(f"{requirement.strip()}; {rest}" if rest else requirement.strip())
    return found
