"""Put bridge's classes in the place of hypercorn's."""

from __future__ import annotations

import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.trio.run

from bridge.server.hypercorn.connection import GuardedTCPServer
from bridge.server.hypercorn.http1 import GuardedH11Protocol
from bridge.server.hypercorn.http2 import GuardedH2Protocol
from bridge.server.hypercorn.http_stream import GuardedHTTPStream
from bridge.server.hypercorn.websocket import GuardedWSStream


def install() -> None:
    """Make hypercorn use the guarded classes, also under its own command line. Idempotent."""
    hypercorn.trio.run.TCPServer = GuardedTCPServer  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.H11Protocol = GuardedH11Protocol  # type: ignore[attr-defined]
    hypercorn.protocol.H2Protocol = GuardedH2Protocol  # type: ignore[attr-defined]
    hypercorn.protocol.h11.HTTPStream = GuardedHTTPStream  # type: ignore[attr-defined]
    hypercorn.protocol.h2.HTTPStream = GuardedHTTPStream  # type: ignore[attr-defined]
    hypercorn.protocol.h11.WSStream = GuardedWSStream  # type: ignore[attr-defined]
    hypercorn.protocol.h2.WSStream = GuardedWSStream  # type: ignore[attr-defined]
