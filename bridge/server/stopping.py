"""Stopping the server: one sequence of bounded steps, for every way of running it.

    drain ──▶ /readyz says 503, new calls are still taken for LAME_DUCK_SECONDS ──▶ live calls go
    on, new callers hear "busy" ── after drain_seconds ──▶ each agent says goodbye ── when these
    have had their time ──▶ the calls left are ended, cleanly ──▶ the listeners close

Each step after the first ends early when no call is live or expected any more, and an immediate
stop skips to the last one. A `Stop` is the sequence; hypercorn awaits its `run` as the trigger of
its own shutdown, so that the sockets listen until the end: while calls are drained, Twilio's
webhooks get TwiML and a load balancer's probes get 503. `StopSignals` turns SIGTERM and SIGINT into
its `drain` and `stop_now`.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any, Final, Protocol

import trio

from bridge.call.goodbye import FAREWELL_SECONDS
from bridge.config.settings import Settings
from bridge.log import get_logger

log = get_logger(__name__)

# The listeners stay open so long after the last call. Twilio asks what comes after the agent
# (/call-ended) when the media socket has closed, a fraction of a second later. If the listeners are
# closed by then, the caller hears that an application error has occurred.
SETTLE_SECONDS: Final = 1.0

# Everything that ends a call has a deadline of its own. This is what a busy machine may add.
SLACK_SECONDS: Final = 1.0

# Two SIGTERMs within this time are one request. `timeout` sends one to the process and one to its
# group; a person who presses a key again takes longer.
SAME_REQUEST_SECONDS: Final = 0.5

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class LiveCalls(Protocol):
    """The live calls: `bridge.call.live_calls.LiveCalls`."""

    def __len__(self) -> int: ...

    async def wait_until_empty(self) -> None: ...


class Stoppable(Protocol):
    """The application to stop: `bridge.service.Bridge`. Only the waiting is done here."""

    @property
    def calls(self) -> LiveCalls: ...

    @property
    def expects_calls(self) -> bool: ...

    def begin_drain(self) -> None: ...

    def wind_down(self) -> None: ...

    def end_calls(self) -> None: ...

    def settings_now(self) -> Settings: ...


class Stop:
    """The end of one server process: requested by `drain` and `stop_now`, carried out by `run`."""

    def __init__(self, bridge: Stoppable) -> None:
        self._bridge = bridge
        self._draining = trio.Event()
        self._stopping_now = trio.Event()
        self._why = ""

    def drain(self, why: str) -> None:
        """Request a stop; live calls may go on for `server.drain_seconds`. Idempotent."""
        if not self._draining.is_set():
            self._why = why
            self._draining.set()
            self._bridge.begin_drain()

    def stop_now(self, why: str) -> None:
        """Request an immediate stop; live calls are still ended cleanly. Idempotent."""
        self.drain(why)
        if not self._stopping_now.is_set():
            self._why = why
            self._stopping_now.set()

    async def wait_draining(self) -> None:
        """Wait until a stop is requested."""
        await self._draining.wait()

    async def wait_stopping_now(self) -> None:
        """Wait until an immediate stop is requested."""
        await self._stopping_now.wait()

    async def run(self) -> None:
        """Wait until a stop is requested and carry it out; then the listeners may close.

        Takes `drain_at_most` seconds at most from `drain`, and `stop_now_at_most` from `stop_now`.
        Cancelling it leaves the calls alone.
        """
        await self._draining.wait()
        calls, settings = self._bridge.calls, self._bridge.settings_now()
        drain_seconds = settings.server.drain_seconds
        teardown_seconds = settings.call.teardown_seconds
        settled = False
        if not self._stopping_now.is_set():
            log.info("draining", why=self._why, calls=len(calls), seconds=drain_seconds)
            settled = await self._settled_within(drain_seconds)
        if len(calls) and not self._stopping_now.is_set():
            log.info("winding down", why="drain_seconds are over", calls=len(calls))
            self._bridge.wind_down()
            settled = await self._settled_within(_goodbyes_at_most(settings))
        if not settled:
            await self._finish(teardown_seconds)
        log.info("closing the listeners", calls=len(calls))

    async def _finish(self, teardown_seconds: float) -> None:
        """End the calls that are left: at an immediate stop, or because they did not end."""
        calls, at_once = self._bridge.calls, self._stopping_now.is_set()
        ended = len(calls)
        if ended:
            why = self._why if at_once else "the goodbyes took too long"
            log.info("ending calls", why=why, calls=ended)
            self._bridge.end_calls()
            with trio.move_on_after(teardown_seconds + SLACK_SECONDS):
                await calls.wait_until_empty()
            if len(calls):
                log.error("calls have not ended; cutting them off", calls=len(calls))
        if ended or not at_once:
            await trio.sleep(SETTLE_SECONDS)

    async def _settled(self) -> None:
        """Wait until there has been no call for SETTLE_SECONDS, and none is expected.

        A call is expected when its webhook was answered: Twilio may need seconds to open the media
        socket. One whose socket never comes is expected until its slot expires.
        """
        calls = self._bridge.calls
        while True:
            await calls.wait_until_empty()
            await trio.sleep(SETTLE_SECONDS)
            if not len(calls) and not self._bridge.expects_calls:
                return

    async def _settled_within(self, seconds: float) -> bool:
        """Whether the calls have settled within `seconds`, and before an immediate stop."""
        settled = False
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def give_up_when_stopping_now() -> None:
                    await self._stopping_now.wait()
                    nursery.cancel_scope.cancel(reason="an immediate stop was requested")

                await self._settled()
                settled = True
                nursery.cancel_scope.cancel(reason="the calls have settled")
        return settled


def stop_now_at_most(settings: Settings) -> float:
    """How many seconds after `stop_now` the process has ended, at the latest."""
    teardown_seconds = settings.call.teardown_seconds
    return teardown_seconds + SLACK_SECONDS + SETTLE_SECONDS + graceful_timeout(settings)


def drain_at_most(settings: Settings) -> float:
    """How many seconds after `drain` the process has ended, at the latest."""
    goodbyes = _goodbyes_at_most(settings)
    return settings.server.drain_seconds + goodbyes + stop_now_at_most(settings)


def _goodbyes_at_most(settings: Settings) -> float:
    return FAREWELL_SECONDS + settings.call.teardown_seconds + SETTLE_SECONDS + SLACK_SECONDS


def graceful_timeout(settings: Settings) -> float:
    """Hypercorn's own limit, which begins when the listeners close: a backstop, for by then calls
    have ended. Long enough to finish answering a webhook."""
    return settings.call.teardown_seconds + SLACK_SECONDS


class CanStop(Protocol):
    """The receiver of signals: a `Stop`, or the supervisor of several workers."""

    def drain(self, why: str) -> None: ...

    def stop_now(self, why: str) -> None: ...


class StopSignals:
    """Handles SIGTERM and SIGINT, from entering this context to the end of the process.

        with StopSignals() as signals:
            trio.run(main)  # which calls signals.tell(stop)

    SIGTERM requests draining. SIGINT requests an immediate stop, and so does a second SIGTERM that
    does not come with the first, unless `second_sigterm_stops_now` is false: a worker process may
    get SIGTERM from its parent, from systemd (which sends it to every process of a service), and
    from hypercorn's parent twice more.

    Signals that come before `tell` are kept for it. After the context both are ignored if one was
    received: another must not turn the exit status into a death by signal, or a traceback, while
    the interpreter closes.

    Only the main thread may use it.
    """

    def __init__(self, *, second_sigterm_stops_now: bool = True) -> None:
        self._second_sigterm_stops_now = second_sigterm_stops_now
        self._received: list[tuple[signal.Signals, float]] = []
        self._told = 0
        self._listener: tuple[trio.lowlevel.TrioToken, CanStop] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener = None
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._received else previous)

    @property
    def interrupted(self) -> bool:
        """Whether SIGINT was among the signals."""
        return any(number == signal.SIGINT for number, _ in self._received)

    def tell(self, stop: CanStop) -> None:
        """Pass every signal on to `stop`, including those received so far. Called in Trio."""
        self._listener = trio.lowlevel.current_trio_token(), stop
        self._pass_on()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # A signal handler: it runs between any two instructions of the main thread.
        # By the real clock: what comes before Trio runs counts, too.
        self._received.append((signal.Signals(number), monotonic()))
        if self._listener is not None:
            with suppress(trio.RunFinishedError):
                self._listener[0].run_sync_soon(self._pass_on)

    def _pass_on(self) -> None:
        while self._listener is not None and self._told < len(self._received):
            number, when = self._received[self._told]
            self._told += 1
            _, stop = self._listener
            if number == signal.SIGINT:
                stop.stop_now("SIGINT")
            elif self._second_sigterm_stops_now and self._is_second(when):
                stop.stop_now("a second SIGTERM")
            else:
                stop.drain("SIGTERM")

    def _is_second(self, when: float) -> bool:
        first = min(at for number, at in self._received if number == signal.SIGTERM)
        return when - first >= SAME_REQUEST_SECONDS
