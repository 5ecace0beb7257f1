"""One session with the voice agent: opened, used and closed with a bound on every wait.

The websocket is `bridge.transport.websocket`'s: the task that receives reads the stream itself, and
a send that has begun is finished or drops the connection. Here is what makes it a Voice Agent's:
Welcome, Settings and SettingsApplied before anything else, typed messages, and errors that say what
to do.

https://developers.deepgram.com/docs/voice-agent-message-flow
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import SplitResult, urlsplit

import trio

from bridge.deepgram import messages
from bridge.deepgram.refusal import meaning
from bridge.log import SHORTEST_SECRET, get_logger
from bridge.transport.byte_stream import close_at_once
from bridge.transport.tcp_keepalive import detect_dead_peer
from bridge.transport.websocket import ABNORMAL_CLOSURE, WebSocket, WebSocketClosed
from bridge.transport.websocket_client import (
    HandshakeFailed,
    OpenStream,
    open_tcp_stream,
    shake_hands,
)

log = get_logger(__name__)

# Far above any message seen (a long History item); a larger one closes the session with 1009.
MAX_MESSAGE_BYTES: Final = 1024 * 1024

# How long the agent may not read while we write. Long before, the caller's audio has begun to be
# dropped; an agent that does not read for so long is lost.
SEND_TIMEOUT: Final = 5.0

# A process that hangs keeps its connection: its kernel acknowledges. So an agent that has sent
# nothing for so long is sent a ping, which every websocket answers; Deepgram's SDK relies on that,
# too. It is lost if nothing at all comes within the 8 s behind it, less the tick of the watch.
PING_AFTER: Final = 2.0
LOST_AFTER: Final = 9.5

# Messages before SettingsApplied that are kept; more are dropped.
MAX_EARLY: Final = 1000

# A bad message does not end a session. This many in a row, and the peer is not a Voice Agent;
# another session may be.
MAX_CONSECUTIVE_BAD_MESSAGES: Final = 100


class AgentUnavailable(Exception):
    """No session could be opened. Says why, in one line; `status` if the agent answered one."""

    def __init__(self, why: str, *, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class AgentClosed(Exception):
    """The session is over. Says why, in one line.

    The Voice Agent has no code for "goodbye": a session that we did not close was lost, whatever
    its code.
    """


class AgentFailed(Exception):
    """The agent sent an Error; the session is of no more use."""

    def __init__(self, error: messages.Error, request_id: str = "") -> None:
        session = f" (request_id {request_id})" if request_id else ""
        super().__init__(f"{error.code or 'Error'}: {error.reason}{session}")
        self.code = error.code


class AgentSession:
    """An open session whose Settings are applied.

    One task receives; any number may send, and their messages stay whole. Cancelling `receive`
    loses nothing. A send may be cancelled until its first byte is written; then it ends within
    SEND_TIMEOUT or with the session.
    """

    def __init__(self, websocket: WebSocket, key: str = "") -> None:
        self._websocket = websocket
        # Short keys, made up for a local agent, could be part of any word.
        self._key = key if len(key) >= SHORTEST_SECRET else ""
        self._given_up = ""
        # What came before SettingsApplied, or with it in one read: already the conversation.
        self._early: list[messages.Message | bytes] = []
        self.warnings: list[messages.Warning] = []  # those that came before SettingsApplied
        self.received_at = websocket.received_at
        """When what `receive` returned last was read, in seconds of Trio's clock."""
        self.request_id = ""
        """What Deepgram calls the session; its support asks for it."""
        self.bad_messages = 0
        self._odd_types: set[str] = set()
        self._consecutive_bad = 0
        self.bytes_sent = 0
        self.frames_sent = 0
        self._heard_at = self.received_at
        self._silent = 0.0

    async def send_audio(self, audio: bytes) -> None:
        """Send the caller's voice: µ-law at 8 kHz, 20 to 250 ms of it.

        Raises AgentClosed when the session is over.
        """
        try:
            await self._websocket.send(audio)
        except WebSocketClosed as closed:
            raise self._closed(closed) from closed
        self.bytes_sent += len(audio)
        self.frames_sent += 1

    async def send(self, message: messages.ToAgent) -> None:
        """Send a message. Raises AgentClosed when the session is over."""
        await self._send(messages.encode(message))

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be sent, as far as is known; what came can still be read."""
        return self._websocket.closing is not None or bool(self._given_up)

    @property
    def is_abandoned(self) -> bool:
        """Whether we gave it up: a suspicion, not a loss."""
        return bool(self._given_up)

    async def abandon(self, why: str) -> None:
        """Drop the session: tasks that send or receive get AgentClosed with these words."""
        self._given_up = why
        await self._websocket.drop()

    async def watch(self, seconds: float) -> None:
        """Ping an agent that has been silent, and drop one that does not answer. To be called every
        `seconds` while another task receives. Raises nothing.

        Calls are counted and not the clock: while this process was stopped, nothing could be read.
        """
        if self._heard_at != self._websocket.received_at:
            self._heard_at, self._silent = self._websocket.received_at, 0.0
            return
        before, self._silent = self._silent, self._silent + seconds
        if before < PING_AFTER <= self._silent:
            await self._websocket.ping()
        elif self._silent >= LOST_AFTER:
            await self._websocket.drop(f"no answer to a ping in {LOST_AFTER - PING_AFTER:g} s")

    async def receive(self) -> list[messages.Message | bytes]:
        """Wait for something from the agent and return all that came together, in order.

        Bytes are µ-law at 8 kHz of any length. Unknown messages and bad ones are left out, so the
        list may be empty. Raises AgentClosed when the session is over and everything was returned,
        and after MAX_CONSECUTIVE_BAD_MESSAGES bad messages in a row.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        try:
            raw = await self._websocket.receive()
        except WebSocketClosed as closed:
            raise self._closed(closed) from closed
        self.received_at = self._websocket.received_at
        read: list[messages.Message | bytes] = []
        for data in raw:
            if not isinstance(data, str):
                self._consecutive_bad = 0
                read.append(data)
            elif (message := self._parse(data)) is not None:
                read.append(message)
        if self._consecutive_bad >= MAX_CONSECUTIVE_BAD_MESSAGES and not read:
            raise AgentClosed(
                f"{self._consecutive_bad} consecutive messages that are not Voice Agent messages"
            )
        return read

    def _parse(self, text: str) -> messages.Message | None:
        text = self._without_key(text)
        try:
            message = messages.parse(text)
        except messages.BadMessage as error:
            self.bad_messages += 1
            try:
                message = messages.parse_leniently(text)
            except messages.BadMessage:
                self._consecutive_bad += 1
                log.debug("agent message skipped", reason=str(error)[:200])
                return None
            if (kind := type(message).__name__) not in self._odd_types:
                self._odd_types.add(kind)
                log.warning("agent message has another shape", type=kind, reason=str(error)[:200])
        self._consecutive_bad = 0
        if isinstance(message, messages.Unknown):
            log.debug("agent message of an unknown type", type=message.type)
            return None
        return message

    def _without_key(self, text: str) -> str:
        """Take the key out of what the agent repeats, as in an error: transcripts and records are
        not kept as safely as a key."""
        return text.replace(self._key, "[secret]") if self._key and self._key in text else text

    async def _send(self, data: str | bytes) -> None:
        try:
            await self._websocket.send(data)
        except WebSocketClosed as closed:
            raise self._closed(closed) from closed

    def _closed(self, closed: WebSocketClosed) -> AgentClosed:
        if self._given_up:
            return AgentClosed(self._given_up)
        why = self._without_key(closed.reason)
        if closed.broke_protocol:
            return AgentClosed(f"the connection broke: {closed.code} {why}".rstrip())
        if closed.code == ABNORMAL_CLOSURE:
            return AgentClosed(f"the connection was lost{f': {why}' if why else ''}")
        return AgentClosed(f"closed with {closed.code}" + (f" ({why})" if why else ""))


@asynccontextmanager
async def open_session(
    url: str,
    *,
    key: str,
    settings: str,
    timeout: float,
    close_by: Callable[[], float],
    open_stream: OpenStream | None = None,
) -> AsyncIterator[AgentSession]:
    """Open a session with the agent at `url`, send `settings`, and close it on leaving.

    Within `timeout` seconds: connect, websocket handshake, Welcome, Settings, SettingsApplied.

    On leaving, also by cancellation, the websocket is closed properly if the agent answers by
    `close_by()`, a time of Trio's clock asked for when closing begins, and is dropped otherwise.

    Raises AgentUnavailable when there is no session within the time or the agent refuses one, and
    AgentFailed when it answers the Settings with an Error.
    """
    target = urlsplit(url)
    stream: trio.abc.Stream | None = None
    session: AgentSession | None = None
    ready = False
    try:
        try:
            with trio.fail_after(timeout) as opening:
                stream = await (open_stream or open_tcp_stream)(target)
                detect_dead_peer(stream)
                websocket = await _handshake(stream, target, key)
                session = AgentSession(websocket, key)
                # A write of the Settings that has begun cannot be cancelled.
                websocket.write_by = opening.deadline
                await _apply_settings(session, settings)
                websocket.write_by = float("inf")
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
        # A session that never got ready is owed no goodbye, nor the time it takes.
        if session is not None and ready:
            by = close_by()
            # The shield lets the goodbye be said although the call is cancelled.
            with trio.CancelScope(shield=True, deadline=by):
                await session._websocket.close(by=by)
        elif stream is not None:
            await close_at_once(stream)


async def _handshake(stream: trio.abc.Stream, target: SplitResult, key: str) -> WebSocket:
    headers = [(b"Authorization", b"Token " + key.encode("ascii"))] if key else []
    try:
        return await shake_hands(
            stream,
            target,
            headers,
            max_message=MAX_MESSAGE_BYTES,
            write_timeout=SEND_TIMEOUT,
        )
    except HandshakeFailed as failed:
        if failed.status is None:
            raise AgentUnavailable(f"the agent {failed}") from failed
        raise AgentUnavailable(
            f"the agent answered {failed.status}: {meaning(failed, key)}", status=failed.status
        ) from failed


async def _apply_settings(session: AgentSession, settings: str) -> None:
    """Welcome, Settings, SettingsApplied. What belongs to the conversation is left to be received,
    also if the agent is in a hurry and sends it before SettingsApplied."""
    early: list[messages.Message | bytes] = []
    applied = False
    while not applied:
        for message in await session.receive():
            match message:
                case messages.Welcome():
                    session.request_id = message.request_id
                    log.debug("agent welcome", request_id=message.request_id)
                    await session._send(settings)
                case messages.SettingsApplied():
                    applied = True
                case messages.Error():
                    raise AgentFailed(message, session.request_id)
                case messages.Warning():
                    session.warnings.append(message)
                    log.warning("agent warning", code=message.code, words=message.description)
                case _ if len(early) < MAX_EARLY:
                    early.append(message)
                case _:
                    log.debug("agent message before its time", kind=type(message).__name__)
    session._early = early
