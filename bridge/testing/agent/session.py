"""One session of the simulated agent: the actions of a script, and the recorded observations.

`receiving` reads what the client sends, `client_messages` answers it, `speaking` is the voice,
`function_calls` tracks function calls. This module connects them to one websocket and ends them
together.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Protocol

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from bridge.testing.agent.behaviour import Behaviour
from bridge.testing.agent.function_calls import SimulatedFunctionCall, SimulatedFunctionCalls
from bridge.testing.agent.lifetime import apply_settings, watch_time, welcome
from bridge.testing.agent.receiving import Receiver
from bridge.testing.agent.record import CallerTurn, Closed, Observations, keep
from bridge.testing.agent.schema import Json
from bridge.testing.agent.speaking import Mouth, Utterance
from bridge.testing.agent.wire import Wire

# RFC 6455, section 7.4.1.
GOING_AWAY = 1001  # the server goes down
NO_CODE = 1005  # a Close frame without a code

Script = Callable[["AgentSession"], Awaitable[None]]


class Senses(Protocol):
    """Speech recognition and synthesis for one session, instead of the loudness detector and
    recorded clips. Failures raise nothing: they end the session with an Error, and wait for its
    end.
    """

    async def run(self, session: AgentSession, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Run for the whole session; started before Welcome."""
        ...

    async def hear(self, audio: bytes) -> None:
        """Process the caller's µ-law at 8 kHz; `run` reports the results to the session."""
        ...

    async def speak(self, text: str) -> bytes:
        """Return the speech of `text`: µ-law at 8 kHz."""
        ...

    async def end_turn(self) -> None:
        """End the caller's turn by force (ForceEndTurn)."""
        ...


class AgentSession(Observations):
    """The server's side of one Voice Agent session, for scripts; see also Observations.

    `number` is 1 for the server's first session; `authorization` is that header; `headers` are
    all of the handshake's, names in lower case; `path` is the one that was asked for. `calls` has
    every function call, `mouth.spoken` every utterance.
    """

    def __init__(
        self,
        ws: WebSocketConnection,
        wire: Wire,
        behaviour: Behaviour,
        script: Script,
        *,
        number: int = 1,
        headers: list[tuple[str, str]] | None = None,
        on_event: Callable[[AgentSession, str], None] | None = None,
        senses: Senses | None = None,
    ) -> None:
        super().__init__(behaviour)
        self.senses = senses
        self._ws = ws
        self._wire = wire
        self._on_event = on_event
        self._scope = trio.CancelScope()
        self._agent_closes: tuple[int, str] | None = None
        self.script = script
        self.number = number
        self.path = ws.path or ""
        self.headers = headers or []
        self.authorization = dict(self.headers).get("authorization")
        self.request_id = str(uuid.uuid4())
        self.welcomed = trio.Event()
        self.applied = trio.Event()
        self.failed = False
        self.user_speaking = False
        self.injecting = 0
        self.deaf = not behaviour.hears
        self.receiver = Receiver(self, ws)
        self.calls = SimulatedFunctionCalls(self.faults)
        voice = None if senses is None else senses.speak
        self.mouth = Mouth(behaviour, self.send, self._assistant_text, voice)

    # What a script may do.

    async def say(
        self, text: str, audio: bytes | None = None, *, behavior: str = "default"
    ) -> Utterance:
        """Speak: ConversationText for each sentence, audio, AgentAudioDone, History.

        `audio` is µ-law at 8 kHz; None makes it from the text, b"" sends none. Returns when the
        last byte is sent, or the caller interrupted (`Utterance.interrupted`). Several calls at
        once speak one after another. After an Error nothing is said any more.
        """
        if self.failed:
            await trio.sleep_forever()  # that is, until the session ends
        self.event(f"agent: {text}")
        utterance = await self.mouth.say(text, audio, behavior)
        if utterance.interrupted:
            self.event("interrupted")
        return utterance

    async def user_started_speaking(self) -> None:
        """Report that the caller speaks: send UserStartedSpeaking, stop the current utterance."""
        self.user_speaking = True
        self.mouth.interrupt()
        await self.send({"type": "UserStartedSpeaking"})

    async def user_said(self, text: str, *, trigger: str = "eot_threshold") -> None:
        """Confirm the caller's turn as `text`: ConversationText{user}, History, EndOfTurn."""
        self.user_speaking = False
        self.event(f"caller: {text}")
        message: Json = {"type": "ConversationText", "role": "user", "content": text}
        if self.behaviour.conversational_behavior:
            message["conversational_behavior"] = "default"
        provider = self.listen.get("provider", {})
        if provider.get("model") == "flux-general-multi":
            message["languages"] = ["en"]
            message["languages_hinted"] = provider.get("language_hints") or []
        await self.send(message)
        await self.history({"role": "user", "content": text})
        wanted = self.behaviour.end_of_turn
        flux = provider.get("version") == "v2"
        if wanted == "always" or (wanted == "flux" and (flux or trigger == "manual")):
            await self.send({"type": "EndOfTurn", "trigger": trigger})

    async def call_functions(
        self, functions: Iterable[Json], *, timeout: float | None = None
    ) -> list[SimulatedFunctionCall]:
        """Send FunctionCallRequest; wait until every call is answered or cancelled.

        Each item has name and optionally arguments (object or JSON text), id, client_side,
        thought_signature, and response for a server-side one. Each answer is echoed and reported
        as History, as real sessions do.

        Raises:
            trio.TooSlowError: after `timeout` seconds; None waits as long as the session lives.
        """
        calls = self.calls.new(functions)
        self.event("calls " + ", ".join(call.name for call in calls))
        await self.send(
            {"type": "FunctionCallRequest", "functions": [call.request() for call in calls]}
        )
        for call in calls:
            if not call.client_side:
                await self.function_answered(call)
        with trio.fail_after(float("inf") if timeout is None else timeout):
            for call in calls:
                await call.settled.wait()
        return calls

    async def cancel_functions(self, ids: Iterable[str] | None = None) -> None:
        """Send FunctionCallCancelled for these calls (default: all pending); drop later answers."""
        cancelled = self.calls.cancel(ids)
        if cancelled:
            functions = [{"id": call.id, "name": call.name} for call in cancelled]
            await self.send({"type": "FunctionCallCancelled", "functions": functions})

    async def error(self, code: str, description: str = "", *, close: bool | None = None) -> None:
        """Send a fatal Error; then close if `close`, or by default if the behaviour says so."""
        self.event(f"error {code}")
        field = "message" if self.behaviour.legacy_errors else "description"
        await self.send({"type": "Error", field: description or code, "code": code})
        self.failed = True
        self.mouth.interrupt()
        if self.behaviour.closes_after_error if close is None else close:
            await trio.sleep(self.behaviour.error_close_delay)
            await self.close(self.behaviour.error_close_code)

    async def warning(self, code: str, description: str = "") -> None:
        """Send a Warning, which is not fatal."""
        await self.send({"type": "Warning", "description": description or code, "code": code})

    async def latency_report(self, **latencies: float) -> None:
        """Send a LatencyReport, e.g. `latency_report(tts_latency=0.21)`, in seconds."""
        await self.send({"type": "LatencyReport", **latencies})

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the session with `code`, 1005 for none; the script is cancelled here."""
        if self._agent_closes is None:
            self._agent_closes = (code, reason)
        self._scope.cancel()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Lose the connection abruptly; the script is cancelled here."""
        self._lost("reset by the script")
        await self._wire.reset()
        await trio.lowlevel.checkpoint()

    def stop_reading(self) -> None:
        """Stop reading from the client, but keep the connection."""
        self._wire.stop_reading()

    def freeze(self) -> None:
        """Read and send nothing any more, as a process that hangs: its kernel keeps TCP up."""
        self._wire.freeze()

    async def send(self, message: Json | bytes) -> None:
        """Send one message as it is: an object as JSON, bytes as audio.

        Shielded, within `send_timeout`: a cancelled send would leave half a frame on the wire. When
        the client is gone the message is dropped, and the session ends when all input is read.
        """
        data = message if isinstance(message, bytes) else msgspec.json.encode(message).decode()
        with trio.move_on_after(self.behaviour.send_timeout, shield=True) as scope:
            try:
                await self._ws.send_message(data)
                if isinstance(message, bytes):
                    self.sent_audio_bytes += len(message)
                else:
                    keep(self.sent, (trio.current_time(), message))
            except (ConnectionClosed, LocalProtocolError):
                pass
        if scope.cancelled_caught:
            self._lost("the client did not read for too long")
        # The shield above holds back cancellation, so a loop of sends needs this to be cancellable.
        await trio.lowlevel.checkpoint()

    # The life of a session.

    async def run(self) -> None:
        """Run the session until it ends; no task outlives it."""
        self.event("session opened")
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self.nursery = nursery
                    if self.senses is not None:
                        await nursery.start(self.senses.run, self)
                    nursery.start_soon(welcome, self)
                    nursery.start_soon(watch_time, self)
                    await self.receiver.run()
                    nursery.cancel_scope.cancel()
        finally:
            await self._finish()
            self.wake()
            if self.closed is not None:
                self.event(f"closed {self.closed.code} by {self.closed.by}")

    def start(self) -> None:
        """Settings are accepted: apply them, greet, and start the script."""
        self.nursery.start_soon(apply_settings, self)

    def start_script(self) -> None:
        """Run the script in the session's nursery."""
        self.nursery.start_soon(self.script, self)

    async def end_turn(self) -> None:
        """End the caller's turn by force (ForceEndTurn)."""
        await self.receiver.end_turn()

    def inject(self, text: str, behavior: str) -> None:
        """Speak an InjectAgentMessage as soon as the agent's current utterance has ended."""
        self.injecting += 1
        self.nursery.start_soon(self._say_injected, text, behavior)

    async def history(self, content: Json) -> None:
        """A History message, unless they are turned off."""
        flags = (self.settings or {}).get("flags") or {}
        if self.behaviour.history and flags.get("history", True):
            await self.send({"type": "History", **content})

    async def function_answered(self, call: SimulatedFunctionCall) -> None:
        """Echo a function's response and report it, as real sessions do."""
        content = call.response or ""
        await self.send(
            {"type": "FunctionCallResponse", "id": call.id, "name": call.name, "content": content}
        )
        await self.history({"function_calls": [call.history()]})

    def add_turn(self, turn: CallerTurn) -> None:
        """Record a turn of the caller and wake the waiting tasks."""
        self.user_speaking = False
        keep(self.turns, turn)
        self.wake()

    def event(self, text: str) -> None:
        """Report what happened to `on_event` (the command line prints it)."""
        if self._on_event is not None:
            self._on_event(self, text)

    async def _say_injected(self, text: str, behavior: str) -> None:
        try:
            await self.say(text, behavior=behavior)
        finally:
            self.injecting -= 1

    async def _assistant_text(self, text: str, behavior: str) -> None:
        message: Json = {"type": "ConversationText", "role": "assistant", "content": text}
        if self.behaviour.conversational_behavior:
            message["conversational_behavior"] = behavior
        await self.send(message)
        await self.history({"role": "assistant", "content": text})
        if self.behaviour.unknown_messages:
            await self.send({"type": "SomethingNew", "detail": {"about": text}})

    def _lost(self, reason: str) -> None:
        if self.closed is None:
            self.closed = Closed(1006, reason, "lost", trio.current_time())
        self._scope.cancel()

    async def _finish(self) -> None:
        """Close the websocket within `close_timeout` and note how the session ended."""
        now = trio.current_time()
        theirs = self._ws.closed
        if self.closed is not None:
            return
        if theirs is not None:
            by = "lost" if theirs.code == 1006 else "client"
            self.closed = Closed(int(theirs.code), theirs.reason or "", by, now)
            return
        code, reason = self._agent_closes or (GOING_AWAY, "server shutting down")
        self.closed = Closed(code, reason, "agent", now)
        self._wire.initiating_close = True
        with trio.move_on_after(self.behaviour.close_timeout, shield=True):
            # Raised when the connection is already past a closing handshake.
            with suppress(LocalProtocolError):
                # wsproto leaves a code out if it is this enum's, and only then.
                bare = CloseReason.NO_STATUS_RCVD if code == NO_CODE else code
                await self._ws.aclose(bare, reason or None)
