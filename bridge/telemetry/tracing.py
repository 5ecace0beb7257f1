"""OpenTelemetry traces of calls: a span for each call, with spans for its parts.

    call
    ├─ setup ........ from Twilio's `start` to an agent that listens
    ├─ turn ......... each turn, from the end of the caller's speech until the reply was heard
    ├─ function ..... each function that the agent called
    └─ teardown ..... from the first sign of the end to the last byte

Nothing is traced during a call. When a call has ended, its story is turned into spans with the
recorded times; a thread passes them to the SDK, whose own thread exports them. So a call costs the
event loop a list of a few tuples, and nothing if tracing is off.

Tracing needs the extra `otel`. OpenTelemetry's own environment variables switch it on:
OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_TRACES_EXPORTER=otlp, or console), with OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and the others as documented.
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

No span contains spoken words or an unmasked phone number.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from bridge.call.observers import Observer
from bridge.call.parts import CallParts
from bridge.extras import install_command
from bridge.log import get_logger, mask_number
from bridge.one_thread import OneThread
from bridge.outcome import Outcome
from bridge.supervised import supervised

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = get_logger(__name__)

# Ended calls whose spans are not made yet. A span takes a fraction of a millisecond; a full
# queue means that the machine is overloaded, and the spans of further calls are dropped.
WAITING_CALLS: Final = 1000

# The time for exporting the remaining spans when the server stops; also the limit for one call's
# spans, for which the SDK needs a few milliseconds.
CLOSE_SECONDS: Final = 2.0

_FAILURES: Final = {
    Outcome.AGENT_FAILED,
    Outcome.AGENT_UNREACHABLE,
    Outcome.INTERNAL_ERROR,
    Outcome.PHONE_LOST,
    Outcome.PROTOCOL_ERROR,
}

Attributes = Mapping[str, str | int | float | bool]


class Span(NamedTuple):
    """A span to make: from `start` to `end`, in seconds since the call began."""

    name: str
    start: float
    end: float
    attributes: Attributes
    failed: bool = False


def spans_of(call: CallParts) -> list[Span]:
    """Return the spans of a call that has ended, the call's own span first."""
    report, story = call.report, call.story
    facts: dict[str, str | int | float | bool] = {
        "call.sid": report.info.call_sid,
        "call.stream_sid": report.info.stream_sid,
        "call.caller": mask_number(report.info.caller),
        "call.called": mask_number(report.info.called),
        "call.outcome": str(report.outcome),
        "call.agent": report.agent,
        "call.turns": len(story.turns),
        "call.barge_ins": story.barge_ins,
        "call.functions": len(story.functions),
        "call.reconnects": report.reconnects,
        "call.dropped_bytes": report.dropped_bytes,
        "call.teardown_seconds": report.teardown_seconds,
    }
    spans = [Span("call", 0.0, report.seconds, facts, report.outcome in _FAILURES)]
    if report.setup_seconds is not None:
        spans.append(Span("setup", 0.0, report.setup_seconds, {}))
    for number, turn in enumerate(story.turns):
        times = (
            turn.speech_ended_at,
            turn.typed_at,
            turn.confirmed_at,
            turn.first_audio_received_at,
            turn.first_audio_sent_at,
            turn.heard_at,
        )
        known = [at for at in times if at is not None]
        if not known:
            continue
        of_turn: dict[str, str | int | float | bool] = {"turn.number": number}
        # The agent's own names for its latencies; the values are numbers only.
        of_turn |= {f"turn.agent.{name}": value for name, value in turn.latencies.items()}
        if turn.reply_seconds is not None:
            of_turn["turn.reply_seconds"] = turn.reply_seconds
        if turn.typed_reply_seconds is not None:
            of_turn["turn.typed_reply_seconds"] = turn.typed_reply_seconds
        spans.append(Span("turn", min(known), max(known), of_turn))
    for one in story.functions:
        of_function = {"function.name": one.name[:100], "function.result": one.result}
        failed = one.result not in ("ok", "cancelled")
        spans.append(Span("function", one.at, one.at + one.seconds, of_function, failed))
    ending = report.seconds - report.teardown_seconds
    spans.append(Span("teardown", ending, report.seconds, {}))
    return spans


class Tracing(Observer):
    """Makes spans of calls that have ended, with the tracers of `provider`."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        self._provider = provider
        self._tracer = provider.get_tracer("bridge")
        self._error = Status(StatusCode.ERROR)
        self._in_context = set_span_in_context
        self._put, self._ended = trio.open_memory_channel[tuple[float, list[Span]]](WAITING_CALLS)
        self._thread = OneThread()
        self.lost = 0

    def ended(self, call: CallParts) -> None:
        """Trace a call that has just ended. Never waits, never raises."""
        began = time.time() - call.report.seconds
        try:
            self._put.send_nowait((began, spans_of(call)))
        except (trio.WouldBlock, trio.ClosedResourceError):
            if not self.lost:
                log.warning("tracing queue full; spans dropped")
            self.lost += 1

    async def run(self) -> None:
        """Make spans until `aclose`. If one call's spans fail, they are lost and the error is
        logged."""
        await supervised("tracing", self._make_spans)

    async def _make_spans(self) -> None:
        async for began, spans in self._ended:
            # A call taken from the channel gets its spans even if this task is cancelled: the SDK
            # only puts them into a queue.
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._thread.run(partial(self._emit, began, spans))

    async def aclose(self) -> None:
        """Accept no more calls, and export the remaining spans, within CLOSE_SECONDS. Shielded from
        cancellation."""
        self._put.close()
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            # The calls that `run` has not taken.
            for began, spans in iter(self._next, None):
                await self._thread.run(partial(self._emit, began, spans))
            await self._thread.run(self._provider.shutdown)

    def _next(self) -> Any:
        try:
            return self._ended.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    def _emit(self, began: float, spans: Sequence[Span]) -> None:
        def moment(seconds: float) -> int:
            return round((began + seconds) * 1e9)

        context = None
        root = None
        for span in spans:
            made = self._tracer.start_span(
                span.name,
                context=context,
                start_time=moment(span.start),
                attributes=dict(span.attributes),
            )
            if span.failed:
                made.set_status(self._error)
            if root is None:
                root, context = made, self._in_context(made)
            else:
                made.end(moment(span.end))
        if root is not None:
            root.end(moment(spans[0].end))


def tracing_for(environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return the Tracing that the OTEL_* variables configure.

    None if they configure none, and also if the configuration cannot be used; the log says why.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = any(
        environ.get(name, "").strip()
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or exporter == "none" or not (exporter or endpoint):
        return None
    try:
        return Tracing(_provider(exporter or "otlp"))
    except ImportError:
        log.warning(f"tracing is off: OTEL_* asks for it; {install_command('otel')}")
    except ValueError as error:
        log.warning("tracing is off", reason=str(error))
    return None


def _provider(exporter: str) -> TracerProvider:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    made: SpanExporter
    if exporter == "console":
        made = ConsoleSpanExporter()
    elif exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        made = OTLPSpanExporter()
    else:
        raise ValueError("OTEL_TRACES_EXPORTER: expected exactly one of otlp, console and none")
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which `create` reads, take precedence.
    resource = Resource({SERVICE_NAME: "bridge"}).merge(_asked_for(Resource.create()))
    # `aclose` shuts it down: a shutdown at the interpreter's exit would have no deadline.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(made))
    return provider


def _asked_for(resource: Any) -> Any:
    """Drop the placeholder name that the SDK gives to an unnamed service."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    attributes = dict(resource.attributes)
    if str(attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        del attributes[SERVICE_NAME]
    return Resource(attributes)
