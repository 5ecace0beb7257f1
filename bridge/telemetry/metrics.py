"""What is counted and timed, for Prometheus; the names are part of what users rely on.

Each `Metrics` has a registry of its own, so that two applications in one process, or two tests,
do not count into each other. A method is named for what happened and is called once for it. No
method waits, and none looks anything up by name: every series that can exist is made at the start,
at 0, so that a rate over it is right from its first event on.

A label's value is one of a fixed set in this file or in `Outcome`, never a word from the network:
each new value is a series that Prometheus keeps for months, and a caller could make them at will.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.outcome import Outcome
from bridge.telemetry.multiprocess import NUMBER, AddedUp, share

Direction = Literal["uplink", "downlink"]

# Upper bounds of the histograms' buckets, in seconds. A quantile is only as exact as the buckets
# around it, so they are close where a decision hangs on the figure and wide elsewhere. The edges
# are also limits that are promised, so that the share of calls within one can be read off exactly.

# From hanging up at the greeting to `call.max_minutes`, whose default is an hour.
CALL_DURATION: Final = (2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600)

# The caller hears silence meanwhile. Connecting over a continent and having the settings applied
# takes 0.3 to 1 s; 5 is `deepgram.connect_timeout`, 8 `deepgram.connect_budget`.
CALL_SETUP: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8)

# A peer that answers is done in milliseconds. 0.5 and 1.7 are where `call` stops waiting, first
# for the caller's last words, then for the goodbyes, of the default `call.teardown_seconds`, 2,
# which nothing may exceed.
TEARDOWN: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.7, 2, 3, 5)

# A piece waits for its frame to fill, 60 ms by default and 250 at most; then bridge may add 2 ms
# in the median and 10 in the 99th percentile, hence the edges right after 60. 2 s is the longest
# that the queue holds.
UPLINK_DELAY: Final = (
    *(0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.062, 0.07),
    *(0.1, 0.15, 0.25, 0.5, 1, 2),
)

# Nothing is waited for here: 2 and 10 ms are the limits, 50 ms is where a server counts as full.
DOWNLINK_DELAY: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)

# People answer each other after 0.2 s and take more than 1 s for a fault on the line; agents need
# 0.5 to 2. At 10, `call.stall_seconds`, the agent is given up.
TURN_LATENCY: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)

# One message in, one out: under a millisecond. Beyond a frame of the phone's, 20 ms, the loop is
# too busy; beyond 1 s, the phone has stopped reading.
BARGE_IN: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """The metrics of one application. All times are in seconds, of any monotonic clock.

    The methods may be called in any thread. In a process that shares a folder with others (see
    `metrics_folder`), `expose` tells of them all, and reads files: `reads_files` says so.
    """

    def __init__(self) -> None:
        folder = share()
        self.reads_files = folder is not None
        registry = self._registry = CollectorRegistry()

        def histogram(name: str, documentation: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(name, documentation, buckets=tuple(buckets), registry=registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(name, documentation, labels, registry=registry)

        # `livesum`: over several processes the sum, without what a dead one was carrying.
        self._calls_active = Gauge(
            "bridge_calls_active",
            "Calls that are being carried now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        calls = counter("bridge_calls_total", "Calls that have ended, by how.", "outcome")
        self._calls = {outcome: calls.labels(outcome.value) for outcome in Outcome}
        self._duration = histogram(
            "bridge_call_duration_seconds",
            "From a call's first message to its last.",
            CALL_DURATION,
        )
        self._setup = histogram(
            "bridge_call_setup_seconds",
            "From the phone's first message to an agent that is ready to listen.",
            CALL_SETUP,
        )
        self._teardown = histogram(
            "bridge_teardown_seconds",
            "From the first sign of a call's end until nothing is left of it.",
            TEARDOWN,
        )
        self._uplink_delay = histogram(
            "bridge_uplink_delay_seconds",
            "From receiving the caller's audio to sending it to the agent, framing included.",
            UPLINK_DELAY,
        )
        self._downlink_delay = histogram(
            "bridge_downlink_delay_seconds",
            "From receiving the agent's audio to sending it to the phone.",
            DOWNLINK_DELAY,
        )
        self._turn_latency = histogram(
            "bridge_turn_latency_seconds",
            "From the end of the caller's speech to sending the first audio of the agent's reply.",
            TURN_LATENCY,
        )
        self._barge_in = histogram(
            "bridge_barge_in_seconds",
            "From hearing that the caller interrupts to telling the phone to be silent.",
            BARGE_IN,
        )
        dropped = counter(
            "bridge_audio_dropped_bytes_total",
            "Audio thrown away: up because the agent was too slow, down because the caller cut in.",
            "direction",
        )
        self._dropped: dict[Direction, Counter] = {
            direction: dropped.labels(direction) for direction in get_args(Direction)
        }
        self._reconnects = counter(
            "bridge_agent_reconnects_total",
            "Agent sessions opened anew in the middle of a call.",
        )
        self._stalls = counter(
            "bridge_loop_stalls_total",
            "Times that the event loop did not run for 100 ms or longer.",
        )
        self._stall_seconds = counter(
            "bridge_loop_stall_seconds_total",
            "How long the event loop did not run, over all its stalls.",
        )

        self._shown = CollectorRegistry()
        if folder is None:
            self._shown.register(_WithoutCreated(registry))
        else:
            self._shown.register(AddedUp(folder, numbered=NUMBER in os.environ))

    # ---- calls -----------------------------------------------------------------------------

    def call_began(self) -> None:
        """A call is being carried; `call_ended` must follow."""
        self._calls_active.inc()

    def call_ended(self, outcome: Outcome, seconds: float, teardown_seconds: float) -> None:
        """Nothing is left of a call that lasted `seconds`, the last `teardown_seconds` of them
        after the first sign of its end.
        """
        self._calls_active.dec()
        self._calls[outcome].inc()
        self._duration.observe(seconds)
        self._teardown.observe(teardown_seconds)

    def call_never_began(self) -> None:
        """A socket that was opened is closed again, and never said `start`: that was no call."""
        self._calls_active.dec()

    def setup(self, seconds: float) -> None:
        """The agent is ready to listen, `seconds` after the phone's first message."""
        self._setup.observe(seconds)

    def reconnected(self) -> None:
        """A call that lost its agent session has a new one."""
        self._reconnects.inc()

    # ---- conversation ----------------------------------------------------------------------

    def turn_latency(self, seconds: float) -> None:
        """The first audio of a reply was sent, `seconds` after the caller stopped speaking."""
        self._turn_latency.observe(seconds)

    def barge_in(self, seconds: float) -> None:
        """The phone was told `clear`, `seconds` after the agent said the caller is speaking."""
        self._barge_in.observe(seconds)

    # ---- audio -----------------------------------------------------------------------------

    def uplink_delay(self, seconds: float) -> None:
        """Caller's audio was sent to the agent, `seconds` after its oldest byte came."""
        self._uplink_delay.observe(seconds)

    def downlink_delay(self, seconds: float) -> None:
        """Agent's audio was sent to the phone, `seconds` after its oldest byte came."""
        self._downlink_delay.observe(seconds)

    def audio_dropped(self, direction: Direction, nbytes: int) -> None:
        """So many bytes on their way in `direction` were thrown away."""
        self._dropped[direction].inc(nbytes)

    # ---- the process -----------------------------------------------------------------------

    def loop_stalled(self, seconds: float) -> None:
        """The event loop runs again, after it did not for `seconds`. See `server.watchdog`."""
        self._stalls.inc()
        self._stall_seconds.inc(seconds)

    # ---- GET /metrics ----------------------------------------------------------------------

    def expose(self, accept: str | None) -> tuple[bytes, str]:
        """All metrics and the content type they are in: OpenMetrics if the Accept header `accept`
        asks for it, otherwise Prometheus' text format, also for a header that makes no sense.
        """
        encode, content_type = choose_encoder("")
        try:
            asked, asked_type = choose_encoder(accept or "")
        except (TypeError, ValueError):
            pass  # a version that is no number: prometheus_client compares it as it is
        else:
            # The version is the client's own words, returned in a header of ours.
            if asked_type.isascii() and asked_type.isprintable():
                encode, content_type = asked, asked_type
        return encode(self._shown), content_type


class _WithoutCreated(Collector):
    """What a registry has, without the `_created` series that prometheus_client adds to every
    counter and histogram, and leaves out over several processes: no part of what users rely on.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
