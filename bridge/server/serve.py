"""`bridge serve`: hypercorn under our own `trio.run`."""

from __future__ import annotations

import logging
import signal
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio

from bridge.config import Settings
from bridge.server.worker import worker_serve

# Media messages are 300 bytes and Twilio's longest, `start`, a few thousand.
MAX_MESSAGE_BYTES: Final = 64 * 1024


def hypercorn_config(settings: Settings) -> Config:
    """Hypercorn's settings for a server of calls."""
    config = Config()
    config.bind = [settings.server.bind]
    config.websocket_max_message_size = MAX_MESSAGE_BYTES
    config.alpn_protocols = ["http/1.1"]
    # Hypercorn's access log copies the whole environment, secrets included, for every request.
    config.accesslog = None
    # Through our handlers, for escaping and redaction; hypercorn would install its own.
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = settings.call.teardown_seconds
    return config


async def serve(
    app: QuartTrio,
    config: Config,
    *,
    shutdown: trio.Event | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until SIGTERM, SIGINT or `shutdown`; started with the list of addresses bound.

    Raises OSError when an address cannot be bound.
    """
    stop = trio.Event() if shutdown is None else shutdown

    async def listen_for_signals(
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                stop.set()

    async with trio.open_nursery() as nursery:
        if shutdown is None:
            await nursery.start(listen_for_signals)
        options: dict[str, Any] = {"shutdown_trigger": stop.wait, "task_status": task_status}
        await worker_serve(wrap_app(app, 0, "asgi"), config, **options)
        nursery.cancel_scope.cancel(reason="the server has stopped")
