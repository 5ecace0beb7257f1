"""Makes hypercorn's own command line serve this application as `bridge serve` does.

`hypercorn --worker-class trio bridge.asgi:app` imports the application in its worker process before
it looks up what to run there; `install`, called by that import, puts ours in its place: start-up
check, the remedies of `connection`, `http1` and `websocket`, our settings where the operator left
hypercorn's defaults, and the stop sequence of `stopping`. As every call is carried in one process,
that is nearly everything. What hypercorn's parent process decides is beyond its reach, so that,
with

`-w 0` (no parent): SIGTERM drains; a second SIGTERM, or SIGINT, ends the calls at once, cleanly.
    All as under `bridge serve`, but that the exit status after SIGINT is 0.

`-w 1` (hypercorn's default) and more: SIGTERM to the parent drains, however often it comes, for
    hypercorn's parent does not pass a second one on; so does SIGTERM to all processes, as systemd
    sends it. Ctrl-C in a terminal, which reaches them all, ends the calls at once; SIGINT to the
    parent alone drains. The exit status is 0. A worker that gets SIGTERM alone drains and ends, and
    hypercorn starts another. When the parent is killed, its workers drain and end.

`-w 2` and more: the first worker to end makes the parent send SIGTERM to the others, again and
    once more when it ends itself; they go on draining, and the parent waits for them. A worker that
    crashes is not replaced: hypercorn drains the others and ends, with status 0 even so.

SIGHUP to the parent drains all workers and starts new ones; callers hear "busy" in between.
An unusable configuration is one line on standard error and, with `-w 0`, exit status 1; hypercorn's
parent makes a 0 of it. `GET /metrics` adds the workers up where PROMETHEUS_MULTIPROC_DIR names an
empty folder; see `metrics_folder`. `--max-requests` ends a worker by hypercorn's own way: calls are
cut after `--graceful-timeout`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from multiprocessing import parent_process
from typing import Any

import hypercorn.trio.run
import trio
from hypercorn.config import Config
from quart_trio import QuartTrio

from bridge.config.settings import ConfigError, Settings
from bridge.log import get_logger
from bridge.server.hypercorn.install import install as install_remedies
from bridge.server.stopping import Stop, StopSignals, graceful_timeout
from bridge.server.watchdog import watching

log = get_logger(__name__)

_worker_serve = hypercorn.trio.run.worker_serve


def install() -> None:
    """Put ours in place of what hypercorn's Trio worker runs. Idempotent."""
    install_remedies()
    hypercorn.trio.run.worker_serve = hypercorn_worker


async def hypercorn_worker(app: Any, config: Config, **options: Any) -> None:
    """Serve as hypercorn's worker does, and stop as this module says.

    Raises SystemExit with the one line that says what to do if the configuration is unusable. From
    the application's start-up function, hypercorn would make two tracebacks of it and go on.
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
            "GET /metrics tells of the worker that happens to answer; set PROMETHEUS_MULTIPROC_DIR "
            "to an empty folder to have the sum, or run bridge serve"
        )
    adopt(config, settings)
    bridge.entrance.alone = config.workers <= 1
    stop = Stop(bridge)
    parents_wish = options.pop("shutdown_trigger", None)
    # Signals reach the main thread only; elsewhere they are somebody else's.
    in_main_thread = threading.current_thread() is threading.main_thread()
    signals = StopSignals(second_sigterm_stops_now=parents_wish is None) if in_main_thread else None

    async def trigger() -> None:
        async with trio.open_nursery() as nursery:
            if parents_wish is not None:
                nursery.start_soon(_heed_parent, parents_wish, stop)
                nursery.start_soon(_survive_parent, stop)
            await stop.run()
            nursery.cancel_scope.cancel(reason="the calls are over")

    with signals or nullcontext():
        if signals is not None:
            signals.tell(stop)
        await serve_until(trigger, app, config, **options)


async def serve_until(
    trigger: Callable[[], Awaitable[None]], app: Any, config: Config, **options: Any
) -> None:
    """Run hypercorn's own worker until `trigger` returns: listeners close, and
    `config.graceful_timeout` later what is left is cancelled. `options` are hypercorn's.

    The event loop is watched meanwhile: a stall is the one failure no nursery can see.
    """
    bridge = bridge_of(app)
    if bridge is None:
        await _worker_serve(app, config, shutdown_trigger=trigger, **options)
        return

    async def calls_are_over() -> None:
        await trigger()
        # Whoever watches is not waited for.
        bridge.live.close()

    async with bridge.running():
        with watching(on_stall=bridge.loop_stalled):
            await _worker_serve(app, config, shutdown_trigger=calls_are_over, **options)


def bridge_of(app: Any) -> Any:
    """The `Bridge` of an application, wrapped by hypercorn or not; None for any other's."""
    application = getattr(app, "app", app)
    return application.extensions.get("bridge") if isinstance(application, QuartTrio) else None


def adopt(config: Config, settings: Settings) -> None:
    """Give hypercorn our settings where the operator left its defaults."""
    ours = {
        # Through our handlers, for escaping and redaction; hypercorn would install its own.
        "errorlog": logging.getLogger("hypercorn.error"),
        "graceful_timeout": graceful_timeout(settings),
        "alpn_protocols": ["http/1.1"],
        # A minute, by default, for a peer that begins TLS and says no more.
        "ssl_handshake_timeout": 10,
    }
    for name, value in ours.items():
        # Hypercorn's defaults are attributes of the class; what was chosen is the instance's.
        if name not in vars(config):
            setattr(config, name, value)


async def _heed_parent(parents_wish: Callable[[], Awaitable[None]], stop: Stop) -> None:
    await parents_wish()
    stop.drain("hypercorn stops")


async def _survive_parent(stop: Stop) -> None:
    """Drain when hypercorn's parent process is gone without a word, rather than serve for ever."""
    parent = parent_process()
    if parent is not None:
        # Readable when the other end of a pipe, the parent's, is closed.
        await trio.lowlevel.wait_readable(parent.sentinel)
        stop.drain("hypercorn's parent process is gone")
