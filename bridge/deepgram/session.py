"""One session with the voice agent: a websocket, opened, used and closed with bounds on every wait.

trio-websocket's own `open_websocket` is not used. Against a peer that accepts and then stays
silent it waits for ever, it hides why a connect failed, and when its reader crashes it cancels the
caller's tasks without a word. What is used is its connection, with three things done here:

- The stream is opened by us, so that a refused connection, a name that does not resolve and a bad
  certificate each keep their own error, and tests can pass a stream in memory.
- The library's reader runs in the call's nursery, but in a shielded scope of its own: it outlives
  the cancelled call just long enough to hear the answer to our Close. What it raises is kept as
  the cause of the session's end and never crashes the call by itself.
- A send that is cancelled leaves half a frame on the wire, behind which a Close would be read as
  audio, and with TLS nearly every send can be. So once begun it is not: closing waits its turn,
  and when that has not come by its deadline, drops the connection and the send with it.

And one thing is made cheaper, the way from the reader to who receives: `bridge.transport.inbox`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import trio
import trio_websocket
import wsproto
from wsproto.connection import Connection
from wsproto.events import Event as WebsocketEvent
from wsproto.handshake import H11Handshake

from bridge.deepgram import breaches, messages
from bridge.log import SHORTEST_SECRET, get_logger
from bridge.transport.grid import Nap
from bridge.transport.inbox import Inbox
from bridge.transport.tcp_keepalive import notice_when_vanished
from bridge.transport.websocket_frames import QuickConnection

log = get_logger(__name__)

# Agent audio comes in bursts, faster than real time. While the phone is being written to, this
# many messages wait decoded; then the socket is not read any more, and TCP slows the agent down.
MESSAGES_WAITING: Final = 32

# One read takes a burst of two seconds; with trio-websocket's default of 4 KiB a burst costs twice
# the CPU. A buffer of this size is allocated for each read, however little comes: no longer a one.
RECEIVE_BYTES: Final = 16 * 1024

# Far above any message seen (a long History item); a larger one closes the session with 1009.
MAX_MESSAGE_BYTES: Final = 1024 * 1024

# How long the agent may not read while we write. Long before, the caller's audio has begun to be
# dropped; an agent that deaf is lost.
SEND_TIMEOUT: Final = 5.0

# A message that cannot be used does not end a session. This many, and not one between them that
# can, are no Voice Agent; another session may be.
BAD_MESSAGES_ON_END: Final = 100

OpenStream = Callable[[SplitResult], Awaitable[trio.abc.Stream]]


class AgentUnavailable(Exception):
    """No session could be opened. Says why, in one line; `status` if the agent answered one."""

    def __init__(self, why: str, *, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class AgentClosed(Exception):
    """The session is over. `clean`: the agent closed it in the normal way."""

    def __init__(self, why: str, *, clean: bool) -> None:
        super().__init__(why)
        self.clean = clean


class AgentFailed(Exception):
    """The agent sent an Error; the session is of no more use."""

    def __init__(self, error: messages.Error) -> None:
        super().__init__(f"{error.code or 'Error'}: {error.reason}")
        self.code = error.code


# What a rejected handshake means to the person who runs the bridge.
# https://developers.deepgram.com/docs/errors
_REMEDIES: Final = {
    401: "the key was refused; check DEEPGRAM_API_KEY",
    402: "the Deepgram project is out of credit",
    403: "the key may not use the Voice Agent; check its permissions in the Deepgram console",
    404: "there is no Voice Agent at this address; check deepgram.url",
    429: "the Deepgram project has as many sessions open as it may",
}

_DEAF: Final = f"the agent has not read what was sent for {SEND_TIMEOUT:g} s"

# RFC 6455, section 7.4.1: the codes with which a peer that is content says goodbye.
_CLEAN_CODES: Final = frozenset({1000, 1005})


class AgentSession:
    """An open session whose Settings are applied.

    One task receives; any number may send, and their messages stay whole. Cancelling `receive`
    loses nothing; a send is cancelled before it begins or not at all, and ends within SEND_TIMEOUT
    or with the session.
    """

    def __init__(
        self,
        connection: _Connection,
        stream: trio.abc.Stream,
        reader: _Reader,
        key: str = "",
    ) -> None:
        self._connection = connection
        # One that is made up for a local agent may be part of any word.
        self._key = key if len(key) >= SHORTEST_SECRET else ""
        self._inbox = connection.inbox
        self._stream = stream
        self._reader = reader
        self._sends: set[trio.CancelScope] = set()
        self._given_up = ""
        # What came in one batch with SettingsApplied, and behind it: already the conversation.
        self._early: list[messages.Message | bytes] = []
        self.warnings: list[messages.Warning] = []  # those that came before SettingsApplied
        self.bad_messages = 0
        self._bad_on_end = 0
        self.bytes_sent = 0
        self.frames_sent = 0

    async def send_audio(self, audio: bytes) -> None:
        """Send the caller's voice: µ-law at 8 kHz, 20 to 250 ms of it.

        Raises AgentClosed when the session is over.
        """
        await self._send(audio)
        self.bytes_sent += len(audio)
        self.frames_sent += 1

    async def send(self, message: messages.ToAgent) -> None:
        """Send a message. Raises AgentClosed when the session is over."""
        await self._send(messages.encode(message))

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be sent, as far as is known; what came can still be read."""
        over = self._connection.closed is not None or self._reader.error is not None
        return over or bool(self._given_up)

    async def abandon(self, why: str) -> None:
        """Give the session up: whoever sends or receives is told so with these words."""
        self._given_up = why
        await _discard(self._stream)

    @property
    def oldest_at(self) -> float:
        """When the first of what `receive` returned last came, in seconds of Trio's clock."""
        return self._inbox.oldest_at

    async def receive(self, nap: Nap | None = None) -> list[messages.Message | bytes]:
        """Wait for something from the agent and return all that is there, in order.

        Bytes are µ-law at 8 kHz of any length. With `nap`, this returns after it, and audio alone
        does not end it; words do. Unknown messages and bad ones are left out, so the list may be
        empty. Raises AgentClosed when the session is over and everything was returned, and when
        nothing but bad messages comes.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        try:
            raw = await self._inbox.take(nap)
        except trio.EndOfChannel:
            raise self._closed() from self._reader.error
        read = [m for m in map(self._parse, raw) if m is not None]
        if self._bad_on_end >= BAD_MESSAGES_ON_END and not read:
            raise AgentClosed(
                f"{self._bad_on_end} messages on end that are none of a Voice Agent's", clean=False
            )
        return read

    def _parse(self, raw: str | bytes) -> messages.Message | bytes | None:
        if not isinstance(raw, str):
            self._bad_on_end = 0
            return raw
        try:
            message = messages.parse(self._without_key(raw))
        except messages.BadMessage as error:
            self.bad_messages += 1
            self._bad_on_end += 1
            log.debug("agent message skipped", reason=str(error)[:200])
            return None
        self._bad_on_end = 0
        if isinstance(message, messages.Unknown):
            log.debug("agent message of an unknown type", type=message.type)
            return None
        return message

    def _without_key(self, text: str) -> str:
        """An agent that repeats the key it was given, as in an error, would have it in transcripts
        and records, which nobody keeps like a key."""
        return text.replace(self._key, "[secret]") if self._key and self._key in text else text

    async def _send(self, data: str | bytes, *, shield: bool = True) -> None:
        # The last moment to cancel it.
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.move_on_after(SEND_TIMEOUT, shield=shield) as patience:
            self._sends.add(patience)
            try:
                await self._connection.send_message(data)
            except trio_websocket.ConnectionClosed:
                raise self._closed() from self._reader.error
            finally:
                self._sends.discard(patience)
        if patience.cancelled_caught:
            # The reader, which may be waiting for ever, hears of it by this.
            await self.abandon(_DEAF)
            raise AgentClosed(_DEAF, clean=False)

    def _closed(self) -> AgentClosed:
        reason = self._connection.closed
        if self._given_up:
            return AgentClosed(self._given_up, clean=False)
        if self._reader.error is not None:
            return AgentClosed(f"the connection broke: {self._reader.error!r}", clean=False)
        if reason is None or reason.code == 1006:
            return AgentClosed("the connection was lost", clean=False)
        why = self._without_key(reason.reason or "")
        words = f"closed with {reason.code}" + (f" ({why})" if why else "")
        return AgentClosed(words, clean=reason.code in _CLEAN_CODES)

    async def _close(self, close_by: Callable[[], float]) -> None:
        try:
            # The shield lets the goodbye be said although the call is cancelled; the deadline ends
            # it whether the agent answers or not.
            with trio.CancelScope(shield=True, deadline=close_by()):
                await self._connection.aclose()
        finally:
            # Not every stream wakes who writes to it when it is closed.
            for send in self._sends:
                send.cancel(reason="the agent session is closed")
            await _discard(self._stream)


class _Connection(trio_websocket.WebSocketConnection):
    """trio-websocket's connection, as its `wrap_client_stream` makes it, with an `Inbox` for the
    memory channel it passes messages on by."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        target: SplitResult,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        super().__init__(
            stream,
            _Protocol(),
            host=target.netloc,
            path=target.path + (f"?{target.query}" if target.query else "") or "/",
            client_extra_headers=headers,
            max_message_size=MAX_MESSAGE_BYTES,
            receive_buffer_size=RECEIVE_BYTES,
        )
        self.inbox = Inbox(MESSAGES_WAITING)
        self._send_channel = _ReadersEnd(self.inbox)  # type: ignore[assignment]
        self._recv_channel = _ReceiversEnd(self.inbox)  # type: ignore[assignment]

    async def shake_hands(self, reader: _Reader) -> None:
        """Start the library's reader, and wait until the websocket is open."""
        reader.start_soon(self._reader_task)
        await self._open_handshake.wait()

    async def _send(self, event: WebsocketEvent) -> None:
        # As the library's, but where nobody else is writing, which is nearly always, without the
        # turn of the scheduler that taking the lock costs.
        try:
            self._stream_lock.acquire_nowait()
        except trio.WouldBlock:
            return await super()._send(event)
        try:
            await self._stream.send_all(self._wsproto.send(event))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._abort_web_socket()
            raise trio_websocket.ConnectionClosed(self._close_reason) from None
        finally:
            self._stream_lock.release()


class _Protocol(wsproto.WSConnection):
    """wsproto's client, whose websocket is a `QuickConnection` once hands are shaken."""

    def __init__(self) -> None:
        super().__init__(wsproto.ConnectionType.CLIENT)
        self.handshake = _Handshake(wsproto.ConnectionType.CLIENT)
        self._shaken = False

    def events(self) -> Generator[WebsocketEvent, None, None]:
        """As the base class's, which asks the handshake for more for ever."""
        if self._shaken and self.connection is not None:
            return self.connection.events()
        self._shaken = self.connection is not None
        return super().events()


class _Handshake(H11Handshake):
    @property
    def connection(self) -> Connection | None:
        """The websocket; None before it is open."""
        if self._connection is not None and not isinstance(self._connection, QuickConnection):
            # What came with the answer to the handshake, and behind it.
            early, _ = self._h11_connection.trailing_data
            self._connection = QuickConnection(wsproto.ConnectionType.CLIENT, None, early)
        return self._connection


class _ReadersEnd:
    """The end of a memory channel that the library's reader uses, as far as it does."""

    def __init__(self, inbox: Inbox) -> None:
        self.send = inbox.put
        self._inbox = inbox

    async def aclose(self) -> None:
        self._inbox.end()

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exception: object) -> None:
        self._inbox.end()


class _ReceiversEnd:
    """The other end, which the library closes when we close the connection."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def aclose(self) -> None:
        self._inbox.discard()


class _Reader:
    """The library's reader task, in the call's nursery and kept apart."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        # Only its owner ends it, in `open_session`, after a bounded close.
        self.scope = trio.CancelScope(shield=True)
        self.handshake = trio.CancelScope()
        self.error: Exception | None = None

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        # A method of the connection, which is nobody else's yet.
        breaches.attend(function.__self__)  # type: ignore[attr-defined]
        self._nursery.start_soon(self._run, function, args, name="agent websocket reader")

    async def _run(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            with self.scope:
                await function(*args)
        except Exception as error:
            self.error = error
        # A reader that ends during the handshake leaves the library waiting for ever.
        self.handshake.cancel(reason="the agent's connection ended during the handshake")


@asynccontextmanager
async def open_session(
    nursery: trio.Nursery,
    url: str,
    *,
    key: str,
    settings: str,
    timeout: float,
    close_by: Callable[[], float],
    open_stream: OpenStream | None = None,
) -> AsyncIterator[AgentSession]:
    """Open a session with the agent at `url`, send `settings`, and close it on leaving.

    Within `timeout` seconds: connect, websocket handshake, Welcome, Settings, SettingsApplied, in
    the order of https://developers.deepgram.com/docs/voice-agent-message-flow. The library's
    reader task is started in `nursery` and has ended, or is ending, when this context is left.

    On leaving, also by cancellation, the websocket is closed properly if the agent answers by
    `close_by()`, an absolute time of Trio's clock asked for when closing begins, and forcefully
    otherwise.

    Raises AgentUnavailable when there is no session within the time or the agent refuses one, and
    AgentFailed when it answers the Settings with an Error.
    """
    target = urlsplit(url)
    reader = _Reader(nursery)
    stream: trio.abc.Stream | None = None
    session: AgentSession | None = None
    ready = False
    try:
        try:
            with trio.fail_after(timeout):
                stream = await (open_stream or open_tcp_stream)(target)
                notice_when_vanished(stream)
                session = await _handshake(reader, stream, target, key)
                await _apply_settings(session, settings)
        except trio.TooSlowError:
            step = "accept a connection"
            if stream is not None:
                step = "answer the handshake" if session is None else "apply the Settings"
            raise AgentUnavailable(f"the agent did not {step} within {timeout:g} s") from None
        except AgentClosed as closed:
            raise AgentUnavailable(f"the agent ended the session at once: {closed}") from closed
        except OSError as error:
            # The operating system's words; the address is ours and has no secret in it.
            raise AgentUnavailable(f"cannot connect to {target.netloc}: {error}") from error
        ready = True
        yield session
    finally:
        try:
            # A session that never got ready is owed no goodbye, nor the time it takes.
            if session is not None and ready:
                await session._close(close_by)
            elif stream is not None:
                await _discard(stream)
        finally:
            reader.scope.cancel(reason="the agent session is closed")


async def open_tcp_stream(target: SplitResult) -> trio.abc.Stream:
    """Connect to a ws or wss address, certificates verified. Raises OSError."""
    assert target.hostname is not None
    if target.scheme == "ws":
        return await trio.open_tcp_stream(target.hostname, target.port or 80)
    stream = await trio.open_ssl_over_tcp_stream(
        target.hostname,
        target.port or 443,
        https_compatible=True,
        ssl_context=_client_tls(),
    )
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        # The interesting part is the ssl module's: which certificate check failed.
        raise OSError(f"TLS failed: {error.__cause__ or error}") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


@cache
def _client_tls() -> ssl.SSLContext:
    """The system's certificates, read once: it takes tens of milliseconds, on every call's path."""
    return ssl.create_default_context()


async def _handshake(
    reader: _Reader, stream: trio.abc.Stream, target: SplitResult, key: str
) -> AgentSession:
    headers = [(b"Authorization", b"Token " + key.encode("ascii"))] if key else []
    connection = _Connection(stream, target, headers)
    opened = False
    with reader.handshake:
        await connection.shake_hands(reader)
        opened = True
    if opened:
        return AgentSession(connection, stream, reader, key)
    if isinstance(reader.error, trio_websocket.ConnectionRejected):
        status = reader.error.status_code
        remedy = _REMEDIES.get(status, "an answer that is not a websocket")
        raise AgentUnavailable(f"the agent answered {status}: {remedy}", status=status)
    if reader.error is not None:
        raise AgentUnavailable(f"the agent's answer is no websocket: {reader.error!r}")
    raise AgentUnavailable("the agent closed the connection during the handshake")


async def _apply_settings(session: AgentSession, settings: str) -> None:
    """Welcome, Settings, SettingsApplied. What follows the last of them is left to be received."""
    applied = False
    while not applied:
        batch = await session.receive()
        for position, message in enumerate(batch, start=1):
            match message:
                case messages.Welcome():
                    log.debug("agent welcome", request_id=message.request_id)
                    # Cut off, it is the end of a session that nobody says goodbye to.
                    await session._send(settings, shield=False)
                case messages.SettingsApplied():
                    session._early = batch[position:]
                    applied = True
                    break
                case messages.Error():
                    raise AgentFailed(message)
                case messages.Warning():
                    session.warnings.append(message)
                    log.warning("agent warning", code=message.code, words=message.description)
                case _:
                    log.debug("agent message before its time", kind=type(message).__name__)


async def _discard(stream: trio.abc.Stream) -> None:
    """Close a stream at once: no goodbye, no waiting, whatever the peer does."""
    # Cancelled, closing takes its quick way; shielded, it is this scope that ends the cancellation
    # and not the call's, which would skip the rest of the cleanup.
    with trio.CancelScope(shield=True) as scope:
        scope.cancel(reason="closing without ceremony")
        await stream.aclose()
