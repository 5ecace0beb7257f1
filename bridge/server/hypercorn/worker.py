"""Make hypercorn's own command line serve this application as `bridge serve` does.

`hypercorn --worker-class trio bridge.asgi:app` imports the application in its worker process before
it looks up the function to run there. `install`, called by that import, replaces that function with
`hypercorn_worker`, which adds the start-up check, the remedies that the module `install` puts in,
bridge's settings where the operator left hypercorn's defaults, and the stop sequence of `stopping`.
As every call is carried by one process, this covers nearly everything. Hypercorn's parent process
cannot be changed from here, hence these differences:

`-w 0` (no parent): SIGTERM drains; a second SIGTERM, or SIGINT, ends the calls at once, cleanly.
    Everything is as under `bridge serve`, except that the exit status after SIGINT is 0.

`-w 1` (hypercorn's default) and more: SIGTERM to the parent drains, also when it is repeated,
    because hypercorn's parent does not forward a second one; so does SIGTERM to all processes, as
    systemd sends it. Ctrl-C in a terminal, which reaches all processes, ends the calls at once;
    SIGINT to the parent alone drains. The exit status is 0. If only one worker gets SIGTERM, it
    drains and ends, and hypercorn starts another. If the parent is killed, its workers drain and
    end.

`-w 2` and more: when the first worker ends, the parent sends SIGTERM to the others, and again when
    it ends itself; they continue to drain, and the parent waits for them. A worker that crashes is
    not replaced: hypercorn drains the others and exits, with status 0 even then.

SIGHUP to the parent drains all workers and starts new ones; callers hear "busy" in between.
An unusable configuration is reported in one line on standard error, with exit status 1 under
`-w 0`; hypercorn's parent turns the status into 0. `GET /metrics` adds up the workers if
PROMETHEUS_MULTIPROC_DIR names an empty folder; see `metrics_folder`. `--max-requests` ends a worker
in hypercorn's own way: calls are cut off after `--graceful-timeout`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext
from multiprocessing import parent_process
from typing import Any, NoReturn

import hypercorn.trio.run
import trio
from hypercorn.config import Config
from quart_trio import QuartTrio

from bridge.config.settings import ConfigError, Settings
from bridge.log import get_logger
from bridge.server.hypercorn.connection import GuardedTCPServer
from bridge.server.hypercorn.install import install as install_remedies
from bridge.server.kept_token import announced
from bridge.server.limits import raise_descriptor_limit, too_few_connections
from bridge.server.stopping import Stop, StopSignals, graceful_timeout
from bridge.server.watchdog import watching

log = get_logger(__name__)

_worker_serve = hypercorn.trio.run.worker_serve


def install() -> None:
    """Replace the function that hypercorn's Trio worker runs. Idempotent."""
    install_remedies()
    hypercorn.trio.run.worker_serve = hypercorn_worker
    # Loaded already if hypercorn is about to run one of its other workers, of which one is default.
    if (asyncio_workers := sys.modules.get("hypercorn.asyncio.run")) is not None:
        asyncio_workers.worker_serve = _refuse_asyncio  # type: ignore[attr-defined]


def _refuse_asyncio(*arguments: Any, **options: Any) -> NoReturn:
    """End the process with the remedy: under asyncio every single request would fail."""
    raise SystemExit(
        "bridge: hypercorn runs asyncio, and this server needs Trio; add --worker-class trio"
    )


async def hypercorn_worker(app: Any, config: Config, **options: Any) -> None:
    """Serve as hypercorn's worker does, and stop as this module describes.

    Raises SystemExit with one line that says what to do if the configuration is unusable. Raised by
    the application's start-up function instead, hypercorn would log two tracebacks and continue.
    """
    bridge = bridge_of(app)
    if bridge is None:
        await _worker_serve(app, config, **options)
        return
    try:
        settings = bridge.prepare()
    except ConfigError as error:
        raise SystemExit(f"bridge: {error}") from None
    if config.workers > 1 and not bridge.metrics.reads_files:
        log.warning(
            "GET /metrics reports only the worker that answers; set PROMETHEUS_MULTIPROC_DIR to an "
            "empty folder to get the sum of all workers, or run bridge serve"
        )
    adopt(config, settings)
    bridge.entrance.alone = config.workers <= 1
    stop = Stop(bridge)
    parents_trigger = options.pop("shutdown_trigger", None)
    # Python delivers signals to the main thread only; in another thread its owner handles them.
    in_main_thread = threading.current_thread() is threading.main_thread()
    signals = (
        StopSignals(second_sigterm_stops_now=parents_trigger is None) if in_main_thread else None
    )

    async def trigger() -> None:
        async with trio.open_nursery() as nursery:
            if parents_trigger is not None:
                nursery.start_soon(_follow_parent, parents_trigger, stop)
                nursery.start_soon(_drain_without_parent, stop)
            await stop.run()
            nursery.cancel_scope.cancel(reason="the calls are over")

    with signals or nullcontext():
        if signals is not None:
            signals.tell(stop)
        await serve_until(trigger, app, config, announce=True, **options)


async def serve_until(
    trigger: Callable[[], Awaitable[None]],
    app: Any,
    config: Config,
    *,
    announce: bool = False,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Run hypercorn's own worker until `trigger` returns: then the listeners close, and
    `config.graceful_timeout` seconds later the remaining connections are cancelled. `options` are
    hypercorn's. With `announce`, the console's address is printed as soon as the server listens.

    The watchdog runs meanwhile: a blocked event loop is the one failure no nursery can see.
    """
    bridge = bridge_of(app)
    raise_descriptor_limit()
    max_calls = bridge.settings_now().server.max_calls
    if warning := too_few_connections(max_calls, GuardedTCPServer.limiter.limit):
        log.warning(warning)

    async def calls_are_over() -> None:
        await trigger()
        # Streams of live events must not delay the stop.
        bridge.live.close()

    with ExitStack() as announcement:

        class Listening(trio.TaskStatus[list[str]]):
            def started(self, value: list[str] | None = None) -> None:
                assert value is not None
                if announce and bridge.run_token:
                    announcement.enter_context(announced(bridge.run_token, value))
                task_status.started(value)

        async with bridge.running():
            with watching(on_stall=bridge.loop_stalled):
                await _worker_serve(
                    app,
                    config,
                    shutdown_trigger=calls_are_over,
                    task_status=Listening(),
                    **options,
                )


def bridge_of(app: Any) -> Any:
    """Return the `Bridge` of an application, wrapped by hypercorn or not; None for another app."""
    application = getattr(app, "app", app)
    return application.extensions.get("bridge") if isinstance(application, QuartTrio) else None


def adopt(config: Config, settings: Settings) -> None:
    """Give hypercorn bridge's settings where the operator left its defaults."""
    ours = {
        # Uses bridge's handlers, for escaping and redaction; hypercorn would install its own.
        "errorlog": logging.getLogger("hypercorn.error"),
        "graceful_timeout": graceful_timeout(settings),
        "alpn_protocols": ["http/1.1"],
        # By default a peer that begins TLS and falls silent keeps its connection for a minute.
        "ssl_handshake_timeout": 10,
    }
    for name, value in ours.items():
        # Hypercorn's defaults are attributes of the class; chosen values are the instance's.
        if name not in vars(config):
            setattr(config, name, value)


async def _follow_parent(parents_trigger: Callable[[], Awaitable[None]], stop: Stop) -> None:
    await parents_trigger()
    stop.drain("hypercorn stops")


async def _drain_without_parent(stop: Stop) -> None:
    """Drain when hypercorn's parent process has died without a signal to this worker."""
    parent = parent_process()
    if parent is not None:
        # A pipe that becomes readable when the parent's end is closed.
        await trio.lowlevel.wait_readable(parent.sentinel)
        stop.drain("hypercorn's parent process is gone")
