"""`python -m bridge.server.worker_process LIFELINE SOCKET...`: one worker of `supervisor`.

The arguments are numbers of descriptors inherited from the parent: the worker's end of the lifeline
and the listening sockets. Everything else comes from the environment and the configuration file, as
for the parent.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from hypercorn.config import Config
from quart_trio import QuartTrio

from bridge.asgi import app
from bridge.config.settings import ConfigError
from bridge.server.hypercorn.worker import bridge_of
from bridge.server.serve import hypercorn_config, serve
from bridge.server.stopping import Stop, StopSignals, drain_at_most, stop_now_at_most

# A few bytes into an empty buffer: only a parent that is stopped for good could make this wait.
REPORT_SECONDS: Final = 5.0


async def work(
    app: QuartTrio, lifeline: socket.socket, listening: Sequence[str], signals: StopSignals
) -> None:
    """Serve on these descriptors until a signal or the end of the parent ends it."""
    bridge = bridge_of(app)
    stop = Stop(bridge)
    signals.tell(stop)
    config = hypercorn_config(bridge.settings_now())
    config.bind = [f"fd://{number}" for number in listening]
    lifeline.setblocking(False)
    parent = trio.SocketStream(trio.socket.from_stdlib_socket(lifeline))
    async with parent, trio.open_nursery() as nursery:
        nursery.start_soon(_survive, parent, stop)
        await nursery.start(partial(_serve, nursery, app, config, stop))
        await _report(parent, drain_at_most(bridge.settings_now()))
        await stop.wait_draining()
        await _report(parent, drain_at_most(bridge.settings_now()))
        await stop.wait_stopping_now()
        await _report(parent, stop_now_at_most(bridge.settings_now()))


async def _serve(
    nursery: trio.Nursery,
    app: QuartTrio,
    config: Config,
    stop: Stop,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    await serve(app, config, stop=stop, task_status=task_status)
    nursery.cancel_scope.cancel(reason="the server has stopped")


async def _survive(parent: trio.SocketStream, stop: Stop) -> None:
    """Drain when the parent is gone. It never writes, so whatever is received is the end."""
    with suppress(trio.BrokenResourceError):
        await parent.receive_some(1)
    stop.drain("the parent process is gone")


async def _report(parent: trio.SocketStream, seconds: float) -> None:
    """Tell the parent how long this worker may take to end. `_survive` notices if it is gone."""
    with trio.move_on_after(REPORT_SECONDS), suppress(trio.BrokenResourceError):
        await parent.send_all(f"{seconds}\n".encode())


def main() -> None:
    """Run the worker process: arguments from sys.argv, result as exit status."""
    lifeline, *listening = sys.argv[1:]
    with StopSignals(second_sigterm_stops_now=False) as signals:
        try:
            # First, since this also sets up logging.
            app.extensions["bridge"].prepare()
        except ConfigError as error:
            # The parent could use it, so the file has changed since.
            sys.stderr.write(f"bridge: {error}\n")
            sys.exit(2)
        trio.run(work, app, socket.socket(fileno=int(lifeline)), listening, signals)


if __name__ == "__main__":
    main()
