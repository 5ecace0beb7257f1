"""`bridge demo`: the server, an agent and a phone on this machine, and a call between them."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console

from bridge.cli import Failure, Misconfigured, reason
from bridge.cli.call_view import CallView
from bridge.cli.phone import Plan, call, speech, summary
from bridge.config import (
    DeepgramSettings,
    LoggingSettings,
    RecordSettings,
    Secrets,
    ServerSettings,
    Settings,
)
from bridge.config_file import FixedConfig
from bridge.server.serve import hypercorn_config, serve
from bridge.simulator.agent import SimulatedAgent
from bridge.simulator.phone import SimulatedPhone
from bridge.simulator.script import ECHO_BEHAVIOUR, echo
from bridge.simulator.speech import write_wav
from bridge.web import create_app

BANNER = """\
bridge   {server}   the real server; POST /incoming-call is its webhook
agent    {agent}   simulated: it repeats what it hears
phone    calls the server as Twilio would, over real sockets
"""

STAYING = """\
The server and the agent stay up until Ctrl-C. Call them yourself, from another terminal:
    TWILIO_AUTH_TOKEN={token} bridge phone speech.wav --url {server} --save heard.wav
"""


@click.command()
@click.option("--phone", "audio", metavar="AUDIO.wav", help="What the caller says.")
@click.option("--save", type=click.Path(path_type=Path), help="Write what the caller heard (WAV).")
@click.option("--stay", is_flag=True, help="Stay up after the call, until Ctrl-C.")
@click.option("--port", default=0, help="The server's port.  [default: a free one]")
def demo(audio: str | None, save: Path | None, stay: bool, port: int) -> int:
    """Everything on this machine, no accounts and no keys.

    Starts the real server and a simulated agent, and calls them with a simulated phone: the caller
    says a few sentences, the agent repeats each in the caller's own voice. Configuration and
    environment of the machine are left out of it.
    """
    if save is not None and not save.parent.is_dir():
        raise Misconfigured(f"--save {save}: there is no folder {save.parent}")
    words = speech(Path(audio) if audio else None)
    try:
        signum = trio.run(_until_signalled, partial(_demo, words, save=save, stay=stay, port=port))
    except* OSError as group:
        raise Failure(f"cannot start: {reason(group)}") from None
    return 130 if signum == signal.SIGINT else 0


async def _until_signalled(work: Callable[[], Awaitable[None]]) -> int | None:
    """Run `work` until it is done or SIGINT or SIGTERM comes, and return the signal.

    Read as events: hypercorn takes a KeyboardInterrupt that strikes its own tasks for its own.
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


async def _demo(words: bytes, *, save: Path | None, stay: bool, port: int) -> None:
    async with trio.open_nursery() as nursery:
        simulated = SimulatedAgent(echo, ECHO_BEHAVIOUR, keep_sessions=1)
        agent_port = await nursery.start(simulated.serve)
        agent = f"ws://127.0.0.1:{agent_port}/v1/agent/converse"
        settings = Settings(
            server=ServerSettings(bind=f"127.0.0.1:{port}"),
            deepgram=DeepgramSettings(url=agent),
            logging=LoggingSettings(level="warning"),
            records=RecordSettings(url=""),
        )
        # Protected like any other: the phone signs as Twilio does, with a token of its own.
        token = secrets.token_hex(16)
        app = create_app(FixedConfig(settings), Secrets(twilio_auth_tokens=(token,)))
        run_server = partial(serve, app, hypercorn_config(settings), shutdown=trio.Event())
        server = (await nursery.start(run_server))[0]
        click.echo(BANNER.format(server=server, agent=agent), err=True)
        view = CallView(Console(stderr=True))
        caller = SimulatedPhone(on_event=view.event, auth_token=token)
        try:
            await call(caller, server, Plan(words), view)
        finally:
            # Also after an interruption: what was heard until then is there to be listened to.
            if save is not None and view.watching:
                write_wav(save, caller.heard)
        click.echo(summary(caller, view, save))
        if stay:
            click.echo(STAYING.format(server=server, token=token), err=True)
            await trio.sleep_forever()
        nursery.cancel_scope.cancel(reason="the demo is over")
