"""The media socket as ASGI gives it, without quart-trio's task and queue in between.

quart-trio runs a second task per websocket, which moves messages to a second queue, cancels the
handler when the peer disconnects and drops what was received but not read yet, Twilio's `stop`
among it. Here `receive` reads ASGI directly: every message is delivered, and a disconnect is an
exception from `receive`, after the last of them. Nobody is told of a disconnect who does not
receive; a call's receiver always does. Messages that came together are received together.

Quart also closes with 1000, "normal", after a crash, and forgets errors that arrive in one group
with `Cancelled`. Here the peer is told 1011, and every error is logged, once, whole.

The base class is quart-trio's internal one, hence the pinned version; the tests of this module
fail without this.
"""

from __future__ import annotations

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

from bridge.log import get_logger
from bridge.server.hypercorn.guard import (
    GUARD_KEY,
    WEBSOCKET_KEY,
    GuardedTCPServer,
    GuardedWSStream,
)
from bridge.transport.inbox import Inbox
from bridge.twilio.media_stream import PhoneGone

log = get_logger(__name__)

NORMAL_CLOSURE: Final = 1000
INTERNAL_ERROR: Final = 1011

# Where a handler finds what comes on its websocket, in the ASGI scope's `state`.
INCOMING_KEY: Final = "bridge.incoming"

# So many messages wait for the handler; then the socket is not read any more.
MESSAGES_WAITING: Final = 32

# A proxy says in X-Forwarded-Proto what the HTTP request's scheme was, and ProxyFixMiddleware
# believes it; Quart finds no websocket route for it and answers 400.
_WEBSOCKET_SCHEMES: Final = {"http": "ws", "https": "wss"}


class DirectWebsocketConnection(TrioASGIWebsocketConnection):
    """Runs a websocket handler with nothing between it and ASGI."""

    def __init__(self, app: QuartTrio, scope: WebsocketScope) -> None:
        scheme = _WEBSOCKET_SCHEMES.get(scope["scheme"], scope["scheme"])
        super().__init__(app, {**scope, "scheme": scheme})
        self._close_code = NORMAL_CLOSURE

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        state = self.scope.setdefault("state", {})  # type: ignore[typeddict-item]
        incoming = state[INCOMING_KEY] = Incoming(receive, state.get(WEBSOCKET_KEY))
        websocket = self._create_websocket_from_scope(send)
        websocket._receive = incoming.one
        try:
            await self._run(websocket, receive, send)
        finally:
            incoming.discard()

    async def _run(
        self, websocket: Websocket, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        await receive()  # websocket.connect
        response = await self._respond(websocket)
        if self._accepted and not self._closed:
            await send({"type": "websocket.close", "code": self._close_code, "reason": None})
        elif response is not None and not self._accepted:
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
            # Who does not catch a disconnect has nothing more to do on one.
            _, failures = failures.split(PhoneGone)
        if failures is not None:
            if not self._accepted and others is None:
                return await self.app.handle_user_exception(error)  # type: ignore[arg-type]
            self._close_code = INTERNAL_ERROR
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


class Incoming:
    """What comes on one websocket. `guarded` is hypercorn's end of it, if it is ours."""

    def __init__(self, receive: ASGIReceiveCallable, guarded: GuardedWSStream | None) -> None:
        self._receive = receive
        self._inbox: Inbox | None = None
        if guarded is not None:
            self._inbox = guarded.inbox = Inbox(MESSAGES_WAITING)
        self._left: list[str | bytes] = []
        self._gone = False

    async def all(self) -> list[str | bytes]:
        """Return the messages that came together. Raises PhoneGone when there will be none."""
        if self._gone:
            # So that a loop which ignores the exception cannot freeze the process.
            await trio.lowlevel.checkpoint()
            raise PhoneGone
        if self._left:
            left, self._left = self._left, []
            return left
        if self._inbox is not None:
            try:
                return await self._inbox.take()
            except trio.EndOfChannel:
                self._gone = True
                raise PhoneGone from None
        event: Any = await self._receive()
        if event["type"] == "websocket.disconnect":
            self._gone = True
            raise PhoneGone
        data: bytes | None = event.get("bytes")
        return [data if data is not None else event["text"]]

    async def one(self) -> str | bytes:
        """Return one message, as Quart wants it. Raises PhoneGone when there will be none."""
        message, *self._left = await self.all()
        return message

    def discard(self) -> None:
        """Nobody receives any more."""
        if self._inbox is not None:
            self._inbox.discard()


class QuartMediaSocket:
    """A `MediaSocket` on a Quart websocket, best under `DirectWebsocketConnection`."""

    def __init__(self, websocket: Websocket) -> None:
        self._websocket = websocket
        state: Any = websocket.scope.get("state", {})
        self._incoming: Incoming | None = state.get(INCOMING_KEY)
        self._guard: GuardedTCPServer | None = state.get(GUARD_KEY)
        self._guarded: GuardedWSStream | None = state.get(WEBSOCKET_KEY)
        self._closed = False

    async def receive(self) -> list[str | bytes]:
        """Return the messages that came together. Raises PhoneGone when there will be none."""
        if self._incoming is None:
            return [await self._websocket.receive()]
        return await self._incoming.all()

    def receive_every(self, seconds: float) -> None:
        """From now on look for messages at the ticks of that grid only: `bridge.transport.grid`."""
        if self._guard is not None and not self._closed:
            self._guard.read_every(seconds)

    async def send(self, text: str) -> None:
        """Send a text message, whole or not at all; nothing happens when the socket is gone.

        Always a checkpoint: hypercorn's own way out on a socket that is gone is none, so that a
        loop of sends would keep every other task of the process from running, the one that ends
        the call among them. It does not raise, because a failing phone is not the sender's news.
        """
        if self._closed:
            # Behind our own Close nothing may follow: hypercorn raises, and the agent, which
            # speaks on while the caller's last words are sent, is not at fault.
            await trio.lowlevel.checkpoint()
        elif self._guarded is not None:
            await self._guarded.send_text(text)
        else:
            await trio.lowlevel.checkpoint()
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
