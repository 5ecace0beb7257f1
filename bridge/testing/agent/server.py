"""The simulated agent: a server for Deepgram's Voice Agent protocol (V1).

It is written from the documentation and shares no code with `bridge.deepgram`, so that a misreading
there fails here. It serves TCP, or any stream that a test passes in; on a mock clock a session of
minutes takes milliseconds.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn, cast

import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    wrap_server_stream,
)

from bridge.testing.agent.behaviour import Behaviour
from bridge.testing.agent.function_calls import SimulatedFunctionCall
from bridge.testing.agent.hearing import Heard
from bridge.testing.agent.record import CallerTurn, Closed
from bridge.testing.agent.session import AgentSession, Script, Senses
from bridge.testing.agent.speaking import Utterance
from bridge.testing.agent.wire import Wire

__all__ = [
    "AgentSession",
    "Behaviour",
    "CallerTurn",
    "Closed",
    "Heard",
    "Script",
    "Senses",
    "SimulatedAgent",
    "SimulatedFunctionCall",
    "Utterance",
    "silent",
]

PATHS = ("/v1/agent/converse", "/agent")
# trio-websocket's reader parks when this many messages wait, and then answers no ping and sees no
# Close; a session reads at once, so this is reached only by a flood.
QUEUED_MESSAGES = 64
RECEIVE_BYTES = 65536
REASONS = {
    401: ("INVALID_AUTH", "Invalid credentials."),
    402: ("ASR_PAYMENT_REQUIRED", "Project does not have enough credits for this request."),
    403: ("INSUFFICIENT_PERMISSIONS", "User does not have sufficient permissions."),
    404: ("NOT_FOUND", "No such endpoint."),
    429: ("TOO_MANY_REQUESTS", "Too many concurrent connections for this project."),
}


async def silent(session: AgentSession) -> None:
    """Do nothing: the protocol is answered and the greeting is spoken."""


class SimulatedAgent:
    """A Voice Agent server.

    `behaviour` is the same for each session, or a function of the connection's number (from 1),
    rejected ones counted. `on_event` is called with a session and one line for people. `senses`
    makes ears and a voice for each session; without it loudness and recorded clips must do.

    `sessions` has the latest `keep_sessions` of those opened, in order; `opened` and `active` count
    them; `connections` counts all, `rejected` lists the status of each one refused; `failures`
    has what went wrong on connections that broke the websocket protocol.
    """

    def __init__(
        self,
        script: Script = silent,
        behaviour: Behaviour | Callable[[int], Behaviour] | None = None,
        *,
        on_event: Callable[[AgentSession, str], None] | None = None,
        keep_sessions: int = 1000,
        senses: Callable[[], Senses] | None = None,
    ) -> None:
        self._senses = senses
        self._script = script
        self._behaviour = behaviour if behaviour is not None else Behaviour()
        self._on_event = on_event
        self._keep_sessions = keep_sessions
        self._changed = trio.Event()
        self.sessions: list[AgentSession] = []
        self.connections = 0
        self.opened = 0
        self.active = 0
        self.rejected: list[int] = []
        self.failures: list[BaseException] = []

    async def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Serve over TCP until cancelled; started with the port that was bound.

        Raises:
            OSError: the address cannot be bound.
        """
        listeners = await trio.open_tcp_listeners(port, host=host)
        await self.serve_listeners(listeners, task_status=task_status)

    async def serve_listeners(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Serve on these listeners until cancelled.

        *Resource handling*: listeners and connections are closed when it ends; each session gets
        its Close frame, within `Behaviour.close_timeout`. *Error handling*: what a client does to
        the protocol ends its own connection only; an exception of a script ends the server.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self.serve_stream, listeners)
            task_status.started(listeners[0].socket.getsockname()[1])
            await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection over `stream`, from its handshake to its end; closes `stream`."""
        self.connections += 1
        knobs = (
            self._behaviour
            if isinstance(self._behaviour, Behaviour)
            else self._behaviour(self.connections)
        )
        wire = Wire(stream, knobs)
        try:
            async with trio.open_nursery() as nursery:
                home = _ReaderHome(nursery)
                try:
                    await self._converse(home, wire, knobs)
                finally:
                    home.scope.cancel()
        except* _ReaderFailed as broken:
            self.failures.extend(broken.exceptions)
            del self.failures[:-1000]
        finally:
            await wire.finish()

    async def wait_for_session(self, number: int = 1) -> AgentSession:
        """Wait until so many sessions have been opened; that session."""
        while self.opened < number:
            await self._changed.wait()
        return next(session for session in self.sessions if session.number == number)

    async def wait_until_idle(self) -> None:
        """Wait until no session is open any more."""
        while self.active:
            await self._changed.wait()

    async def _converse(self, home: _ReaderHome, wire: Wire, knobs: Behaviour) -> None:
        request = None
        with trio.move_on_after(knobs.handshake_timeout):
            # Of a nursery trio-websocket uses start_soon alone.
            request = await wrap_server_stream(
                cast(trio.Nursery, home), wire, QUEUED_MESSAGES, receive_buffer_size=RECEIVE_BYTES
            )
        if request is None:
            return
        if not knobs.answers_handshake:
            with trio.move_on_after(knobs.linger):
                await home.finished.wait()  # until the client gives up
            return
        headers = [
            (name.decode("ascii", "replace").lower(), value.decode("latin-1"))
            for name, value in request.headers
        ]
        status = self._verdict(request, dict(headers), knobs)
        if status:
            await self._reject(request, status, knobs)
            return
        # A client that cannot set headers offers ["token", KEY]; only its offer may be echoed.
        offered = request.proposed_subprotocols
        ws = None
        # The client left before it was answered.
        with trio.move_on_after(knobs.send_timeout), suppress(ConnectionClosed):
            ws = await request.accept(
                subprotocol=offered[0] if offered else None,
                extra_headers=[(b"dg-request-id", str(uuid.uuid4()).encode())],
            )
        if ws is not None:
            await self._session(ws, wire, knobs, headers)

    async def _session(
        self,
        ws: WebSocketConnection,
        wire: Wire,
        knobs: Behaviour,
        headers: list[tuple[str, str]],
    ) -> None:
        self.opened += 1
        session = AgentSession(
            ws,
            wire,
            knobs,
            self._script,
            number=self.opened,
            headers=headers,
            on_event=self._on_event,
            senses=self._senses and self._senses(),
        )
        self.sessions.append(session)
        del self.sessions[: -self._keep_sessions]
        self.active += 1
        self._wake()
        try:
            await session.run()
        finally:
            self.active -= 1
            self._wake()

    def _verdict(self, request: WebSocketRequest, headers: dict[str, str], knobs: Behaviour) -> int:
        """The HTTP status to reject this handshake with, or 0."""
        if request.path.partition("?")[0] not in PATHS:
            return 404
        scheme, _, key = headers.get("authorization", "").partition(" ")
        named = scheme.lower() in ("token", "bearer") and bool(key.strip())
        offered = [item.lower() for item in request.proposed_subprotocols[:1]]
        if knobs.require_key and not named and offered not in (["token"], ["bearer"]):
            return 401
        if knobs.reject_status and (
            not knobs.reject_times or len(self.rejected) < knobs.reject_times
        ):
            return knobs.reject_status
        if knobs.max_sessions and self.active >= knobs.max_sessions:
            return 429
        return 0

    async def _reject(self, request: WebSocketRequest, status: int, knobs: Behaviour) -> None:
        self.rejected.append(status)
        del self.rejected[:-1000]
        self._wake()
        request_id = str(uuid.uuid4())
        code, text = REASONS.get(status, ("INTERNAL_SERVER_ERROR", "Something went wrong."))
        if status == 429 and knobs.full_message:
            text = knobs.full_message
        body = {"err_code": code, "err_msg": text, "request_id": request_id}
        with trio.move_on_after(knobs.send_timeout), suppress(ConnectionClosed):
            await request.reject(
                status,
                extra_headers=[
                    (b"content-type", b"application/json"),
                    (b"dg-request-id", request_id.encode()),
                ],
                body=knobs.reject_body.encode() or msgspec.json.encode(body),
            )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class _ReaderFailed(Exception):
    """trio-websocket's reader could not cope with what the client sent.

    It raises many things: UnicodeDecodeError for a header that is not ASCII, LocalProtocolError
    for a Ping that crosses our Close. Whatever it is, only this connection may end.
    """


class _ReaderHome:
    """Where trio-websocket's reader lives: it outlives cancellation of the session, to hear the
    answer to our Close frame, and ends when `scope` is cancelled."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.scope = trio.CancelScope(shield=True)  # deadline: close_timeout, by its owner
        self.finished = trio.Event()

    def start_soon(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(self._run, task, args)

    async def _run(self, task: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
        try:
            with self.scope:
                await task(*args)
        except Exception as error:
            raise _ReaderFailed(repr(error)) from error
        finally:
            self.finished.set()
