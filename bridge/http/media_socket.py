"""The media socket: accepted by hypercorn and Quart, then a `WebSocket` on the connection's stream.

Quart and hypercorn do what comes before a call: the route, the signature, refusals and the
websocket's handshake. After `accepted` neither is between the call and its socket; see
`bridge.server.hypercorn.connection`.

quart-trio would run a second task for each websocket, close with 1000, "normal", after a crash, and
forget errors that arrive in one group with `Cancelled`. `DirectWebsocketConnection` runs the
handler alone and logs every error, once, whole; `accepted` tells the peer 1011.

The base class is quart-trio's internal one, hence the pinned version; the tests of this module
fail without this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    WebsocketResponseBodyEvent,
    WebsocketResponseStartEvent,
    WebsocketScope,
)
from quart.typing import ResponseTypes
from quart.utils import encode_headers
from quart.wrappers import Response, Websocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIWebsocketConnection
from wsproto.connection import ConnectionType

from bridge.log import get_logger
from bridge.server.hypercorn.connection import CONNECTION_KEY, WRITE_TIMEOUT, GuardedTCPServer
from bridge.server.limits import TokenBucket
from bridge.transport.websocket import NORMAL_CLOSURE, WebSocket, WebSocketClosed
from bridge.twilio.media_stream import PhoneGone

log = get_logger(__name__)

INTERNAL_ERROR: Final = 1011

# How long saying Close may take where the handler did not.
CLOSE_TIMEOUT: Final = 1.0

# A phone sends 50 messages a second, and after a stall of the network 20 s of them at once. A peer
# that sends more is read no faster than this, and TCP slows it down.
FRAMES_PER_SECOND: Final = 250
FRAMES_AT_ONCE: Final = 1000

# A proxy says in X-Forwarded-Proto what the HTTP request's scheme was, and ProxyFixMiddleware
# believes it; Quart finds no websocket route for it and answers 400.
_WEBSOCKET_SCHEMES: Final = {"http": "ws", "https": "wss"}


class DirectWebsocketConnection(TrioASGIWebsocketConnection):
    """Runs a websocket handler with nothing between it and ASGI."""

    def __init__(self, app: QuartTrio, scope: WebsocketScope) -> None:
        scheme = _WEBSOCKET_SCHEMES.get(scope["scheme"], scope["scheme"])
        super().__init__(app, {**scope, "scheme": scheme})

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        websocket = self._create_websocket_from_scope(send)
        await receive()  # websocket.connect
        response = await self._respond(websocket)
        if response is not None and not self._accepted:
            await self._reject(response, send)

    async def _respond(self, websocket: Websocket) -> ResponseTypes | None:
        """Run the handler; what it returns before it accepts is the answer to the handshake."""
        app = self.app
        async with app.websocket_context(websocket) as context:
            try:
                result: Any = await app.preprocess_websocket(context)
                if result is None:
                    result = await app.dispatch_websocket(context)
            except (Exception, BaseExceptionGroup) as error:
                result = await self._answer_to(error)
            return await app.finalize_websocket(result, context)

    async def _answer_to(self, error: Exception | BaseExceptionGroup[BaseException]) -> Any:
        """Deal with what the handler raised, all of it; raises what is not an Exception."""
        group = error if isinstance(error, BaseExceptionGroup) else ExceptionGroup("", [error])
        failures, others = group.split(Exception)
        if failures is not None:
            # A handler that does not catch a disconnect simply ends on one.
            _, failures = failures.split((PhoneGone, WebSocketClosed))
        if failures is not None:
            if not self._accepted and others is None:
                return await self.app.handle_user_exception(error)  # type: ignore[arg-type]
            log.error("websocket handler failed", exc_info=error)
        if others is not None:
            raise others
        return None

    async def _reject(self, response: ResponseTypes, send: ASGISendCallable) -> None:
        if isinstance(response, Response):
            body = await response.get_data(as_text=False)
        else:  # werkzeug's, of an HTTPException
            body = response.get_data()
        start: WebsocketResponseStartEvent = {
            "type": "websocket.http.response.start",
            "status": response.status_code,
            "headers": encode_headers(response.headers),
        }
        await send(start)
        rest = {"type": "websocket.http.response.body", "body": body, "more_body": False}
        await send(cast("WebsocketResponseBodyEvent", rest))


@asynccontextmanager
async def accepted(websocket: Websocket) -> AsyncIterator[WebSocket]:
    """Accept the handshake and give the connection's stream, as a `WebSocket`, to the body.

    On leaving, the websocket is closed if it is not yet: with 1011 after an error, with 1000
    otherwise; when the body is cancelled, it is dropped. Then the stream is hypercorn's again,
    which closes the connection.
    """
    await websocket.accept()
    connection: GuardedTCPServer = websocket.scope["state"][CONNECTION_KEY]
    stream, received = await connection.taken()
    socket = WebSocket(
        stream,
        ConnectionType.SERVER,
        max_message=connection.config.websocket_max_message_size,
        write_timeout=WRITE_TIMEOUT,
        received=received,
        pace=TokenBucket(FRAMES_PER_SECOND, FRAMES_AT_ONCE).take,
    )
    try:
        yield socket
    except Exception:
        await _close(socket, INTERNAL_ERROR)
        raise
    except BaseException:
        # Cancelled: the time that a call has for its goodbye is over.
        await socket.drop()
        raise
    await _close(socket, NORMAL_CLOSURE)


async def _close(socket: WebSocket, code: int) -> None:
    by = trio.current_time() + CLOSE_TIMEOUT
    # Cancelled meanwhile, an error of the handler would be lost.
    with trio.CancelScope(shield=True, deadline=by):
        await socket.close(code, by=by)
