"""Notice a peer that has vanished: a machine gone, a cable cut, a NAT that forgot the connection.

TCP by itself says nothing of it for as long as nothing is sent, and goes on trying for a quarter of
an hour when something is. A call whose phone has gone like that would go on, and be paid for, until
the silence was noticed. https://man7.org/linux/man-pages/man7/tcp.7.html
"""

from __future__ import annotations

import socket
from typing import Final

import trio

# A connection on which nothing has come for so long is asked for a sign of life...
IDLE_SECONDS: Final = 10

# ...so often, and given up after so many questions without an answer.
ASK_SECONDS: Final = 5
QUESTIONS: Final = 2

# What was sent and has not been acknowledged for so long was sent to nobody. Longer than any pause
# of a network that a call would outlive anyway.
UNHEARD_SECONDS: Final = 15


def notice_when_vanished(stream: trio.abc.Stream) -> None:
    """Have reads and writes fail, as on a reset, once the peer at the other end of a TCP
    connection, with or without TLS, has vanished. On any other stream nothing happens."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if not isinstance(stream, trio.SocketStream):
        return
    try:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", IDLE_SECONDS),
            ("TCP_KEEPINTVL", ASK_SECONDS),
            ("TCP_KEEPCNT", QUESTIONS),
            ("TCP_USER_TIMEOUT", 1000 * UNHEARD_SECONDS),
        ):
            # Not every system has all of them; what it lacks is left to its own defaults.
            if hasattr(socket, name):
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:
        pass  # no TCP, or over already, which the next read finds out
