"""One websocket on one stream, for both ends: the server's towards the phone, the client's towards
the agent.

*Theory of operation.* The frames are sans-I/O (`bridge.transport.websocket_frames`); this class
moves their bytes, and nothing else touches the stream. There is no reader task and no queue: the
task that receives reads the stream itself. What it does not read stays in the kernel, and TCP slows
the peer down. A ping is therefore answered, and a Close noticed, only while some task receives.

*Bounds.* A message longer than `max_message` bytes fails the connection with 1009. With a `pace`,
frames are read no faster than that allows, and PIECE_BYTES at a time. A write that takes longer
than `write_timeout` drops the connection. Waiting for the peer's Close ends at the caller's
deadline.

*Cancellation.* A frame is sent whole or not at all: a send may be cancelled until its first byte is
written, and from then on either finishes or drops the connection. Half a frame would turn
everything behind it into nonsense. Cancelling `receive` loses nothing.

https://www.rfc-editor.org/rfc/rfc6455
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import trio
from trio.lowlevel import ParkingLot
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Event, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from bridge.transport.byte_stream import byte_stream
from bridge.transport.websocket_frames import QuickConnection

NORMAL_CLOSURE: Final = 1000
ABNORMAL_CLOSURE: Final = 1006
MESSAGE_TOO_BIG: Final = 1009

# Called with the number of frames that were read and the time; returns for how many seconds to
# stop reading, usually 0.
Pace = Callable[[int, float], float]

# With a pace: at most 700 of the smallest frames are parsed, which takes a few milliseconds, before
# other tasks run. The 16 KiB of a whole read would hold up every call four times as long.
PIECE_BYTES: Final = 4096

# A send that finds room in the socket's buffer is no checkpoint. After this many in a row there is
# one, so that a loop of sends cannot starve other tasks: a call sends about one frame per read, and
# never gets there; a checkpoint costs as much as the send.
SENDS_BETWEEN_CHECKPOINTS: Final = 32

# How long the reason for failing a connection (RFC 6455, section 7.1.7) may take to be written. A
# peer that breaks the protocol is owed no more.
FAILURE_SECONDS: Final = 1.0

# A union, `str | bytes`, would be built anew at each use.
_SHORT_MESSAGE: Final = (str, bytes)


class WebSocketClosed(Exception):
    """The websocket is closed or lost.

    `code` and `reason` are the peer's, or those this end failed the connection with when the peer
    `broke_protocol`; 1006 when the connection was lost or dropped.
    """

    def __init__(self, code: int, reason: str = "", *, broke_protocol: bool = False) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason
        self.broke_protocol = broke_protocol


class Closing(NamedTuple):
    """How a websocket ended; see `WebSocketClosed`."""

    code: int
    reason: str = ""
    broke_protocol: bool = False


class WebSocket:
    """An open websocket, after its handshake.

    One task receives; any number may send, and their messages stay whole. `received` are bytes of
    the websocket that were read together with the handshake.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        role: ConnectionType,
        *,
        max_message: int,
        write_timeout: float,
        received: bytes = b"",
        pace: Pace | None = None,
    ) -> None:
        self._stream = byte_stream(stream)
        self._frames = QuickConnection(role)
        self._max_message = max_message
        self._write_timeout = write_timeout
        self._unparsed = received
        self._pace = pace
        # Until when nothing is read, because the peer has sent more than the pace allows.
        self._pause_until: float | None = None
        # The parts of a message whose last frame has not come yet, and their length.
        self._parts: list[str | bytes] = []
        self._size = 0
        self._messages: list[str | bytes] = []
        self._replies: list[Event] = []
        self._reading = _Turn()
        self._sending = _Turn()
        self._writing = trio.CancelScope()
        self._sends = 0
        self._over = trio.Event()
        self.closing: Closing | None = None
        """How the websocket ended, as soon as that is known; messages may be left to receive."""
        self.write_by = float("inf")
        """No write lasts beyond this time of Trio's clock."""
        self.received_at = trio.current_time()
        """When the last bytes were read, in seconds of Trio's clock."""

    async def receive(self) -> list[str | bytes]:
        """Wait for messages and return all that came together, at least one, in order.

        Raises WebSocketClosed at the end, after the last message and again at each further call.
        Cancelling it loses nothing.
        """
        if self._reading.taken:
            await self._reading.wait()
        self._reading.taken = True
        try:
            while not self._messages:
                if self._replies:
                    # Left by a task that was cancelled before it could write them.
                    await self._reply()
                if self.closing is not None:
                    await self.drop()
                    # A loop that ignores the exception must not keep other tasks from running.
                    await trio.lowlevel.checkpoint()
                    raise self._closed()
                if self._pause_until is not None:
                    with trio.move_on_at(self._pause_until):
                        await self._over.wait()
                    self._pause_until = None
                elif self._unparsed:
                    # A piece was parsed without waiting, and the next comes without waiting, too.
                    await trio.lowlevel.checkpoint()
                    self._parse(trio.current_time())
                else:
                    try:
                        self._unparsed = await self._stream.receive()
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self._unparsed = b""
                    self.received_at = trio.current_time()
                    self._parse(self.received_at)
                if self._replies:
                    await self._reply()
                if self.closing is not None:
                    await self.drop()
            messages, self._messages = self._messages, []
            return messages
        finally:
            self._reading.taken = self._reading.wanted > 0 and self._reading.passed_on()

    async def send(self, message: str | bytes) -> None:
        """Send a message, whole or not at all.

        Raises WebSocketClosed when the websocket is over, or when the message could not be written
        within `write_timeout` seconds, which drops the connection. May be cancelled before the
        first byte is written, and not any more after that.
        """
        self._sends += 1
        if self._sends % SENDS_BETWEEN_CHECKPOINTS:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        if self._sending.taken:
            await self._sending.wait()
        self._sending.taken = True
        try:
            if self.closing is not None:
                await trio.lowlevel.checkpoint()
                raise self._closed()
            data = self._frames.send_message(message)
            if (sent := self._stream.send_now(data)) < len(data):
                await self._write_rest(data, sent)
        except LocalProtocolError:
            # Behind our own Close, which may be on its way still.
            await trio.lowlevel.checkpoint()
            raise self._closed() from None
        finally:
            self._sending.taken = self._sending.wanted > 0 and self._sending.passed_on()

    async def ping(self) -> None:
        """Ask the peer for a Pong; it counts in `received_at`, as all that comes.

        Raises nothing. Cancelled before it is written, it is left for the task that receives.
        https://www.rfc-editor.org/rfc/rfc6455#section-5.5.2
        """
        self._replies.append(Ping())
        await self._reply()

    async def close(self, code: int = NORMAL_CLOSURE, *, by: float) -> None:
        """Say Close with this code, wait for the peer's, and close the connection.

        Everything ends at `by`, a time of Trio's clock: a write that is under way in another task,
        the Close frame, the waiting. Then the connection is dropped, and so it is when this is
        cancelled. Messages that come meanwhile are discarded. Raises nothing; idempotent.
        """
        self.write_by = min(self.write_by, by)
        self._writing.deadline = min(self._writing.deadline, by)
        try:
            with trio.CancelScope(deadline=by):
                if self.closing is None:
                    self._replies.append(CloseConnection(code=code))
                await self._reply()
                while self.closing is None:
                    await self.receive()
        except WebSocketClosed:
            pass
        finally:
            await self.drop()

    async def drop(self, why: str = "") -> None:
        """Close the connection at once, without a Close frame. Tasks that wait in `receive` or
        `send` get WebSocketClosed, with `why` as its reason. Raises nothing, also when it is
        cancelled; idempotent."""
        self._end(Closing(ABNORMAL_CLOSURE, why))
        # Not every stream wakes the task that writes to it when it is closed.
        self._writing.cancel(reason="the websocket is closed")
        await self._stream.close()

    def _parse(self, now: float) -> None:
        """Take the next piece of what was read apart: messages, what is to be replied, the end.
        `now` is a time of Trio's clock."""
        if self.closing is not None:
            return
        data, self._unparsed = self._unparsed, b""
        if not data:
            self._end(Closing(ABNORMAL_CLOSURE))
            return
        if self._pace is not None and len(data) > PIECE_BYTES:
            data, self._unparsed = data[:PIECE_BYTES], data[PIECE_BYTES:]
        events = self._frames.read(data)
        for event in events:
            if isinstance(event, _SHORT_MESSAGE):
                if len(event) > self._max_message:
                    self._too_big()
                else:
                    self._messages.append(event)
            elif isinstance(event, Message):
                self._collect(event)
            elif isinstance(event, Ping):
                self._replies.append(event.response())
            elif isinstance(event, CloseConnection):
                if self._frames.state is ConnectionState.REMOTE_CLOSING:
                    self._replies.append(event.response())
                elif self._frames.state is not ConnectionState.CLOSED:
                    # wsproto could not read the frames.
                    self._fail(int(event.code), event.reason or "")
                    break
                # Otherwise it is the answer to ours.
                self._end(Closing(int(event.code), event.reason or ""))
            if self.closing is not None:
                break
        # A frame that comes byte by byte costs a read for each.
        if self._pace is not None and (wait := self._pace(len(events) or 1, now)):
            self._pause_until = now + wait

    def _collect(self, event: Message[Any]) -> None:
        data = event.data if isinstance(event, TextMessage) else bytes(event.data)
        self._size += len(data)
        if self._size > self._max_message:
            self._too_big()
        elif not event.message_finished:
            self._parts.append(data)
        elif self._parts:
            self._parts.append(data)
            empty = "" if isinstance(data, str) else b""
            self._messages.append(empty.join(self._parts))  # type: ignore[arg-type]
            self._parts, self._size = [], 0
        else:
            self._messages.append(data)
            self._size = 0

    def _too_big(self) -> None:
        self._fail(MESSAGE_TOO_BIG, f"a message of more than {self._max_message} bytes")

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection, RFC 6455, section 7.1.7: say why, read no further."""
        self.write_by = min(self.write_by, trio.current_time() + FAILURE_SECONDS)
        self._replies.append(CloseConnection(code=code, reason=reason))
        self._end(Closing(code, reason, broke_protocol=True))

    async def _reply(self) -> None:
        """Write pongs and Close frames. Cancelled before it begins, it leaves them for later."""
        if not self._replies:
            return
        if self._sending.taken:
            await self._sending.wait()
        self._sending.taken = True
        try:
            data = bytearray()
            for event in self._replies:
                # Behind a Close nothing may be said.
                with suppress(LocalProtocolError):
                    data += self._frames.send(event)
            self._replies.clear()
            if (sent := self._stream.send_now(data)) < len(data):
                await self._write_rest(data, sent)
        except WebSocketClosed:
            pass  # which the reading finds out, too
        finally:
            self._sending.taken = self._sending.wanted > 0 and self._sending.passed_on()

    async def _write_rest(self, data: bytes | bytearray, sent: int) -> None:
        """Write what is left of whole frames, or drop the connection; the caller holds the lock.

        The shield keeps frames whole; `write_timeout` and `write_by` end it.
        """
        deadline = min(trio.current_time() + self._write_timeout, self.write_by)
        try:
            with trio.CancelScope(shield=True, deadline=deadline) as self._writing:
                await self._stream.send_all(memoryview(data)[sent:])
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end(Closing(ABNORMAL_CLOSURE))
        else:
            waited = f"what was sent was not read for {self._write_timeout:g} s"
            self._end(Closing(ABNORMAL_CLOSURE, waited if deadline < self.write_by else ""))
        await self.drop()
        # A write that fails at once need not be a checkpoint.
        await trio.lowlevel.cancel_shielded_checkpoint()
        raise self._closed()

    def _end(self, closing: Closing) -> None:
        """Record how the websocket ended; the first to say so is right."""
        if self.closing is None:
            self.closing = closing
            self._over.set()

    def _closed(self) -> WebSocketClosed:
        closing = self.closing or Closing(ABNORMAL_CLOSURE)
        return WebSocketClosed(closing.code, closing.reason, broke_protocol=closing.broke_protocol)


class _Turn:
    """A fair lock that costs nothing while it is free, which it nearly always is.

        if turn.taken:
            await turn.wait()
        turn.taken = True
        try: ...
        finally:
            turn.taken = turn.wanted > 0 and turn.passed_on()

    `trio.Lock` records its owner at each acquisition, which costs as much as parsing a frame.
    """

    def __init__(self) -> None:
        self.taken = False
        self._waiting = ParkingLot()
        self.wanted = 0

    async def wait(self) -> None:
        """Wait until the turn is passed on. Cancelled, it is not."""
        self.wanted += 1
        try:
            await self._waiting.park()
        finally:
            self.wanted -= 1

    def passed_on(self) -> bool:
        """Pass the turn to the task that has waited longest; return whether there is one."""
        # A task that was just cancelled is still counted, but parked no longer.
        return bool(self._waiting.unpark())
