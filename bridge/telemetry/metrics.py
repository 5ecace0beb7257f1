"""Counters, gauges and histograms for Prometheus. Their names are part of the interface.

Each `Metrics` has a registry of its own, so that two applications in one process, or two tests,
do not count into each other. A method is named for an event and is called once for it. No method
waits, and none looks anything up by name: every series that can exist is made at the start, at 0,
so that a rate over it is right from its first event on.

A label's value is one of a fixed set in this file or in `Outcome`, never a word from the network:
each new value is a series that Prometheus keeps for months, and a caller could create them at will.
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
LatencyPart = Literal["ttt", "tts", "total"]

# Upper bounds of the histograms' buckets, in seconds. A quantile is only as exact as the buckets
# around it, so they are close where a decision depends on the figure and wide elsewhere. The edges
# are also the limits that bridge promises, so that the share of calls within one is exact.

# From hanging up at the greeting to `call.max_minutes`, whose default is an hour.
CALL_DURATION: Final = (2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600)

# The caller hears silence for this long. Connecting over a continent and having the settings
# applied takes 0.3 to 1 s; 5 is `deepgram.connect_timeout`, 8 `deepgram.connect_budget`.
CALL_SETUP: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8)

# A peer that answers is done in milliseconds. 0.5 and 1.7 are where `call` stops waiting, first
# for the caller's last words, then for the goodbyes, of the default `call.teardown_seconds`, 2,
# which nothing may exceed.
TEARDOWN: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.7, 2, 3, 5)

# Bridge may add 2 ms in the median and 10 in the 99th percentile. A piece from Twilio is a whole
# frame by default; with a longer `call.frame_ms`, up to 250, it first waits for the frame to fill:
# the edges around 60 are for frames of 60 ms. 2 s is the longest that the queue holds.
UPLINK_DELAY: Final = (
    *(0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.062, 0.07),
    *(0.1, 0.15, 0.25, 0.5, 1, 2),
)

# No frame is filled in this direction: 2 and 10 ms are the limits, 50 ms is where a server counts
# as full.
DOWNLINK_DELAY: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)

# People answer each other after 0.2 s and take more than 1 s for a fault on the line; agents need
# 0.5 to 2. At 10, `call.stall_seconds`, bridge gives the agent up.
REPLY: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)

# One message in, one out: under a millisecond. Beyond a frame of the phone's, 20 ms, the loop is
# too busy; beyond 1 s, the phone has stopped reading.
BARGE_IN: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """The metrics of one application. All times are in seconds, of any monotonic clock.

    The methods may be called in any thread. In a process that shares a folder with others (see
    `multiprocess`), `expose` reports the sums over all of them and reads files; `reads_files` is
    true then.
    """

    def __init__(self) -> None:
        folder = share()
        self.reads_files = folder is not None
        registry = self._registry = CollectorRegistry()

        def histogram(name: str, documentation: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(name, documentation, buckets=tuple(buckets), registry=registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(name, documentation, labels, registry=registry)

        # `livesum`: the sum over several processes, without the calls of dead ones.
        self._calls_active = Gauge(
            "bridge_calls_active",
            "Live calls.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        calls = counter("bridge_calls_total", "Calls that have ended, by outcome.", "outcome")
        self._calls = {
            outcome: calls.labels(outcome.value) for outcome in Outcome if outcome.is_final
        }
        self._duration = histogram(
            "bridge_call_duration_seconds",
            "From a call's first message to its last.",
            CALL_DURATION,
        )
        self._setup = histogram(
            "bridge_call_setup_seconds",
            "From the phone's first message to SettingsApplied, when the agent listens.",
            CALL_SETUP,
        )
        self._teardown = histogram(
            "bridge_teardown_seconds",
            "From the first sign of a call's end until its sockets and tasks are gone.",
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
        self._reply = histogram(
            "bridge_reply_seconds",
            "From the end of the caller's speech, as heard in the audio, to the first audio of the "
            "reply that the phone plays.",
            REPLY,
        )
        self._typed_reply = histogram(
            "bridge_typed_reply_seconds",
            "From the last key pressed, or words written, to the first audio of the reply that the "
            "phone plays.",
            REPLY,
        )
        latency = Histogram(
            "bridge_agent_latency_seconds",
            "What Deepgram reports of its own part in each reply: the language model (ttt), the "
            "voice (tts), and from the end of the caller's speech to the first audio (total).",
            ("part",),
            buckets=REPLY,
            registry=registry,
        )
        self._latency = {part: latency.labels(part) for part in get_args(LatencyPart)}
        self._barge_in = histogram(
            "bridge_barge_in_seconds",
            "From the agent's UserStartedSpeaking to sending clear to the phone.",
            BARGE_IN,
        )
        dropped = counter(
            "bridge_audio_dropped_bytes_total",
            "Audio dropped: uplink because the agent was too slow, downlink because the caller "
            "interrupted.",
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
            "Times that the event loop was blocked for 100 ms or longer.",
        )
        self._stall_seconds = counter(
            "bridge_loop_stall_seconds_total",
            "How long the event loop was blocked, over all its stalls.",
        )

        self._shown = CollectorRegistry()
        if folder is None:
            self._shown.register(_WithoutCreated(registry))
        else:
            self._shown.register(AddedUp(folder, numbered=NUMBER in os.environ))

    # ---- calls -----------------------------------------------------------------------------

    def call_began(self) -> None:
        """A call has begun; `call_ended` must follow."""
        self._calls_active.inc()

    def call_ended(self, outcome: Outcome, seconds: float, teardown_seconds: float) -> None:
        """A call that lasted `seconds` has ended, the last `teardown_seconds` of them after the
        first sign of its end. With an outcome that is not final, `call_over` is to follow.
        """
        self._calls_active.dec()
        self.call_over(outcome)
        self._duration.observe(seconds)
        self._teardown.observe(teardown_seconds)

    def call_over(self, outcome: Outcome) -> None:
        """Count the outcome of a call, if it is final."""
        if outcome.is_final:
            self._calls[outcome].inc()

    def call_not_begun(self, outcome: Outcome) -> None:
        """A media socket has closed without becoming a call. One that was only looked at, as
        `bridge check` does, and one that the server closed itself, do not count."""
        if outcome is Outcome.PROTOCOL_ERROR:
            self._calls[outcome].inc()

    def setup(self, seconds: float) -> None:
        """The agent is ready to listen, `seconds` after the phone's first message."""
        self._setup.observe(seconds)

    def reconnected(self) -> None:
        """A call has a new agent session, in place of one that was lost."""
        self._reconnects.inc()

    # ---- conversation ----------------------------------------------------------------------

    def reply(self, seconds: float) -> None:
        """The phone played the first audio of a reply, `seconds` after the end of the caller's
        speech.
        """
        self._reply.observe(seconds)

    def typed_reply(self, seconds: float) -> None:
        """The phone played the first audio of a reply, `seconds` after the caller pressed the last
        key or wrote the words.
        """
        self._typed_reply.observe(seconds)

    def agent_latency(self, part: LatencyPart, seconds: float) -> None:
        """Deepgram has reported `seconds` for its `part` of a reply."""
        self._latency[part].observe(seconds)

    def barge_in(self, seconds: float) -> None:
        """`clear` was sent to the phone, `seconds` after the agent sent UserStartedSpeaking."""
        self._barge_in.observe(seconds)

    # ---- audio -----------------------------------------------------------------------------

    def uplink_delay(self, seconds: float) -> None:
        """Caller's audio was sent to the agent, `seconds` after its oldest byte was received."""
        self._uplink_delay.observe(seconds)

    def downlink_delay(self, seconds: float) -> None:
        """Agent's audio was sent to the phone, `seconds` after its oldest byte was received."""
        self._downlink_delay.observe(seconds)

    def audio_dropped(self, direction: Direction, nbytes: int) -> None:
        """`nbytes` bytes of µ-law were dropped on their way in `direction`."""
        self._dropped[direction].inc(nbytes)

    # ---- the process -----------------------------------------------------------------------

    def loop_stalled(self, seconds: float) -> None:
        """The event loop runs again after being blocked for `seconds`. See `server.watchdog`."""
        self._stalls.inc()
        self._stall_seconds.inc(seconds)

    # ---- GET /metrics ----------------------------------------------------------------------

    def expose(self, accept: str | None) -> tuple[bytes, str]:
        """Return all metrics, and their content type: OpenMetrics if the Accept header `accept`
        asks for it, otherwise Prometheus' text format, also for a header that cannot be parsed.
        """
        encode, content_type = choose_encoder("")
        try:
            asked, asked_type = choose_encoder(accept or "")
        except (TypeError, ValueError):
            pass  # a version that is not a number: prometheus_client does not check that
        else:
            # The version is echoed from the client's header into the response's.
            if asked_type.isascii() and asked_type.isprintable():
                encode, content_type = asked, asked_type
        return encode(self._shown), content_type


class _WithoutCreated(Collector):
    """A registry without the `_created` series. prometheus_client adds them to every counter and
    histogram, but not over several processes, and they are not part of the interface.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
