"""One connection of hypercorn's Trio worker: its failures are its own, its waits end, and its
stream can be handed over to the application.

hypercorn 0.18 runs all connections in one nursery. An exception in one connection's protocol code
(one non-ASCII byte in some headers of an upgrade request is enough) ends that nursery, and with it
the server and every call. It writes to sockets in a shield without a deadline, so that a peer
which stops reading can be neither timed out nor cancelled nor shut down.

Its classes are private, so its version is pinned in pyproject.toml; `install` puts these in their
place. tests/unit/server/hypercorn fails without each remedy, and when a remedy is not needed any
more.

*Handing over.* Reading a websocket through hypercorn costs a reader task, its protocol objects, an
ASGI queue and as many events; for a call that is more than everything else. So when a websocket is
accepted, hypercorn stops reading the connection, and the application, which runs in the
connection's own nursery, takes the stream (`taken`) with what was read already. When the
application returns, the connection is closed, by hypercorn, as any other.
"""

from __future__ import annotations

from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import AppWrapper

from bridge.log import get_logger
from bridge.log_throttle import LogThrottle
from bridge.server.limits import ConnectionLimiter, Turnstile
from bridge.transport.byte_stream import RECEIVE_BYTES, close_at_once
from bridge.transport.tcp_keepalive import detect_dead_peer
from bridge.transport.websocket import ABNORMAL_CLOSURE, WebSocketClosed

log = get_logger(__name__)

# How long one write may take. Twilio reads at the pace of a call, so five seconds without reading
# are a dead connection; a slow one would have drained the kernel's buffer long before.
WRITE_TIMEOUT: Final = 5.0

# Media messages are 300 bytes and Twilio's longest, `start`, a few thousand.
MAX_MESSAGE_BYTES: Final = 64 * 1024

# How long closing may take with a peer that does not read: with TLS it writes.
CLOSE_TIMEOUT: Final = 1.0

# Where an application finds its connection in the ASGI scope's `state`.
CONNECTION_KEY: Final = "bridge.connection"

# Requests on connections that have made one before, of all connections together; each has one
# waiting at most. A tenth of a core, and many times what the proxy of a full server asks for.
REQUESTS_PER_SECOND: Final = 100
REQUESTS_AT_ONCE: Final = 50

# How long a new connection may take to send its first request once the listeners are closed: it may
# have been accepted in the moment before, and Twilio asks what comes after a call just then. Less
# than hypercorn's graceful_timeout.
FIRST_REQUEST_SECONDS: Final = 1.0

# Between two lines of one kind that a peer can cause.
SECONDS_BETWEEN_LINES: Final = 5.0

# Those of this process.
_limiter = ConnectionLimiter()

# Of each server.
_turnstiles: WeakKeyDictionary[Config, Turnstile] = WeakKeyDictionary()

# Of each server, by the kind of line.
_throttles: WeakKeyDictionary[Config, dict[str, LogThrottle]] = WeakKeyDictionary()


class GuardedTCPServer(TCPServer):
    """One connection of hypercorn's, with its failures contained and its waits bounded."""

    limiter = _limiter

    def __init__(self, app: AppWrapper, config: Config, *args: Any) -> None:
        super().__init__(app, config, *args)
        self.app = cast("AppWrapper", self._run_application)
        self.state = {**self.state, CONNECTION_KEY: self}
        self._application = app
        self._life = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._handed_over = False
        self._asked_before = False
        self._stopped_reading = trio.Event()
        self._given_back = trio.Event()
        self.unread = b""
        """What was read of a websocket that has been accepted since."""
        # hypercorn's default is 16 MiB, for each of all calls; what an operator chose stays.
        if "websocket_max_message_size" not in vars(config):
            config.websocket_max_message_size = MAX_MESSAGE_BYTES

    def __deepcopy__(self, memo: dict[int, Any]) -> GuardedTCPServer:
        """Itself: ProxyFixMiddleware copies the scope, and a connection has no copies."""
        return self

    async def run(self) -> None:
        """Serve the connection. Raises nothing but cancellation and what is not an Exception."""
        if not self.limiter.admit(self, self._make_room):
            self._warn("too many connections, one turned away", limit=self.limiter.limit)
            return await trio.aclose_forcefully(self.stream)
        detect_dead_peer(self.stream)
        try:
            with self._life:
                await super().run()
        except* Exception as group:
            # Caused by the peer or by hypercorn, and over: a warning, with what an expert needs.
            self._warn("connection failed", errors=repr(group.exceptions))
        finally:
            self.limiter.closed(self)
        return None

    def _warn(self, event: str, **facts: object) -> None:
        """Log what any stranger can cause, at most once in a few seconds."""
        throttles = _throttles.setdefault(self.config, {})
        throttle = throttles.setdefault(event, LogThrottle(SECONDS_BETWEEN_LINES))
        if (suppressed := throttle.due()) is not None:
            log.warning(event, **facts, others_since_the_last_line=suppressed)

    def _make_room(self) -> None:
        self._life.cancel(reason="too many connections, and this one has sent no whole request")

    async def request_begins(self) -> None:
        """Note a request's head; wait if there are too many requests for this one to be served yet.

        The first of a connection never waits: a peer that calls, as Twilio does, is served at once
        whatever others do on connections that they keep.
        """
        if self._asked_before:
            turnstile = Turnstile(REQUESTS_PER_SECOND, REQUESTS_AT_ONCE)
            await _turnstiles.setdefault(self.config, turnstile).pass_through()
        self._asked_before = True
        self.limiter.begun(self)

    def request_is_whole(self) -> None:
        """Note that the request has come whole: its connection is not closed to make room."""
        self.limiter.busy(self)

    def hand_over(self) -> None:
        """Stop reading: from here on the stream is the application's, until it returns."""
        self._handed_over = True
        self._reading.cancel(reason="the stream is the application's")

    async def taken(self) -> tuple[trio.abc.Stream, bytes]:
        """Return the stream, and what was read of it, once hypercorn has stopped reading it.

        For the application, after its websocket is accepted. hypercorn neither reads nor writes
        then, and closes the stream when the application has returned. Raises WebSocketClosed when
        the peer was gone before its websocket was accepted: hypercorn ignores an accept then.
        """
        if not self._handed_over:
            raise WebSocketClosed(ABNORMAL_CLOSURE, "lost before the websocket was accepted")
        # The reader is cancelled, so this takes a turn of the scheduler.
        await self._stopped_reading.wait()
        return self.stream, self.unread

    async def protocol_send(self, event: Event) -> None:
        """Write to the socket within WRITE_TIMEOUT, or drop the connection.

        A write that has begun is not cancelled from outside. When it fails, the stream is closed
        and hypercorn's reader, which wakes up, tells the application; hypercorn would tell it from
        here, where a cancelled sender loses the news.
        """
        if not isinstance(event, RawData):
            # Short, and not to be lost: quart-trio cancels a request's task when the request is
            # over, which is while hypercorn starts the timer for the idle connection.
            if isinstance(event, Updated):
                if event.idle:
                    self.limiter.idle(self, self._make_room)
            elif isinstance(event, Closed):
                self._given_back.set()
            shield = isinstance(event, Updated)
            with trio.CancelScope(shield=shield):  # deadline: none needed, it starts a task
                await super().protocol_send(event)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self.send_lock:
            await self._write(event.data)

    async def _write(self, data: bytes) -> None:
        with trio.move_on_after(WRITE_TIMEOUT, shield=True):
            try:
                return await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except trio.BusyResourceError:
                # `_close` is sending EOF; nothing can be sent behind that.
                return await trio.lowlevel.cancel_shielded_checkpoint()
        await close_at_once(self.stream)
        # A write that fails need not be a checkpoint, and then a loop of them lets no task run.
        return await trio.lowlevel.cancel_shielded_checkpoint()

    async def _read_data(self) -> None:
        """As hypercorn's, until the stream ends, or is handed over and given back."""
        try:
            while not self._handed_over and await self._read_once():
                pass
            self._stopped_reading.set()
            if self._handed_over:
                await self._given_back.wait()
            await self.protocol.handle(Closed())
        except Exception as error:
            # What the peer sent broke hypercorn's protocol code. To the application that is a
            # disconnect like any other, and it may still finish what it does on one.
            self._warn("connection failed while reading", error=repr(error))
            await self.protocol.handle(Closed())
        finally:
            self._stopped_reading.set()
        # hypercorn's timer for idle connections would keep this one, and its descriptor, five
        # seconds longer than its peer.
        await self.idle_task.stop()

    async def _read_once(self) -> bool:
        """Read what is there and deal with it; return whether there may be more."""
        data = b""
        try:
            with trio.CancelScope() as self._reading:
                if self.config.read_timeout is None:
                    data = bytes(await self.stream.receive_some(RECEIVE_BYTES))
                else:
                    with trio.fail_after(self.config.read_timeout):
                        data = bytes(await self.stream.receive_some(RECEIVE_BYTES))
        except (trio.ClosedResourceError, trio.BrokenResourceError, trio.TooSlowError):
            return False
        if not data:
            return False
        await self.protocol.handle(RawData(data))
        return True

    async def _idle_timeout(self) -> None:
        """As hypercorn's, but do not close a connection that has had no time for a request."""
        with trio.move_on_after(self.config.keep_alive_timeout):
            await self.context.terminated.wait()
            if not self._asked_before:
                await trio.sleep(FIRST_REQUEST_SECONDS)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT):
            await self._initiate_server_close()

    async def _close(self) -> None:
        # Cancelled in the first of its steps it forgets the second. With TLS, they write.
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await super()._close()

    async def _run_application(self, *arguments: Any) -> None:
        """Run the application, and let a KeyboardInterrupt end the server."""
        try:
            await self._application(*arguments)
        except BaseExceptionGroup as group:
            # hypercorn would log whatever is in the group and go on.
            if group.subgroup(KeyboardInterrupt) is not None:
                raise KeyboardInterrupt from group
            raise
