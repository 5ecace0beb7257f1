"""The server in one process: hypercorn under our own `trio.run`, stopped by `stopping`.

`bridge serve` runs it in its own process, or, for more than one worker, `supervisor` runs it in
each of several.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio

from bridge.config.settings import Settings
from bridge.server.hypercorn.install import install
from bridge.server.hypercorn.worker import adopt, bridge_of, serve_until
from bridge.server.stopping import Stop, StopSignals


def hypercorn_config(settings: Settings) -> Config:
    """Hypercorn's settings for a server of calls."""
    config = Config()
    config.bind = [settings.server.bind]
    # Hypercorn's access log copies the whole environment, secrets included, for every request.
    config.accesslog = None
    adopt(config, settings)
    return config


async def run(app: QuartTrio, config: Config, signals: StopSignals) -> None:
    """Serve `app` until `signals` end it; see `serve`."""
    stop = Stop(bridge_of(app))
    signals.tell(stop)
    await serve(app, config, stop=stop, announce=True)


async def serve(
    app: QuartTrio,
    config: Config,
    *,
    shutdown: trio.Event | None = None,
    stop: Stop | None = None,
    announce: bool = False,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until a stop is requested; `task_status` gets the list of addresses bound.

    A stop is requested by `stop` where it is given; or else by setting `shutdown`, which stops at
    once; or else by SIGTERM and SIGINT. With `announce`, the console's address is printed.

    *Resource handling*: when this returns, calls and listeners are closed. *Error handling*: raises
    OSError when an address cannot be bound, ConfigError when the configuration is unusable; calls
    raise nothing. Cancelling it cuts live calls off.
    """
    # Not every program that serves the application has imported `bridge.asgi`.
    install()
    bridge = bridge_of(app)
    bridge.prepare()
    signals = StopSignals() if shutdown is None and stop is None else None
    stop = stop or Stop(bridge)

    async def stop_at(shutdown: trio.Event) -> None:
        await shutdown.wait()
        stop.stop_now("the program stops")

    options: dict[str, Any] = {"task_status": task_status, "announce": announce}
    with signals or nullcontext():
        async with trio.open_nursery() as nursery:
            if signals is not None:
                signals.tell(stop)
            if shutdown is not None:
                nursery.start_soon(stop_at, shutdown)
            await serve_until(stop.run, wrap_app(app, 0, "asgi"), config, **options)
            nursery.cancel_scope.cancel(reason="the server has stopped")
