"""`bridge serve`: the server, settings from config.toml."""

from __future__ import annotations

import os
from functools import partial

import click
import trio

from bridge.cli import Failure, Misconfigured, reason
from bridge.config import ConfigError


@click.command()
@click.option("--config", metavar="FILE", help="The configuration file, instead of config.toml.")
@click.option("--bind", metavar="HOST:PORT", help="Where to listen, instead of server.bind.")
def serve(config: str | None, bind: str | None) -> None:
    """Run the server.

    Settings come from config.toml in the working directory, or from the file that BRIDGE_CONFIG
    names; secrets from the environment: DEEPGRAM_API_KEY, TWILIO_AUTH_TOKEN.
    """
    # Not at the top: `bridge serve --help` need not load a web framework.
    from bridge.server.serve import hypercorn_config
    from bridge.server.serve import serve as run_server
    from bridge.web import app

    if config is not None:
        os.environ["BRIDGE_CONFIG"] = config
    try:
        settings = app.extensions["bridge"].prepare()
    except ConfigError as error:
        raise Misconfigured(str(error)) from None
    hypercorn = hypercorn_config(settings)
    if bind is not None:
        hypercorn.bind = [bind]
    try:
        trio.run(partial(run_server, app, hypercorn))
    except* OSError as group:
        raise Failure(f"cannot listen on {hypercorn.bind[0]}: {reason(group)}") from None
