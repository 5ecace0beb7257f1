"""A small application under `DirectWebsocketConnection`, for tests of what is below it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, cast

import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio

from bridge.http.media_socket import DirectWebsocketConnection, accepted
from bridge.transport.websocket import WebSocket, WebSocketClosed

Handler = Callable[[WebSocket], Awaitable[Any]]


def handled_by(handler: Handler, *, accept: bool = True) -> QuartTrio:
    """An application whose one websocket, `/ws`, is accepted and handled by `handler`; without
    `accept` the handler gets Quart's websocket, before its handshake."""
    app = QuartTrio("test")
    app.asgi_websocket_class = DirectWebsocketConnection

    @app.websocket("/ws")
    async def handle() -> Any:
        socket = cast("Any", websocket)._get_current_object()
        if not accept:
            return await handler(socket)
        async with accepted(socket) as phone:
            return await handler(phone)

    return app


class Echo:
    """`/ws` sends back what it hears, `/rejected` answers 503, `/flood` sends until it is told
    that the peer is gone, and `/deaf` never reads and returns when `leave` is set.

    `told` says when handlers were told of a disconnect, in seconds of Trio's clock.
    """

    def __init__(self) -> None:
        self.app = QuartTrio("echo")
        self.app.asgi_websocket_class = DirectWebsocketConnection
        self.told: list[float] = []
        self.somebody_told = trio.Event()
        self.leave = trio.Event()
        # How long the sender of `/flood` tries, each time, in seconds.
        self.send_timeout = float("inf")
        self.app.websocket("/ws")(self.echo)
        self.app.websocket("/rejected")(self.rejected)
        self.app.websocket("/flood")(self.flood)
        self.app.websocket("/deaf")(self.deaf)
        self.app.route("/", methods=["GET", "POST"])(self.index)

    def accept(self) -> AbstractAsyncContextManager[WebSocket]:
        return accepted(cast("Any", websocket)._get_current_object())

    async def echo(self) -> None:
        async with self.accept() as socket:
            try:
                while True:
                    for message in await socket.receive():
                        await socket.send(message if isinstance(message, str) else message.decode())
            except WebSocketClosed:
                self._is_told()

    async def flood(self) -> None:
        async with self.accept() as socket, trio.open_nursery() as nursery:

            async def keep_sending() -> None:
                with suppress(WebSocketClosed):
                    while True:
                        with trio.move_on_after(self.send_timeout):
                            await socket.send("x" * 3200)

            nursery.start_soon(keep_sending)
            try:
                while True:
                    await socket.receive()
            except WebSocketClosed:
                self._is_told()
                nursery.cancel_scope.cancel(reason="the peer is gone")

    async def deaf(self) -> None:
        async with self.accept():
            await self.leave.wait()

    async def rejected(self) -> Response:
        return Response("busy", status=503)

    async def index(self) -> str:
        await request.get_data()
        return "ok"

    def _is_told(self) -> None:
        self.told.append(trio.current_time())
        self.somebody_told.set()
