"""`bridge agent`: runs a local agent as a server."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import click
import trio

from bridge.cli.failure import Failure, Misconfigured, reason
from bridge.local_agent import missing
from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import Dialogue, DialogueError, load_dialogue
from bridge.local_agent.pool import Pool
from bridge.local_agent.worker_client import WorkerBroken
from bridge.testing.agent.script import ECHO_BEHAVIOUR, ScriptError, echo, load_script
from bridge.testing.agent.server import AgentSession, SimulatedAgent

# The functions that the built-in dialogue calls; the bridge runs them, as for any agent.
FUNCTIONS = "bridge.local_agent.restaurant"
# Past sessions are kept for inspection from Python; a long-running server needs few.
KEEP_SESSIONS = 4

FILES = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Run a local agent that speaks the Voice Agent protocol.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=9000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 picks a free one.",
)
@click.option(
    "--dialogue", type=FILES, help="A dialogue (TOML): what the agent understands and says."
)
@click.option("--script", type=FILES, help="A script (TOML) for an agent that recognises no words.")
@click.option("--echo", "echoes", is_flag=True, help="An agent that repeats what it hears.")
def agent(host: str, port: int, dialogue: Path | None, script: Path | None, echoes: bool) -> int:
    """Run a local agent that speaks Deepgram's Voice Agent protocol. It needs no key.

    It plays the front desk of a restaurant: it recognises speech, understands a few phrases and
    answers aloud; --dialogue gives it others. With --script or --echo it recognises no words and
    needs no extra packages. Ctrl-C stops it.
    """
    if sum(map(bool, (dialogue, script, echoes))) > 1:
        raise Misconfigured("--dialogue, --script, --echo: choose one of them")
    if script is not None or echoes:
        try:
            play, behaviour = load_script(script) if script else (echo, ECHO_BEHAVIOUR)
        except ScriptError as error:
            raise Misconfigured(str(error)) from None
        server = SimulatedAgent(play, behaviour, on_event=_print, keep_sessions=KEEP_SESSIONS)
        return trio.run(_listen, host, port, partial(_serve, server, "The simulated agent"))
    if why := missing():
        raise Failure(f"{why}; or bridge agent --echo, which recognises no words")
    known = read_dialogue(dialogue)
    more = "" if dialogue else f'[functions]\nmodule = "{FUNCTIONS}"'
    return trio.run(_listen, host, port, partial(_serve_local, known, more))


def read_dialogue(path: Path | None) -> Dialogue:
    """Read a dialogue, by default the built-in one. Raises Misconfigured."""
    try:
        return load_dialogue(path)
    except DialogueError as error:
        raise Misconfigured(str(error)) from None


Serve = Callable[[str, list[trio.SocketListener]], Awaitable[None]]


async def _listen(host: str, port: int, serve: Serve) -> int:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise Failure(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from None
    received = 0
    # Signals arrive as events: KeyboardInterrupt could be raised in the middle of a session.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, host, listeners)
                received = await anext(aiter(signals))
                nursery.cancel_scope.cancel()
        except* WorkerBroken as group:
            raise Failure(str(reason(group))) from None
    return 130 if received == signal.SIGINT else 0


async def _serve_local(
    dialogue: Dialogue, settings: str, host: str, listeners: list[trio.SocketListener]
) -> None:
    pool = Pool(dialogue.setup())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        server = local_agent(dialogue, pool, on_event=_print, keep_sessions=KEEP_SESSIONS)
        count = len(dialogue.readable())
        knows = f"It understands {count} phrases and no others; its voice is {pool.voice}."
        # A bridge that knows the limit tells further callers at once; without it, it tries again.
        limit = f"[server]\nmax_calls = {pool.size}"
        more = (limit, settings, knows) if settings else (limit, knows)
        await _serve(server, "The local agent", host, listeners, more=more)


async def _serve(
    server: SimulatedAgent,
    name: str,
    host: str,
    listeners: list[trio.SocketListener],
    *,
    more: Sequence[str] = (),
) -> None:
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(server.serve_listeners, listeners)
        shown = f"[{host}]" if ":" in host else host
        address = f"ws://{shown}:{bound}/v1/agent/converse"
        _say(f"{name} listens on {address}")
        _say("To connect a bridge to it, put this into config.toml:")
        _say(f'[deepgram]\nurl = "{address}"')
        for words in more:
            _say(words)


def _print(session: AgentSession, text: str) -> None:
    seconds = trio.current_time() - session.opened_at
    _say(f"[{session.number}] {seconds:6.1f} s  {text}")


def _say(text: str) -> None:
    click.echo(text, err=True)
    sys.stderr.flush()
