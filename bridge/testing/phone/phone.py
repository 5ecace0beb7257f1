"""A simulated phone: a caller, and Twilio between the caller and the server.

    async with SimulatedPhone(strict=True).place_call("http://127.0.0.1:5000") as phone:
        await phone.wait_heard(1.0)
        await phone.say(question)
        await phone.wait_quiet(2.0)
        await phone.hang_up()

`place_call` requests the voice webhook, reads its TwiML, opens the media socket it names and
carries the call on in the background as Twilio would: when the server closes the socket the
`<Connect action>` is requested and what it answers is carried out, and so on until the TwiML or
the caller ends the call. Meanwhile the caller acts (`say`, `press`, `hang_up`, `drop`), waits
(`wait_…`) and observes (`events`, `heard`, `faults`). No threads and no wall clock are used, so a
call on `trio.testing.MockClock` takes no time.

It shares no code with the bridge: it is a second, independent reading of Twilio's documentation.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from bridge.testing.phone.call_log import (
    CallEndedError,
    CallLog,
    EventKind,
    Fault,
    PhoneEvent,
    PhoneFault,
    PhoneTimeoutError,
)
from bridge.testing.phone.exchange import Caller, DialStatus, Ending, Exchange
from bridge.testing.phone.media_stream import SimulatedMediaStream
from bridge.testing.phone.twiml import TwimlError, Verb, read_twiml
from bridge.testing.phone.webhook import (
    OpenStream,
    UnreachableError,
    WebhookError,
    open_network_stream,
)
from bridge.testing.speech import RATE

__all__ = [
    "CallEndedError",
    "Fault",
    "PhoneEvent",
    "PhoneFault",
    "PhoneTimeoutError",
    "SimulatedPhone",
    "TwimlError",
    "UnreachableError",
    "WebhookError",
]

WAIT_SECONDS = 60.0  # default timeout of the wait_ methods


class SimulatedPhone:
    """One call to a voice webhook. All audio is µ-law at 8 kHz, all times are in seconds.

    `auth_token` signs the requests as Twilio does. With `silence_frames` false no media is sent
    while the caller says nothing, as happens on some calls. `first_timestamp` (milliseconds) is
    that of the first media message. `dials` are the results of the `<Dial>`s of the call, as in
    DialCallStatus; the last one is that of all later ones, too. A dialled phone that answers, with
    "completed", hangs up after `talk_seconds`. Webhooks are sent in two segments, the body
    `webhook_pause` after the head. `strict` makes `place_call` raise `PhoneFault` at
    its end when there were faults. `open_stream(host, port, tls)` makes the connections. `on_event`
    is called with each `PhoneEvent` as it happens.
    """

    def __init__(
        self,
        *,
        from_number: str = "+15550100001",
        to_number: str = "+15550100002",
        caller_name: str | None = None,
        account_sid: str | None = None,
        call_sid: str | None = None,
        auth_token: str | None = None,
        strict: bool = False,
        silence_frames: bool = True,
        first_timestamp: int = 155,
        dials: Sequence[DialStatus] = ("completed",),
        talk_seconds: float = 0.0,
        webhook_pause: float = 0.0,
        open_stream: OpenStream = open_network_stream,
        on_event: Callable[[PhoneEvent], None] | None = None,
    ) -> None:
        self._caller = Caller(
            from_number=from_number,
            to_number=to_number,
            caller_name=caller_name,
            account_sid=account_sid or "AC" + secrets.token_hex(16),
            call_sid=call_sid or "CA" + secrets.token_hex(16),
            auth_token=auth_token,
            silence_frames=silence_frames,
            first_timestamp=first_timestamp,
            dials=tuple(dials),
            talk_seconds=talk_seconds,
            webhook_pause=webhook_pause,
            open_stream=open_stream,
        )
        self._strict = strict
        self._on_event = on_event
        self._call: tuple[CallLog, Exchange] | None = None

    @asynccontextmanager
    async def place_call(
        self, base_url: str, webhook_path: str = "/incoming-call"
    ) -> AsyncIterator[SimulatedPhone]:
        """Call the server at `base_url`; hang up when the context closes.

        Yields the phone when the first media stream has started, when the call has ended without
        one, or when the TwiML makes the caller wait. Raises `WebhookError` or `TwimlError` when the
        webhook's answer is not TwiML that Twilio accepts and, if strict, `PhoneFault` at the end,
        unless the body raised.
        """
        exchange = self._new_call(base_url)
        verbs = await exchange.fetch(base_url.rstrip("/") + webhook_path, "POST", "ringing")
        async with self._carried(exchange, verbs):
            yield self

    @asynccontextmanager
    async def answer(self, document: str | bytes, base_url: str) -> AsyncIterator[SimulatedPhone]:
        """Be the called party of an outbound call and answer it; then as `place_call`.

        `document` is the TwiML sent with the request for the call: it is not fetched from a
        webhook, and its URLs must be absolute. `call_sid` is the one that Twilio gave the call, and
        `base_url` is where the server is.
        """
        exchange = self._new_call(base_url, "outbound-api")
        body = document.encode() if isinstance(document, str) else document
        async with self._carried(exchange, read_twiml(body, "text/xml", "")):
            yield self

    def _new_call(self, base_url: str, direction: str = "inbound") -> Exchange:
        if self._call is not None:
            raise RuntimeError("a SimulatedPhone places one call")
        log = CallLog(self._on_event)
        exchange = Exchange(self._caller, base_url, log, direction)
        self._call = log, exchange
        return exchange

    @asynccontextmanager
    async def _carried(self, exchange: Exchange, verbs: list[Verb]) -> AsyncIterator[None]:
        # Raised outside the nursery, so that it is not wrapped in an exception group.
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.carry_out, verbs)
            try:
                await exchange.connected.wait()
                yield
            except Exception as error:
                failure = error
            await exchange.leave("caller_hung_up")
        if failure is not None:
            raise failure
        if self._strict:
            self.check()

    # The caller's actions.

    async def say(self, ulaw: bytes) -> None:
        """Speak µ-law audio; return when its last frame has been sent.

        Frames are 160 bytes; the last one is padded with silence. When cancelled, the caller falls
        silent. Raises `CallEndedError` when the media stream ends first, or there is none.
        """
        await self._open_media_stream().say(ulaw)

    def speak_live(self, source: Callable[[int], bytes]) -> None:
        """Speak what `source` returns until the media stream ends. It is called for each frame when
        the frame is due, with the number of µ-law bytes to return, and must not block.

        Raises `CallEndedError` when there is no media stream.
        """
        self._open_media_stream().speak_live(source)

    async def press(self, digits: str) -> None:
        """Press keys (0-9, *, #, A-D), 0.2 s apart. Raises `CallEndedError` as `say` does."""
        await self._open_media_stream().press(digits)

    async def hang_up(self) -> None:
        """Hang up: `stop`, then close the socket. Returns when the call has ended; idempotent."""
        await self._exchange.leave("caller_hung_up")

    async def update(self, document: str | bytes, base_url: str) -> None:
        """Carry out this TwiML from now on, as when Twilio's REST API is told so. Its URLs must be
        absolute; `base_url` is where the server is."""
        body = document.encode() if isinstance(document, str) else document
        await self._exchange.update(read_twiml(body, "text/xml", base_url))

    async def drop(self) -> None:
        """Lose the connection abruptly: no `stop`, no close. Returns when the call has ended."""
        await self._exchange.leave("dropped")

    # Waiting. Each raises `PhoneTimeoutError` when `timeout` seconds pass first.

    async def wait_heard(self, seconds: float, timeout: float = WAIT_SECONDS) -> None:
        """Wait until the caller has heard `seconds` of the agent's audio since the call began.

        Raises `CallEndedError` when the call ends first.
        """
        log = self._log

        def due() -> float:
            at = log.heard_at(seconds)
            if at > log.clock() and self._exchange.over.is_set():
                raise CallEndedError(f"the call ended with less than {seconds:g} s heard")
            return at

        await log.wait(due, timeout, f"{seconds:g} s of audio to be heard")

    async def wait_quiet(self, seconds: float, timeout: float = WAIT_SECONDS) -> None:
        """Wait until nothing has been playing for `seconds` in a row from now, or the call ends."""
        log, since = self._log, trio.current_time()

        def due() -> float:
            return (
                -math.inf
                if self._exchange.over.is_set()
                else max(since, log.playback.runs_out_at) + seconds
            )

        await log.wait(due, timeout, f"the agent to be quiet for {seconds:g} s")

    async def wait_played(self, timeout: float = WAIT_SECONDS) -> None:
        """Wait until the playback buffer is empty, or the call ends."""
        await self.wait_quiet(0.0, timeout)

    async def wait_event(
        self,
        kind: EventKind,
        text: str | None = None,
        count: int = 1,
        timeout: float = WAIT_SECONDS,
    ) -> PhoneEvent:
        """Wait for the `count`-th event of a kind (and text) since the call began, and return it.

        Raises `CallEndedError` when the call ends without it.
        """
        log = self._log
        found: list[PhoneEvent] = []

        def due() -> float:
            found[:] = [e for e in log.events if e.kind == kind and text in (None, e.text)]
            if len(found) < count and self._exchange.over.is_set():
                raise CallEndedError(f"the call ended without {kind} {text or ''}".rstrip())
            return -math.inf if len(found) >= count else math.inf

        await log.wait(due, timeout, f"{kind} {text or ''}".rstrip())
        return found[count - 1]

    async def wait_stream_closed(self, timeout: float = WAIT_SECONDS) -> None:
        """Wait until no media stream is open."""
        await self._log.wait(
            lambda: -math.inf if self._exchange.stream is None else math.inf,
            timeout,
            "the stream to close",
        )

    async def wait_ended(self, timeout: float = WAIT_SECONDS) -> None:
        """Wait until the call has ended, including the TwiML after the stream."""
        await self._log.wait(
            lambda: -math.inf if self._exchange.over.is_set() else math.inf,
            timeout,
            "the call to end",
        )

    # Observations; available also after the call.

    @property
    def call_sid(self) -> str:
        """The call SID."""
        return self._caller.call_sid

    @property
    def stream_sid(self) -> str | None:
        """The SID of the latest media stream; None before the first."""
        return self._exchange.stream_sid

    @property
    def verbs(self) -> list[Verb]:
        """The TwiML carried out so far, in order."""
        return self._exchange.verbs

    @property
    def ending(self) -> Ending | None:
        """How the call ended; None during the call."""
        return self._exchange.ending

    @property
    def events(self) -> list[PhoneEvent]:
        """Everything that happened, in order."""
        return self._log.events

    @property
    def faults(self) -> list[Fault]:
        """The errors that Twilio's debugger would report about the server."""
        return self._log.faults

    @property
    def elapsed(self) -> float:
        """Seconds since the call was placed; its duration when it has ended."""
        return self._log.elapsed()

    @property
    def sent_audio(self) -> bytes:
        """Every byte of media sent, silence included."""
        return bytes(self._log.sent_audio)

    @property
    def received_audio(self) -> bytes:
        """Every byte of media received, in order, whether or not it was heard."""
        return bytes(self._log.received_audio)

    @property
    def queued(self) -> float:
        """Seconds of audio waiting in the playback buffer."""
        return self._log.playback.queued(self._log.clock())

    @property
    def heard_seconds(self) -> float:
        """Seconds of the agent's audio that were played."""
        return self._log.playback.heard_bytes(self._log.clock()) / RATE

    @property
    def heard(self) -> bytes:
        """What the caller heard since the call was placed, with silence in the gaps."""
        return self.heard_since(0.0)

    def heard_since(self, elapsed: float) -> bytes:
        """What the caller heard from `elapsed` seconds after placing the call until now."""
        log = self._log
        return log.playback.heard(log.clock(), log.began + elapsed)

    @property
    def heard_stretches(self) -> list[tuple[float, float]]:
        """When audio was played: start and end of each stretch, in seconds of the call."""
        log = self._log
        stretches = log.playback.stretches(log.clock())
        return [(one.start - log.began, one.end - log.began) for one in stretches]

    def check(self) -> None:
        """Raise `PhoneFault` when there were faults."""
        if self.faults:
            raise PhoneFault(self.faults)

    @property
    def _log(self) -> CallLog:
        if self._call is None:
            raise RuntimeError("no call has been placed")
        return self._call[0]

    @property
    def _exchange(self) -> Exchange:
        if self._call is None:
            raise RuntimeError("no call has been placed")
        return self._call[1]

    def _open_media_stream(self) -> SimulatedMediaStream:
        stream = self._exchange.stream
        if stream is None:
            raise CallEndedError("no media stream is open")
        return stream
