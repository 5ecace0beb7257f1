"""Detect a dead peer: a crashed machine, a cut cable, a NAT that dropped the connection.

By default TCP does not notice while nothing is sent, and retransmits for a quarter of an hour when
something is. A call whose phone disappeared that way would continue, and cost money, until the
silence timers ended it. https://man7.org/linux/man-pages/man7/tcp.7.html
"""

from __future__ import annotations

import socket
from typing import Final

import trio

# Seconds without incoming data until the first keepalive probe is sent.
IDLE_SECONDS: Final = 10

# Seconds between probes, and how many unanswered probes make the connection fail.
PROBE_INTERVAL_SECONDS: Final = 5
MAX_PROBES: Final = 2

# Sent data that is not acknowledged for this many seconds makes the connection fail. Longer than
# any network outage that a call would survive.
UNACKNOWLEDGED_SECONDS: Final = 15


def detect_dead_peer(stream: trio.abc.Stream) -> None:
    """Make reads and writes fail, as after a reset, once the peer of a TCP connection is dead.

    Works with and without TLS; does nothing on any other stream.
    """
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if not isinstance(stream, trio.SocketStream):
        return
    try:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", IDLE_SECONDS),
            ("TCP_KEEPINTVL", PROBE_INTERVAL_SECONDS),
            ("TCP_KEEPCNT", MAX_PROBES),
            ("TCP_USER_TIMEOUT", 1000 * UNACKNOWLEDGED_SECONDS),
        ):
            # Not every system has all of these options; a missing one keeps the system's default.
            if hasattr(socket, name):
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:
        pass  # not TCP, or closed already: the next read reports it
