"""`bridge serve`: the server, settings from config.toml."""

from __future__ import annotations

import os

import click
import trio

from bridge.cli import Failure, Misconfigured, reason
from bridge.config import ConfigError


@click.command()
@click.option("--config", metavar="FILE", help="The configuration file, instead of config.toml.")
@click.option("--bind", metavar="HOST:PORT", help="Where to listen, instead of server.bind.")
def serve(config: str | None, bind: str | None) -> int:
    """Run the server.

    Settings come from config.toml in the working directory, or from the file that BRIDGE_CONFIG
    names; secrets from the environment: DEEPGRAM_API_KEY, TWILIO_AUTH_TOKEN.

    SIGTERM ends it when the calls that are on have ended, at the latest after server.drain_seconds
    and a goodbye from the agent. A second SIGTERM, or Ctrl-C, ends the calls at once.
    """
    # Not at the top: `bridge serve --help` need not load a web framework.
    from bridge.server.serve import hypercorn_config, run
    from bridge.server.stopping import StopSignals
    from bridge.server.supervisor import supervise
    from bridge.web import app

    if config is not None:
        os.environ["BRIDGE_CONFIG"] = config
    with StopSignals() as signals:
        try:
            settings = app.extensions["bridge"].prepare()
        except ConfigError as error:
            raise Misconfigured(str(error)) from None
        hypercorn = hypercorn_config(settings)
        if bind is not None:
            hypercorn.bind = [bind]
        status = 0
        try:
            if settings.server.workers > 1:
                status = trio.run(supervise, hypercorn, settings, signals)
            else:
                trio.run(run, app, hypercorn, signals)
        except* OSError as group:
            raise Failure(f"cannot listen on {hypercorn.bind[0]}: {reason(group)}") from None
    return 130 if signals.interrupted and status == 0 else status
