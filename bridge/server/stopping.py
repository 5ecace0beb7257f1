"""How the server stops: one sequence of bounded steps, whoever runs it and whoever asks for it.

    asked to drain ──▶ live calls go on, new ones hear "busy" ── drain_seconds are over ──▶ the
    agent of each says goodbye ── they have had their time ──▶ what is left is ended, cleanly
    ──▶ the listeners close

Each step ends early when no call is live any more, and somebody in a hurry leads to the last one
at once. A `Stop` is the sequence; hypercorn awaits its `run` as the trigger of its own shutdown,
so that the sockets listen until the end: while calls are drained, Twilio's webhooks get TwiML and
a load balancer's probes get 503. `StopSignals` turns SIGTERM and SIGINT into its `drain` and
`hurry`.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any, Final, Protocol

import trio

from bridge.call.leaving import FAREWELL_SECONDS
from bridge.config.settings import Settings
from bridge.log import get_logger

log = get_logger(__name__)

# The listeners stay open so long after the last call. Twilio asks what comes after the agent
# (/call-ended) when the media socket has closed, and opens that socket when the webhook has been
# answered; both take it a fraction of a second. Where nobody listens by then, the caller hears that
# an application error has occurred.
SETTLE_SECONDS: Final = 1.0

# Everything that ends a call has a deadline of its own. This is what a busy machine may add.
SLACK_SECONDS: Final = 1.0

# Two SIGTERMs that come within this time are one wish. `timeout` sends one to the process and one
# to its group; somebody who has lost patience takes longer than that.
SAME_WISH_SECONDS: Final = 0.5

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class LiveCalls(Protocol):
    """The calls that are on: `bridge.call.live_calls.Registry`."""

    def __len__(self) -> int: ...

    async def wait_until_empty(self) -> None: ...


class Stoppable(Protocol):
    """What a server stops: `bridge.http.app.Bridge`. Only the waiting is done here."""

    @property
    def calls(self) -> LiveCalls: ...

    def begin_drain(self) -> None: ...

    def wind_down(self) -> None: ...

    def end_calls(self) -> None: ...

    def settings_now(self) -> Settings: ...


class Stop:
    """The end of one server process: asked for by `drain` and `hurry`, carried out by `run`."""

    def __init__(self, bridge: Stoppable) -> None:
        self._bridge = bridge
        self._asked = trio.Event()
        self._hurried = trio.Event()
        self._why = ""

    def drain(self, why: str) -> None:
        """Ask for the end: live calls may go on for `server.drain_seconds`. Idempotent."""
        if not self._asked.is_set():
            self._why = why
            self._asked.set()
            self._bridge.begin_drain()

    def hurry(self, why: str) -> None:
        """Ask for the end at once; live calls are still ended cleanly. Idempotent."""
        self.drain(why)
        if not self._hurried.is_set():
            self._why = why
            self._hurried.set()

    async def asked(self) -> None:
        """Wait until somebody has asked for the end."""
        await self._asked.wait()

    async def hurried(self) -> None:
        """Wait until somebody is in a hurry."""
        await self._hurried.wait()

    async def run(self) -> None:
        """Wait until the end is asked for and carry it out; then the listeners may close.

        From `drain` on this takes `drain_at_most` seconds at most, from `hurry` on
        `hurry_at_most`. Cancelling it leaves the calls alone.
        """
        await self._asked.wait()
        calls, settings = self._bridge.calls, self._bridge.settings_now()
        drain_seconds = settings.server.drain_seconds
        teardown_seconds = settings.call.teardown_seconds
        settled = False
        if not self._hurried.is_set():
            log.info("draining", why=self._why, calls=len(calls), seconds=drain_seconds)
            settled = await self._unless_hurried(self._settled, drain_seconds)
        if len(calls) and not self._hurried.is_set():
            log.info("winding down", why="drain_seconds are over", calls=len(calls))
            self._bridge.wind_down()
            goodbyes = FAREWELL_SECONDS + teardown_seconds + SETTLE_SECONDS + SLACK_SECONDS
            settled = await self._unless_hurried(self._settled, goodbyes)
        if not settled:
            await self._finish(teardown_seconds)
        log.info("closing the listeners", calls=len(calls))

    async def _finish(self, teardown_seconds: float) -> None:
        """End the calls that are left, in a hurry or because they would not end."""
        calls, hurried = self._bridge.calls, self._hurried.is_set()
        ended = len(calls)
        if ended:
            why = self._why if hurried else "the goodbyes have had their time"
            log.info("ending calls", why=why, calls=ended)
            self._bridge.end_calls()
            with trio.move_on_after(teardown_seconds + SLACK_SECONDS):
                await calls.wait_until_empty()
            if len(calls):
                log.error("calls do not end; they are cut off", calls=len(calls))
        if ended or not hurried:
            await trio.sleep(SETTLE_SECONDS)

    async def _settled(self) -> None:
        """Wait until there has been no call for SETTLE_SECONDS.

        A call may come while there is none: its webhook was answered just before.
        """
        calls = self._bridge.calls
        while True:
            await calls.wait_until_empty()
            await trio.sleep(SETTLE_SECONDS)
            if not len(calls):
                return

    async def _unless_hurried(self, wait: Callable[[], Awaitable[None]], seconds: float) -> bool:
        """Whether what is waited for came in time and before anybody was in a hurry."""
        came = False
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def heed() -> None:
                    await self._hurried.wait()
                    nursery.cancel_scope.cancel(reason="somebody is in a hurry")

                await wait()
                came = True
                nursery.cancel_scope.cancel(reason="what was waited for came")
        return came


def hurry_at_most(settings: Settings) -> float:
    """How many seconds after `hurry` the process has ended, at the latest."""
    teardown_seconds = settings.call.teardown_seconds
    return teardown_seconds + SLACK_SECONDS + SETTLE_SECONDS + graceful_timeout(settings)


def drain_at_most(settings: Settings) -> float:
    """How many seconds after `drain` the process has ended, at the latest."""
    goodbyes = FAREWELL_SECONDS + settings.call.teardown_seconds + SETTLE_SECONDS + SLACK_SECONDS
    return settings.server.drain_seconds + goodbyes + hurry_at_most(settings)


def graceful_timeout(settings: Settings) -> float:
    """Hypercorn's own limit, which begins when the listeners close: a backstop, for by then calls
    have ended. Long enough to finish answering a webhook."""
    return settings.call.teardown_seconds + SLACK_SECONDS


class CanStop(Protocol):
    """Who is told of signals: a `Stop`, or a supervisor of many."""

    def drain(self, why: str) -> None: ...

    def hurry(self, why: str) -> None: ...


class StopSignals:
    """SIGTERM and SIGINT, from entering this context to the end of the process.

        with StopSignals() as signals:
            trio.run(main)  # in which somebody says signals.tell(stop)

    SIGTERM asks to drain; SIGINT is in a hurry, and so is a second SIGTERM that does not come with
    the first. Not where `second_sigterm_hurries` is false: a worker process may get SIGTERM from
    its parent, from systemd (which sends it to every process of a service), and from hypercorn's
    parent twice more.

    Signals that come before `tell` are kept for it. After the context both are ignored if the
    process was asked to stop: one more must not turn the exit status into a death by signal, or a
    traceback, while the interpreter closes.

    Only the main thread may use it.
    """

    def __init__(self, *, second_sigterm_hurries: bool = True) -> None:
        self._second_sigterm_hurries = second_sigterm_hurries
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
        """Tell `stop` of every signal, also of those so far. Called in Trio."""
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
                stop.hurry("SIGINT")
            elif self._second_sigterm_hurries and self._is_second(when):
                stop.hurry("a second SIGTERM")
            else:
                stop.drain("SIGTERM")

    def _is_second(self, when: float) -> bool:
        first = min(at for number, at in self._received if number == signal.SIGTERM)
        return when - first >= SAME_WISH_SECONDS
