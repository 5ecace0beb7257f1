"""A TCP port for a server that has to be told one before it starts."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """Return a port of loopback that nothing listens on.

    From below those that the kernel gives to connections, of which other tests open hundreds, so
    that none of them takes it before the server does.
    """
    chosen = random.SystemRandom()
    while True:
        port = chosen.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
