"""What trio-websocket leaves out when the other end breaks the protocol.

It ends the connection without a word, though RFC 6455 (section 7.1.7) has whoever fails a
connection say why; and it collects the body of a refused handshake for as long as one comes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, RejectData

# To a peer that does not read it would never be said.
SAY_SECONDS: Final = 1.0

# More than any page that says why a handshake was refused.
MAX_REFUSAL_BYTES: Final = 64 * 1024


class Breach(Exception):
    """The other end broke the websocket protocol. Says how."""


def attend(connection: WebSocketConnection) -> None:
    """Do both from now on; called before the connection's reader starts."""
    close: Any = connection._handle_close_connection_event
    refused: Any = connection._handle_reject_data_event

    async def handle_close(event: CloseConnection) -> None:
        # A Close that came has changed the state. This one is wsproto's for what cannot be read.
        breach = connection._wsproto.state is ConnectionState.OPEN
        if breach:
            with trio.move_on_after(SAY_SECONDS), suppress(ConnectionClosed):
                await connection._send(CloseConnection(code=event.code, reason=event.reason))
        await close(event)
        if breach:
            raise Breach(event.reason or f"code {event.code}")

    async def handle_refusal(event: RejectData) -> None:
        if len(connection._reject_body) + len(event.data) > MAX_REFUSAL_BYTES:
            raise Breach(f"a refusal of more than {MAX_REFUSAL_BYTES} bytes")
        await refused(event)

    connection._handle_close_connection_event = handle_close  # type: ignore[method-assign]
    connection._handle_reject_data_event = handle_refusal  # type: ignore[method-assign]
