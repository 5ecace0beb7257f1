"""`bridge load`: places many simulated calls at once against a running bridge."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from bridge.addresses import is_loopback
from bridge.cli.failure import Failure, Misconfigured
from bridge.testing.load.ends import Target
from bridge.testing.load.generator import SET_UP_EACH, Load, LoadPlan, exact_loop
from bridge.testing.load.summary import lines, summary
from bridge.testing.load.wire import WireError


@click.command(context_settings={"show_default": True})
@click.option("--url", default="http://127.0.0.1:5000", help="The bridge to call.")
@click.option("--calls", default=10, type=click.IntRange(1, 10_000), help="Concurrent calls.")
@click.option("--seconds", default=10.0, help="How long to measure with all calls live.")
@click.option("--from", "from_number", default="+15550100001", help="The callers' number.")
@click.option("--to", "to_number", default="+15550100002", help="The number called.")
@click.option(
    "--agent-port",
    type=click.IntRange(1, 65_535),
    help="Also be the agent, on this local port: the server's deepgram.url must be"
    " ws://127.0.0.1:PORT. Then delays and damaged audio are measured both ways.",
)
@click.option(
    "--frame-ms", default=20, help="The server's call.frame_ms, to spread the calls evenly."
)
@click.option(
    "--server-pid", type=int, help="The server's process, to measure its CPU time and memory."
)
@click.option(
    "--yes-this-is-my-server",
    "mine",
    is_flag=True,
    help="Allow a server on another machine. Use it only for your own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def load(
    url: str,
    calls: int,
    seconds: float,
    from_number: str,
    to_number: str,
    agent_port: int | None,
    frame_ms: int,
    server_pid: int | None,
    mine: bool,
    as_json: bool,
) -> None:
    """Place many simulated calls at once against a running bridge; print the figures.

    Calls are set up one by one, are all live for --seconds, and hang up together. Every
    call carries 160 bytes 50 times a second; the audio is not speech. Without
    --agent-port each call has a session with the server's own agent, which may cost money.
    TWILIO_AUTH_TOKEN in the environment signs the requests as Twilio does.

    Exit code 1: no call was admitted, or audio was damaged, or a call ended by itself.
    """
    _check_target(url, mine)
    if not 0 < seconds <= 86_400:
        raise Misconfigured("--seconds: expected more than 0 and at most 86400")
    if not 20 <= frame_ms <= 250:
        raise Misconfigured("--frame-ms: expected 20 to 250, like call.frame_ms")
    if server_pid is not None and not Path(f"/proc/{server_pid}/statm").exists():
        raise Misconfigured(f"--server-pid: no process {server_pid} is visible on this machine")
    token = os.environ.get("TWILIO_AUTH_TOKEN", "").partition(",")[0].strip() or None
    plan = LoadPlan(
        Target(url.rstrip("/"), token, from_number, to_number),
        calls=calls,
        seconds=seconds,
        frame_ms=frame_ms,
        agent_socket=None if agent_port is None else _listen(agent_port),
        server_pid=server_pid,
        strict=False,
    )
    found = summary(calls, _run(plan))
    if as_json:
        result = asdict(found) | {"complaint": found.complaint}
        click.echo(json.dumps(result, indent=2 if sys.stdout.isatty() else None))
    else:
        click.echo("\n".join(lines(found)))
    if found.complaint:
        raise Failure(found.complaint)


def _run(plan: LoadPlan) -> dict[str, Any]:
    click.echo(f"placing {plan.calls} calls to {plan.target.url}", err=True)
    running = Load(plan, on_measuring=lambda: click.echo("all calls are live, measuring", err=True))
    # A garbage collection during the measurement would count as delay of the server.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=exact_loop) as runner:
            return runner.run(running.run())
    except TimeoutError:
        hint = "; is its deepgram.url the agent's port here?" if plan.agent_socket else ""
        raise Failure(f"a call was not set up within {SET_UP_EACH:g} s{hint}") from None
    except WireError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"{error}: is `bridge serve` running?") from None
    finally:
        gc.enable()


def _check_target(url: str, mine: bool) -> None:
    """Refuse a server elsewhere without the option, so that a typing error harms no one."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or "@" in parts.netloc:
        raise Misconfigured("--url: expected an address such as http://127.0.0.1:5000")
    if not is_loopback(parts.netloc) and not mine:
        raise Misconfigured(
            f"--url: {parts.hostname} is not this machine; if the server is yours, add"
            " --yes-this-is-my-server"
        )


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=1024)
    except OSError as error:
        raise Failure(
            f"cannot listen as the agent on port {port} ({error.strerror}): choose a free port"
        ) from None
