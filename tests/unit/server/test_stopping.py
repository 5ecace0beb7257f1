"""The stop sequence, step by step on the virtual clock, and the signals that ask for it.

The calls here are tasks that do what is asked of them and how long that takes; real ones are
stopped in tests/endtoend/test_signals.py.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock
from trio.testing import wait_all_tasks_blocked

from bridge.call.goodbye import FAREWELL_SECONDS
from bridge.call.live_calls import LiveCalls
from bridge.config.settings import Settings
from bridge.server import stopping
from bridge.server.hypercorn.worker import adopt
from bridge.server.stopping import (
    SAME_REQUEST_SECONDS,
    SETTLE_SECONDS,
    SLACK_SECONDS,
    Stop,
    StopSignals,
    drain_at_most,
    graceful_timeout,
    stop_now_at_most,
)
from tests.world import settings

DRAIN_SECONDS = 60.0
TEARDOWN_SECONDS = 2.0
FOR_EVER = float("inf")


class FakeBridge:
    """What a `Stop` sees of a server; `asked` notes when it asked for what."""

    def __init__(self, nursery: trio.Nursery, drain_seconds: float = DRAIN_SECONDS) -> None:
        self._nursery = nursery
        self._winding_down = trio.Event()
        self._ending = trio.Event()
        self._settings = settings(
            server={"drain_seconds": drain_seconds}, call={"teardown_seconds": TEARDOWN_SECONDS}
        )
        self.calls = LiveCalls()
        self.expects_calls = False
        self.asked: list[tuple[float, str]] = []

    async def call(
        self, *, lasts: float = FOR_EVER, goodbye: float = 3.0, teardown: float = 0.5
    ) -> None:
        """Have a live call that goes on for so long, and takes so long to end when asked to."""

        async def ended() -> None:
            await self._ending.wait()
            await trio.sleep(teardown)

        async def wound_down() -> None:
            await self._winding_down.wait()
            await trio.sleep(goodbye)

        async def hung_up() -> None:
            await trio.sleep(lasts)

        async def carry() -> None:
            with self.calls.carrying(object()):  # type: ignore[arg-type]
                async with trio.open_nursery() as nursery:
                    for way in (ended, wound_down, hung_up):
                        nursery.start_soon(self._then_cancel, way, nursery.cancel_scope)

        self._nursery.start_soon(carry)
        await wait_all_tasks_blocked()

    @staticmethod
    async def _then_cancel(way: Any, scope: trio.CancelScope) -> None:
        await way()
        scope.cancel(reason="the call is over")

    def settings_now(self) -> Settings:
        return self._settings

    def begin_drain(self) -> None:
        self._note("drain")

    def wind_down(self) -> None:
        self._note("wind down")
        self._winding_down.set()

    def end_calls(self) -> None:
        self._note("end")
        self._ending.set()

    def _note(self, what: str) -> None:
        self.asked.append((trio.current_time(), what))


@pytest.fixture
async def bridge(nursery: trio.Nursery) -> FakeBridge:
    return FakeBridge(nursery)


async def seconds(stop: Stop) -> float:
    """How long the sequence takes from now on."""
    began = trio.current_time()
    await stop.run()
    return trio.current_time() - began


def what(bridge: FakeBridge) -> list[str]:
    return [words for _, words in bridge.asked]


# ---- draining -----------------------------------------------------------------------------------


async def test_nothing_happens_until_somebody_asks(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    with trio.move_on_after(100_000):
        await Stop(bridge).run()
        pytest.fail("it stopped by itself")
    assert bridge.asked == []


async def test_with_nothing_live_the_listeners_close_when_no_call_can_be_under_way(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(SETTLE_SECONDS)
    assert what(bridge) == ["drain"]


async def test_new_calls_are_refused_from_the_moment_it_is_asked(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    """Not when `run` comes to run: a webhook may be answered before."""
    Stop(bridge).drain("SIGTERM")
    assert what(bridge) == ["drain"]


async def test_it_ends_when_the_last_call_has_ended(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    await bridge.call(lasts=10)
    await bridge.call(lasts=20)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(20 + SETTLE_SECONDS)
    assert what(bridge) == ["drain"]


async def test_a_call_whose_webhook_was_answered_before_is_waited_for(
    autojump_clock: Clock, bridge: FakeBridge, nursery: trio.Nursery
) -> None:
    """Its media socket opens a moment after the SIGTERM, when no call is live."""

    async def late() -> None:
        await trio.sleep(SETTLE_SECONDS / 2)
        await bridge.call(lasts=10)

    nursery.start_soon(late)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(SETTLE_SECONDS / 2 + 10 + SETTLE_SECONDS, abs=1.0)
    assert len(bridge.calls) == 0
    assert what(bridge) == ["drain"]


async def test_a_call_that_is_expected_is_waited_for_as_long_as_it_is(
    autojump_clock: Clock, bridge: FakeBridge, nursery: trio.Nursery
) -> None:
    """Twilio took 8 s to open the media socket after the webhook's answer (B1)."""

    async def late() -> None:
        await trio.sleep(8)
        await bridge.call(lasts=10)
        bridge.expects_calls = False

    bridge.expects_calls = True
    nursery.start_soon(late)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(8 + 10 + SETTLE_SECONDS, abs=1.0)
    assert what(bridge) == ["drain"]


async def test_a_call_that_is_expected_and_never_comes_delays_the_end_by_drain_seconds_at_most(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    bridge.expects_calls = True
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(DRAIN_SECONDS + SETTLE_SECONDS)
    assert what(bridge) == ["drain"]


async def test_a_second_request_to_drain_changes_nothing(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    await bridge.call(lasts=10)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    stop.drain("hypercorn stops")
    assert await seconds(stop) == pytest.approx(10 + SETTLE_SECONDS)
    assert what(bridge) == ["drain"]


# ---- drain_seconds are over ---------------------------------------------------------------------


async def test_calls_that_go_on_are_told_goodbye(autojump_clock: Clock, bridge: FakeBridge) -> None:
    await bridge.call(goodbye=3)
    await bridge.call(goodbye=4)
    began = trio.current_time()
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(DRAIN_SECONDS + 4 + SETTLE_SECONDS)
    assert bridge.asked == [(began, "drain"), (pytest.approx(began + DRAIN_SECONDS), "wind down")]


async def test_a_goodbye_without_an_end_is_bounded(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    """A call that outlives its own deadlines is ended as at an immediate stop."""
    await bridge.call(goodbye=FOR_EVER)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    goodbyes = FAREWELL_SECONDS + TEARDOWN_SECONDS + SETTLE_SECONDS + SLACK_SECONDS
    assert await seconds(stop) == pytest.approx(DRAIN_SECONDS + goodbyes + 0.5 + SETTLE_SECONDS)
    assert what(bridge) == ["drain", "wind down", "end"]


async def test_a_call_that_never_ends_does_not_hold_the_server(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    await bridge.call(goodbye=FOR_EVER, teardown=FOR_EVER)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    with capture_logs() as logs:
        took = await seconds(stop)
    assert took + graceful_timeout(bridge.settings_now()) <= drain_at_most(bridge.settings_now())
    assert len(bridge.calls) == 1
    assert "calls have not ended; cutting them off" in [line["event"] for line in logs]


async def test_the_last_hang_up_may_be_a_moment_before_the_end_of_the_drain(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    """Nobody is left to say goodbye to; what Twilio asks next is still answered."""
    await bridge.call(lasts=DRAIN_SECONDS - 0.1)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(DRAIN_SECONDS + SETTLE_SECONDS)
    assert what(bridge) == ["drain"]


async def test_no_time_to_drain_leaves_time_for_goodbyes(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    bridge = FakeBridge(nursery, drain_seconds=0)
    await bridge.call(goodbye=3)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    assert await seconds(stop) == pytest.approx(3 + SETTLE_SECONDS)
    assert what(bridge) == ["drain", "wind down"]


# ---- immediate stop-------------------------------------------------------------------------------


async def test_an_immediate_stop_with_nothing_live_ends_at_once(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    stop = Stop(bridge)
    stop.stop_now("SIGINT")
    assert await seconds(stop) == 0
    assert what(bridge) == ["drain"]


async def test_an_immediate_stop_ends_calls_at_once_and_cleanly(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    await bridge.call(teardown=0.5)
    stop = Stop(bridge)
    stop.stop_now("SIGINT")
    assert await seconds(stop) == pytest.approx(0.5 + SETTLE_SECONDS)
    assert what(bridge) == ["drain", "end"]


@pytest.mark.parametrize(
    ("at", "calls", "steps"),
    [
        pytest.param(10, 1, ["drain", "end"], id="during the drain"),
        pytest.param(DRAIN_SECONDS + 1, 1, ["drain", "wind down", "end"], id="during the goodbyes"),
        pytest.param(0.5, 0, ["drain"], id="with nothing live"),
    ],
)
async def test_an_immediate_stop_cuts_every_wait_short(
    autojump_clock: Clock,
    bridge: FakeBridge,
    nursery: trio.Nursery,
    at: float,
    calls: int,
    steps: list[str],
) -> None:
    async def lose_patience() -> None:
        await trio.sleep(at)
        stop.stop_now("a second SIGTERM")
        stop.stop_now("SIGINT")

    for _ in range(calls):
        await bridge.call(goodbye=5, teardown=0.5)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    nursery.start_soon(lose_patience)
    assert await seconds(stop) == pytest.approx(at + calls * (0.5 + SETTLE_SECONDS))
    assert what(bridge) == steps


async def test_an_immediate_stop_is_bounded(autojump_clock: Clock, bridge: FakeBridge) -> None:
    await bridge.call(teardown=FOR_EVER)
    stop = Stop(bridge)
    stop.stop_now("SIGINT")
    took = await seconds(stop)
    assert took + graceful_timeout(bridge.settings_now()) <= stop_now_at_most(bridge.settings_now())


async def test_cancelling_it_leaves_the_calls_alone(
    autojump_clock: Clock, bridge: FakeBridge
) -> None:
    await bridge.call(lasts=50)
    stop = Stop(bridge)
    stop.drain("SIGTERM")
    with trio.move_on_after(10) as scope:
        await stop.run()
    assert scope.cancelled_caught
    assert len(bridge.calls) == 1
    assert what(bridge) == ["drain"]


async def test_each_step_is_logged_with_its_reason_and_the_calls(
    autojump_clock: Clock, bridge: FakeBridge, nursery: trio.Nursery
) -> None:
    async def lose_patience() -> None:
        await trio.sleep(DRAIN_SECONDS + 1)
        stop.stop_now("a second SIGTERM")

    await bridge.call(lasts=10)
    await bridge.call(goodbye=5)
    stop = Stop(bridge)
    with capture_logs() as logs:
        stop.drain("SIGTERM")
        nursery.start_soon(lose_patience)
        await stop.run()
    lines = [(line["event"], line.get("why"), line["calls"]) for line in logs]
    assert lines == [
        ("draining", "SIGTERM", 2),
        ("winding down", "drain_seconds are over", 1),
        ("ending calls", "a second SIGTERM", 1),
        ("closing the listeners", None, 0),
    ]


# ---- signals ------------------------------------------------------------------------------------


class Told:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def drain(self, why: str) -> None:
        self.words.append(f"drain: {why}")

    def stop_now(self, why: str) -> None:
        self.words.append(f"stop now: {why}")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The clock that signals are timed by."""
    moment = [100.0]
    monkeypatch.setattr(stopping, "monotonic", lambda: moment[0])
    previous = [signal.getsignal(number) for number in stopping.SIGNALS]
    yield moment
    for number, handler in zip(stopping.SIGNALS, previous, strict=True):
        signal.signal(number, handler)


TERM, INT = signal.SIGTERM, signal.SIGINT
DRAIN, AGAIN, STOP_NOW = "drain: SIGTERM", "stop now: a second SIGTERM", "stop now: SIGINT"


@pytest.mark.parametrize(
    ("second_stops_now", "received", "told"),
    [
        (True, [(TERM, 0)], [DRAIN]),
        (True, [(INT, 0)], [STOP_NOW]),
        (True, [(TERM, 0), (TERM, 5)], [DRAIN, AGAIN]),
        (True, [(TERM, 0), (INT, 0)], [DRAIN, STOP_NOW]),
        # What `timeout` sends: one to the process, one to its group.
        (True, [(TERM, 0), (TERM, 0.01)], [DRAIN, DRAIN]),
        (True, [(TERM, 0), (TERM, 0.01), (TERM, 3)], [DRAIN, DRAIN, AGAIN]),
        (True, [(INT, 0), (TERM, 1)], [STOP_NOW, DRAIN]),
        # A worker, which may get it from several sides.
        (False, [(TERM, 0), (TERM, 5), (TERM, 10)], [DRAIN, DRAIN, DRAIN]),
        (False, [(TERM, 0), (INT, 5)], [DRAIN, STOP_NOW]),
    ],
)
@pytest.mark.parametrize("early", [False, True])
async def test_what_signals_ask_for(
    now: list[float],
    second_stops_now: bool,
    received: Sequence[tuple[signal.Signals, float]],
    told: list[str],
    early: bool,
) -> None:
    """Also of those that came before there was anybody to tell."""
    listener = Told()
    with StopSignals(second_sigterm_stops_now=second_stops_now) as signals:
        if not early:
            signals.tell(listener)
        for number, at in received:
            now[0] = 100 + at
            signal.raise_signal(number)
        if early:
            signals.tell(listener)
        await wait_all_tasks_blocked()
        assert signals.interrupted == (INT in [number for number, _ in received])
    assert listener.words == told


async def test_a_signal_wakes_a_server_that_is_asleep(
    autojump_clock: Clock, bridge: FakeBridge, nursery: trio.Nursery
) -> None:
    async def later() -> None:
        await trio.sleep(5)
        signal.raise_signal(signal.SIGTERM)

    stop = Stop(bridge)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with StopSignals() as signals:
            signals.tell(stop)
            nursery.start_soon(later)
            assert await seconds(stop) == pytest.approx(5 + SETTLE_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_without_signals_everything_is_as_before(now: list[float]) -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with StopSignals() as signals:
        assert not signals.interrupted
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_a_sigterm_after_the_end_kills_no_process(now: list[float]) -> None:
    """The exit status says that the server ended as it was asked to, not that it was killed."""
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before
    signal.raise_signal(signal.SIGTERM)


def test_a_signal_after_trio_has_ended_is_no_error(now: list[float]) -> None:
    listener = Told()

    async def main() -> None:
        signals.tell(listener)

    with StopSignals() as signals:
        trio.run(main)
        signal.raise_signal(signal.SIGINT)
        assert signals.interrupted
    assert listener.words == []


def test_two_sigterms_are_one_request_for_less_time_than_a_person_needs_to_press_a_key() -> None:
    assert SAME_REQUEST_SECONDS <= 0.5


# ---- hypercorn's own limits ---------------------------------------------------------------------


def test_hypercorn_gets_our_settings_where_the_operator_left_its_defaults() -> None:
    config = Config()
    adopt(config, settings(call={"teardown_seconds": 4}))
    assert config.graceful_timeout == 4 + SLACK_SECONDS
    assert config.errorlog is logging.getLogger("hypercorn.error")
    assert config.alpn_protocols == ["http/1.1"]
    assert config.ssl_handshake_timeout == 10


def test_what_the_operator_chose_stays() -> None:
    """Also if it is what hypercorn's default would have been."""
    config = Config()
    config.graceful_timeout = Config.graceful_timeout
    config.errorlog = "errors.log"
    config.alpn_protocols = ["h2"]
    adopt(config, settings())
    assert config.graceful_timeout == Config.graceful_timeout
    assert config.errorlog == "errors.log"
    assert config.alpn_protocols == ["h2"]
