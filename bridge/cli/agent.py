"""`bridge agent`: the simulated agent as a server of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click
import trio

from bridge.cli import Failure, Misconfigured
from bridge.simulator.agent import AgentSession, SimulatedAgent
from bridge.simulator.script import ECHO_BEHAVIOUR, ScriptError, echo, load_script

# Sessions are kept for people who look at them from Python; a long-running server needs few.
KEEP_SESSIONS = 4


@click.command(short_help="Run a local agent that speaks the Voice Agent protocol.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=9000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--script",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file: what the agent hears, says and does.",
)
def agent(host: str, port: int, script: Path | None) -> int:
    """Run a local agent that speaks Deepgram's Voice Agent protocol. It needs no key.

    Without --script it greets, then repeats each thing the caller says in the caller's own voice.
    It recognises no words. Ctrl-C ends it.
    """
    try:
        play, behaviour = load_script(script) if script else (echo, ECHO_BEHAVIOUR)
    except ScriptError as error:
        raise Misconfigured(str(error)) from None
    server = SimulatedAgent(play, behaviour, on_event=_print, keep_sessions=KEEP_SESSIONS)
    return trio.run(_serve, server, host, port)


async def _serve(server: SimulatedAgent, host: str, port: int) -> int:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise Failure(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from None
    # Signals are read as events, since KeyboardInterrupt could strike in the middle of a session.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(server.serve_listeners, listeners)
            shown = f"[{host}]" if ":" in host else host
            address = f"ws://{shown}:{bound}/v1/agent/converse"
            _say(f"The simulated agent listens on {address}")
            _say("For a bridge that talks to it, put into config.toml:")
            _say(f'[deepgram]\nurl = "{address}"')
            number = await anext(aiter(signals))
            nursery.cancel_scope.cancel()
    return 130 if number == signal.SIGINT else 0


def _print(session: AgentSession, text: str) -> None:
    seconds = trio.current_time() - session.opened_at
    _say(f"[{session.number}] {seconds:6.1f} s  {text}")


def _say(text: str) -> None:
    click.echo(text, err=True)
    sys.stderr.flush()
