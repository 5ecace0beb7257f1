"""The handshake of a websocket, which is all of it that hypercorn does here.

Once the application accepts, the connection's stream is the application's
(`bridge.server.hypercorn.connection`), and frames are `bridge.transport.websocket`'s. Remedies for
the handshake: hypercorn agrees to compression whenever it is offered, answers frames that come
before the accept without telling the application, leaves a refused connection open, and logs a
traceback when the peer sends anything behind a handshake that is being refused.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from h11 import LocalProtocolError
from hypercorn.protocol.events import Body, Data, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream

from bridge.server.hypercorn.connection import CONNECTION_KEY

if TYPE_CHECKING:
    from hypercorn.typing import WebsocketAcceptEvent

    from bridge.server.hypercorn.connection import GuardedTCPServer


class GuardedWSStream(WSStream):
    """One websocket of hypercorn's, up to its accept."""

    _connection: GuardedTCPServer

    async def handle(self, event: StreamEvent) -> None:
        """Take what the peer sent. Once the websocket is refused, the connection is closed."""
        if isinstance(event, Request):
            self._connection = event.state[CONNECTION_KEY]
            self._connection.request_is_whole()
            if event.http_version == "1.1":
                # `WebSocket` does without extensions.
                name = b"sec-websocket-extensions"
                headers = [item for item in event.headers if item[0].lower() != name]
            else:
                # RFC 8441: a stream of HTTP/2 is no connection to hand over, and Twilio never asks
                # for one. Without headers it is a bad handshake, answered 400.
                headers = []
            await super().handle(replace(event, headers=headers))
            if self.closed:
                await self._hang_up()
        elif isinstance(event, Body | Data) and not self.closed:
            if self.handshake.accepted:
                # Read before hypercorn stopped reading.
                self._connection.unread += event.data
            elif self.state is ASGIWebsocketState.HANDSHAKE:
                # Frames before the accept. hypercorn answers even if the application has already
                # done so, which fails, and does not tell the application.
                await self._send_error_response(400)
                self.state = ASGIWebsocketState.HTTPCLOSED
                await self._hang_up()
        else:
            await super().handle(event)

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        """Answer 101, and say and read nothing from then on."""
        status, headers, _ = self.handshake.accept(
            message.get("subprotocol"), message.get("headers", [])
        )
        self.state = ASGIWebsocketState.CLOSED
        self._connection.hand_over()
        await self.send(Response(stream_id=self.stream_id, status_code=status, headers=headers))
        await self.config.log.access(self.scope, {"status": status, "headers": []}, 0.0)

    async def _send_rejection(self, message: Any) -> None:
        """Refuse the handshake; a peer that has sent no HTTP behind it gets no whole answer."""
        with suppress(LocalProtocolError):
            await super()._send_rejection(message)

    async def _hang_up(self) -> None:
        await self.send(StreamClosed(stream_id=self.stream_id))
