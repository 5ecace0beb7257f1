"""Makes hypercorn's own command line serve this application as `bridge serve` does.

`hypercorn --worker-class trio bridge:app` imports the application in its worker process before it
looks up what to run there; `install`, called by that import, puts ours in its place.
"""

from __future__ import annotations

from typing import Any

import hypercorn.trio.run
from hypercorn.config import Config
from quart_trio import QuartTrio

from bridge.config import ConfigError
from bridge.server import guard

_worker_serve = hypercorn.trio.run.worker_serve


def install() -> None:
    """Give hypercorn's Trio worker our start-up check and the remedies of `guard`. Idempotent."""
    guard.install()
    hypercorn.trio.run.worker_serve = worker_serve


async def worker_serve(app: Any, config: Config, **options: Any) -> None:
    """Serve as hypercorn's worker does, unless the configuration is unusable.

    Raises SystemExit with the one line that says what to do. From the application's start-up
    function, hypercorn would make two tracebacks of it and go on serving.
    """
    application = getattr(app, "app", app)
    bridge = application.extensions.get("bridge") if isinstance(application, QuartTrio) else None
    if bridge is not None:
        try:
            bridge.prepare()
        except ConfigError as error:
            raise SystemExit(f"bridge: {error}") from None
    await _worker_serve(app, config, **options)
