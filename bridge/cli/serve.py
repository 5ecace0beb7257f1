"""`bridge serve`: runs the server with the settings from config.toml."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
import trio

from bridge.cli.failure import Failure, Misconfigured, reason
from bridge.config.checks import checked_bind
from bridge.config.settings import ConfigError
from bridge.server.tunnel import TunnelError, open_tunnel

if TYPE_CHECKING:
    from hypercorn.config import Config
    from quart_trio import QuartTrio

    from bridge.server.stopping import StopSignals


@click.command()
@click.option("--config", metavar="FILE", help="The configuration file, instead of config.toml.")
@click.option(
    "--bind", metavar="HOST:PORT", help="The address to listen on, instead of server.bind."
)
@click.option("--tunnel", is_flag=True, help="Get a public address through cloudflared or ngrok.")
@click.option("--reload", is_flag=True, help="Load edited functions for the next call.")
def serve(config: str | None, bind: str | None, tunnel: bool, reload: bool) -> int:
    """Run the server.

    Settings come from config.toml in the working directory, or from the file that BRIDGE_CONFIG
    names; secrets come from the environment: DEEPGRAM_API_KEY, TWILIO_AUTH_TOKEN.

    SIGTERM drains: no new calls, and the server stops when the live ones have ended, at the latest
    after server.drain_seconds and a goodbye from the agent. A second SIGTERM, or Ctrl-C, ends the
    calls at once.
    """
    # Not above: importing the server takes longer than all else that --help does.
    from bridge import asgi
    from bridge.server import serve as serving
    from bridge.server.stopping import StopSignals
    from bridge.server.supervisor import supervise

    if config is not None:
        os.environ["BRIDGE_CONFIG"] = config
    bridge = asgi.app.extensions["bridge"]
    bridge.functions.reload = reload
    with StopSignals() as signals:
        try:
            settings = bridge.prepare()
        except ConfigError as error:
            raise Misconfigured(str(error)) from None
        hypercorn = serving.hypercorn_config(settings)
        if bind is not None:
            try:
                hypercorn.bind = [checked_bind(bind)]
            except ValueError as error:
                raise Misconfigured(f"--bind: {error}") from None
        for option, given in (("--tunnel", tunnel), ("--reload", reload)):
            if given and settings.server.workers > 1:
                raise Misconfigured(
                    f"{option}: works with one worker only; set server.workers to 1"
                )
        status = 0
        try:
            if tunnel:
                trio.run(_run_behind_tunnel, asgi.app, hypercorn, signals)
            elif settings.server.workers > 1:
                status = trio.run(supervise, hypercorn, settings, signals, bridge.run_token)
            else:
                trio.run(serving.run, asgi.app, hypercorn, signals)
        except* OSError as group:
            first = reason(group)
            why = getattr(first, "strerror", None) or first
            raise Failure(
                f"cannot listen on {hypercorn.bind[0]}: {why}; choose another with --bind"
            ) from None
        except* ConfigError as group:
            raise Misconfigured(str(reason(group))) from None
        except* TunnelError as group:
            raise Failure(str(reason(group))) from None
    return 130 if signals.interrupted and status == 0 else status


async def _run_behind_tunnel(app: QuartTrio, config: Config, signals: StopSignals) -> None:
    """Run the server behind a tunnel, whose public address is printed."""
    from bridge.server import serve as serving

    port = int(config.bind[0].rpartition(":")[2])
    async with open_tunnel(port) as address:
        app.extensions["bridge"].tunnel = address
        click.echo(f"public address: {address}", err=True)
        click.echo(f"for Twilio: bridge number +1... --url {address}", err=True)
        await serving.run(app, config, signals)
