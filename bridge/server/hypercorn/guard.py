"""Remedies for hypercorn's Trio worker: one connection's failure is its own, and everything ends.

hypercorn 0.18 runs all connections in one nursery. An exception in one connection's protocol code
(one non-ASCII byte in some headers of an upgrade request is enough) ends that nursery, and with it
the server and every call. It writes to sockets in a shield without a deadline, so that a peer
which stops reading can be neither timed out nor cancelled nor shut down. And in some corners it
waits for ever: for an application that has returned to read what the peer still sends, for a peer
that was refused to close the connection, for one that speaks HTTP/2 and asks nothing.

`GuardedTCPServer`, the connection, `GuardedH11Protocol`, what is spoken on it, and
`GuardedWSStream`, the websocket, take the place of hypercorn's classes. Those are private, so the
version is pinned in pyproject.toml, and
tests/integration/server/hypercorn/test_guard.py fails without each remedy, and when a remedy has
become needless.

They are also where carrying a call is made cheap: a socket is read on the grid if that is asked for
(`read_every`, `bridge.transport.grid`), and a websocket's messages go both ways without the detour
through ASGI, whose queue, events and checks cost more than the messages (`inbox`, `send_text`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, cast

import h11
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.protocol.ws_stream
import hypercorn.trio.run
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Data, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import AppWrapper, ASGIReceiveCallable, ASGIReceiveEvent
from hypercorn.typing import ConnectionState as StateOfConnection
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from bridge.log import get_logger
from bridge.server.limits import ConnectionLimiter, TokenBucket
from bridge.transport.grid import Nap
from bridge.transport.inbox import Inbox
from bridge.transport.tcp_keepalive import notice_when_vanished
from bridge.transport.websocket_frames import QuickConnection

log = get_logger(__name__)

# How long one write may take. Twilio reads at the pace of a call, so five seconds without reading
# are a dead connection; a slow one would have drained the kernel's buffer long before.
WRITE_TIMEOUT: Final = 5.0

# Media messages are 300 bytes and Twilio's longest, `start`, a few thousand.
MAX_MESSAGE_BYTES: Final = 64 * 1024

# A phone says 50 things a second, and after a stall of the network 20 s of them at once. Who says
# more is read no faster than this, and TCP passes it on.
FRAMES_PER_SECOND: Final = 250
FRAMES_AT_ONCE: Final = 1000

# What is parsed in one go: 700 of the smallest frames, which take a few milliseconds. hypercorn
# would parse all of a read, 64 KiB, while every call waits.
PARSED_AT_ONCE: Final = 4096

# What is asked of the kernel in one read; a tick brings a kilobyte. A buffer of this size is
# allocated for each read and shrunk to what came: with hypercorn's 64 KiB the holes that leaves
# cost each call tens of kilobytes.
RECEIVE_BYTES: Final = 16 * 1024

# How long saying goodbye may take to a peer that does not read.
CLOSE_TIMEOUT: Final = 1.0

# Where an application finds its connection, and its websocket, in the ASGI scope's `state`.
GUARD_KEY: Final = "bridge.guard"
WEBSOCKET_KEY: Final = "bridge.websocket"


# Those of this process.
_limiter = ConnectionLimiter()


class GuardedTCPServer(TCPServer):
    """One connection of hypercorn's, with its failures contained and its waits bounded."""

    limiter = _limiter

    def __init__(self, app: AppWrapper, config: Config, *args: Any) -> None:
        super().__init__(app, config, *args)
        self.app = cast("AppWrapper", self._run_application)
        self.state = {**self.state, GUARD_KEY: self}
        self._application = app
        self._finish_by = float("inf")
        self._writing = trio.CancelScope()
        self._nap: Nap | None = None
        self._life = trio.CancelScope()
        # hypercorn's default is 16 MiB, for each of all calls; what an operator chose stays.
        if "websocket_max_message_size" not in vars(config):
            config.websocket_max_message_size = MAX_MESSAGE_BYTES

    def __deepcopy__(self, memo: dict[int, Any]) -> GuardedTCPServer:
        """Itself: ProxyFixMiddleware copies the scope, and a connection has no copies."""
        return self

    async def run(self) -> None:
        """Serve the connection. Raises nothing but cancellation and what is not an Exception."""
        if not self.limiter.admit(self, self._make_room):
            log.warning("too many connections, one turned away", limit=self.limiter.limit)
            return await trio.aclose_forcefully(self.stream)
        notice_when_vanished(self.stream)
        try:
            with self._life:
                await super().run()
        except* Exception as group:
            # Caused by the peer or by hypercorn, and over: a warning, with what an expert needs.
            log.warning("connection failed", errors=repr(group.exceptions))
        finally:
            self.limiter.closed(self)
        return None

    def _make_room(self) -> None:
        self._life.cancel(reason="too many connections, and this one asks for nothing")

    def finish_by(self, deadline: float) -> None:
        """Bound all writes by a time on Trio's clock, the one under way included, and read as
        things come from now on: what the peer still says is wanted at once.

        The earliest time asked for holds.
        """
        self._finish_by = min(self._finish_by, deadline)
        self._writing.deadline = min(self._writing.deadline, deadline)
        self.read_every(0)

    def read_every(self, seconds: float) -> None:
        """Read the socket at the ticks of the grid of so many seconds; 0: as things come.

        Until the next tick nothing is noticed, neither a message nor a lost connection. With TLS
        it is always as things come: a read takes one record, which is one of the phone's messages,
        and a read for every three of them would fall behind for ever.
        """
        if self._nap is not None:
            self._nap.end()
        whole = not isinstance(self.stream, trio.SSLStream)
        self._nap = Nap(seconds) if seconds and whole else None

    async def protocol_send(self, event: Event) -> None:
        """Write to the socket within WRITE_TIMEOUT, or drop the connection.

        A write is never cancelled halfway from outside: the shield keeps frames whole. When it
        fails, the stream is closed and hypercorn's reader, which wakes up, tells the application;
        hypercorn would tell it from here, where a cancelled sender loses the news.
        """
        if not isinstance(event, RawData):
            # Short, and not to be lost: quart-trio cancels a request's task when the request is
            # over, which is while hypercorn starts the timer for the idle connection.
            if isinstance(event, Updated):
                if event.idle:
                    self.limiter.idle(self, self._make_room)
                else:
                    self.limiter.busy(self)
            with trio.CancelScope(shield=isinstance(event, Updated)):
                await super().protocol_send(event)
            return
        # The last moment to cancel it.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            # Nearly always free; taking it in the other way costs a turn of the scheduler.
            self.send_lock.acquire_nowait()
        except trio.WouldBlock:
            await self.send_lock.acquire()
        try:
            await self._write(event.data)
        finally:
            self.send_lock.release()

    async def _write(self, data: bytes) -> None:
        drop = True
        deadline = min(trio.current_time() + WRITE_TIMEOUT, self._finish_by)
        with trio.CancelScope(shield=True, deadline=deadline) as self._writing:
            try:
                await self.stream.send_all(data)
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except trio.BusyResourceError:
                # `_close` is saying EOF, at the peer's wish: behind that nothing can be said.
                drop = False
        if drop:
            # Before what can be cancelled: the reader shall find the stream closed, and not asleep.
            self.read_every(0)
            await trio.aclose_forcefully(self.stream)
        # A write that fails need not be a checkpoint, and then a loop of them lets nobody run.
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _read_data(self) -> None:
        """As hypercorn's, but on the grid if that is asked for."""
        try:
            while got := await self._read_once():
                # Of what fills a read there is more, and who is behind shall not stay behind.
                if self._nap is not None and got < RECEIVE_BYTES:
                    await self._nap.until_tick()
            await self.protocol.handle(Closed())
        except Exception as error:
            # What the peer sent broke hypercorn's protocol code. To the application that is a
            # disconnect like any other, and it may still finish what it does on one.
            log.warning("connection failed while reading", error=repr(error))
            await self.protocol.handle(Closed())
        # hypercorn's timer for idle connections would keep this one, and its descriptor, five
        # seconds longer than its peer.
        await self.idle_task.stop()

    async def _read_once(self) -> int:
        """Read what is there and deal with it; return how much it was, 0 at the end."""
        try:
            if self.config.read_timeout is None:
                data = await self.stream.receive_some(RECEIVE_BYTES)
            else:
                with trio.fail_after(self.config.read_timeout):
                    data = await self.stream.receive_some(RECEIVE_BYTES)
        except (trio.ClosedResourceError, trio.BrokenResourceError, trio.TooSlowError):
            return 0
        await self.protocol.handle(RawData(bytes(data)))
        return len(data)

    async def _close(self) -> None:
        # Cancelled in the first of its steps it forgets the second. With TLS, they write.
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await super()._close()

    async def _run_application(
        self, scope: Any, receive: ASGIReceiveCallable, send: Any, *others: Callable[..., Any]
    ) -> None:
        """Run the application, and when it has returned read on in its place.

        hypercorn queues ten events for it. With the queue full and nobody reading, the socket's
        reader waits for ever, and so does the end of the connection.
        """
        told = False

        async def receive_event() -> ASGIReceiveEvent:
            nonlocal told
            event = await receive()
            told = event["type"] in ("websocket.disconnect", "http.disconnect")
            return event

        async def discard() -> None:
            while not told:
                await receive_event()

        try:
            await self._application(scope, receive_event, send, *others)
        except BaseExceptionGroup as group:
            # hypercorn would log whatever is in the group and go on.
            if group.subgroup(KeyboardInterrupt) is not None:
                raise KeyboardInterrupt from group
            raise
        finally:
            if not told:
                self._task_group.spawn(discard)


class GuardedH11Protocol(H11Protocol):
    """HTTP/1.1, which nobody talks hypercorn out of.

    On any connection hypercorn would change to HTTP/2 when the peer says so, and stop its timer for
    idle ones: a peer that goes on to ask nothing stays for ever. Twilio, browsers and proxies speak
    HTTP/2 by TLS or not at all, and an operator can still offer it there.
    """

    async def _check_protocol(self, event: h11.Request) -> None:
        """Upgrade to nothing; RFC 9110, section 7.8 lets a server ignore the wish."""

    async def _create_stream(self, request: h11.Request) -> None:
        if request.http_version == b"2.0":
            await self._send_error_response(505)
            await self.send(Closed())
        else:
            await super()._create_stream(request)


class GuardedWSStream(WSStream):
    """One websocket of hypercorn's, without compression, read no faster than anybody speaks, and
    over when it has gone wrong.

    With an `inbox`, messages are put there, and its end is the disconnect.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inbox: Inbox | None = None
        self._app_put: Callable[[ASGIReceiveEvent], Awaitable[None]] | None = None
        self._bucket = TokenBucket(FRAMES_PER_SECOND, FRAMES_AT_ONCE)
        self._frames = 0
        self._pause = trio.CancelScope()

    def __deepcopy__(self, memo: dict[int, Any]) -> GuardedWSStream:
        """Itself, as the guard."""
        return self

    async def send_text(self, text: str) -> None:
        """Send a text message, whole or not at all; nothing happens when the websocket is over.

        What comes of the application's `websocket.send`, without the steps between. Always a
        checkpoint.
        """
        over = self.closed or self.state is not ASGIWebsocketState.CONNECTED
        if over or self.connection.state is not ConnectionState.OPEN:
            await trio.lowlevel.checkpoint()
        else:
            await self._send_wsproto_event(TextMessage(data=text))

    async def handle(self, event: StreamEvent) -> None:
        """Take what the peer sent. Once the websocket is refused, the connection is closed."""
        if isinstance(event, Request):
            # With permessage-deflate, which hypercorn accepts whenever it is offered, a send that
            # is cancelled while it waits for its turn leaves the peer unable to read the next.
            name = b"sec-websocket-extensions"
            headers = [item for item in event.headers if item[0].lower() != name]
            state = StateOfConnection({**event.state, WEBSOCKET_KEY: self})
            await super().handle(replace(event, headers=headers, state=state))
            if self.app_put is not None:
                self._app_put, self.app_put = self.app_put, self._put
            if self.closed:
                await self._hang_up()
        elif isinstance(event, Body | Data) and not self.closed and not self.handshake.accepted:
            # Frames before the accept. hypercorn answers even if the application has already done
            # so, which fails, and does not tell the application.
            if self.state is ASGIWebsocketState.HANDSHAKE:
                await self._send_error_response(400)
                self.state = ASGIWebsocketState.HTTPCLOSED
                await self._hang_up()
        elif isinstance(event, Body | Data):
            for start in range(0, len(event.data), PARSED_AT_ONCE):
                self._frames = 0
                await super().handle(
                    replace(event, data=event.data[start : start + PARSED_AT_ONCE])
                )
                # A frame that comes byte by byte costs a read each.
                if not self.closed and (
                    wait := self._bucket.take(self._frames or 1, trio.current_time())
                ):
                    with trio.CancelScope() as self._pause:
                        await trio.sleep(wait)
                if self.closed:
                    # By us: what else was read is nobody's any more.
                    return
        else:
            self._pause.cancel(reason="the websocket is over")
            await super().handle(event)

    async def _handle_events(self) -> None:
        """As hypercorn's; but it counts, and fails a connection as RFC 6455, section 7.1.7 wants.

        hypercorn says nothing to a peer that has broken the protocol. And of a message too big it
        would go on collecting, however long it gets, and tell the application when the peer has
        closed the connection.
        """
        for event in self.connection.events():
            if self.closed:
                return None
            self._frames += 1
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    return await self._fail(CloseReason.MESSAGE_TOO_BIG)
                if event.message_finished:
                    assert self.app_put is not None
                    await self.app_put(self.buffer.to_message())
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                if self.connection.state is ConnectionState.REMOTE_CLOSING:
                    await self._send_wsproto_event(event.response())
                    await self._hang_up()
                else:
                    # The answer to ours; or what wsproto makes of frames that cannot be read.
                    await self._fail(event.code, event.reason)
        return None

    async def _put(self, event: ASGIReceiveEvent) -> None:
        """What hypercorn has for the application: into the inbox, if there is one."""
        assert self._app_put is not None
        if self.inbox is None:
            await self._app_put(event)
        elif event["type"] == "websocket.receive":
            data = event["bytes"]
            await self.inbox.put(event["text"] or "" if data is None else data)
        else:
            self.inbox.end()
            await self._app_put(event)

    async def _fail(self, code: int, reason: str | None = None) -> None:
        await self._send_wsproto_event(CloseConnection(code=code, reason=reason))
        await self._hang_up()

    async def _hang_up(self) -> None:
        await self.send(StreamClosed(stream_id=self.stream_id))


def install() -> None:
    """Make hypercorn use the guarded classes, also under its own command line. Idempotent."""
    hypercorn.trio.run.TCPServer = GuardedTCPServer  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.H11Protocol = GuardedH11Protocol  # type: ignore[attr-defined]
    hypercorn.protocol.h11.WSStream = GuardedWSStream  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.h2.WSStream = GuardedWSStream  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.ws_stream.Connection = QuickConnection  # type: ignore[attr-defined]
