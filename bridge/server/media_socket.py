"""The media socket as ASGI gives it, without quart-trio's task and queue in between.

quart-trio runs a second task per websocket, which moves messages to a second queue, cancels the
handler when the peer disconnects and drops what was received but not read yet, Twilio's `stop`
among it. Here `receive` reads ASGI directly: every message is delivered, and a disconnect is an
exception from `receive`, after the last of them. Nobody is told of a disconnect who does not
receive; a call's receiver always does.

The base class is quart-trio's internal one, hence the pinned version; the tests of this module
fails without this.
"""

from __future__ import annotations

from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.asgi import ASGIWebsocketConnection
from quart.wrappers import Websocket
from quart_trio.asgi import TrioASGIWebsocketConnection

from bridge.server.guard import GUARD_KEY, GuardedTCPServer
from bridge.twilio.media_stream import PhoneGone


class DirectWebsocketConnection(TrioASGIWebsocketConnection):
    """Runs a websocket handler with nothing between it and ASGI."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        gone = False

        async def receive_message() -> str | bytes:
            nonlocal gone
            if gone:
                raise PhoneGone
            event: Any = await receive()
            if event["type"] == "websocket.disconnect":
                gone = True
                raise PhoneGone
            data: bytes | None = event.get("bytes")
            return data if data is not None else event["text"]

        websocket = self._create_websocket_from_scope(send)
        websocket._receive = receive_message
        await receive()  # websocket.connect
        # Past quart-trio's override, which wants a nursery to cancel.
        await ASGIWebsocketConnection.handle_websocket(self, websocket, send)


class QuartMediaSocket:
    """A `MediaSocket` on a Quart websocket under `DirectWebsocketConnection`."""

    def __init__(self, websocket: Websocket) -> None:
        self._websocket = websocket
        guard = websocket.scope.get("state", {}).get(GUARD_KEY)
        self._guard: GuardedTCPServer | None = guard
        self._closed = False

    async def receive(self) -> str | bytes:
        """Return the next message. Raises PhoneGone when there will be none."""
        return await self._websocket.receive()

    async def send(self, text: str) -> None:
        """Send a text message, whole or not at all; nothing happens when the socket is gone."""
        await self._websocket.send(text)

    async def close(self, code: int, *, by: float) -> None:
        """Send a Close frame, dropping the connection if it cannot be written by that time."""
        if self._closed:
            return
        self._closed = True
        if self._guard is not None:
            self._guard.finish_by(by)
        with trio.move_on_at(by):
            await self._websocket.close(code)
