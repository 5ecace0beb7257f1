"""A real call becomes spans; and every line about a call has its SID, whoever logs it."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec
import pytest
import structlog
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bridge import log as logs
from bridge import service
from bridge.functions import Functions
from bridge.telemetry import tracing
from bridge.telemetry.tracing import Tracing, tracing_for
from bridge.testing.agent.server import AgentSession
from bridge.testing.speech import load_clip
from tests.world import QUIET, World, on_loopback, settings

WORDS = bytes(range(1, 201)) * 4
HEARS = msgspec.structs.replace(QUIET, hears=True)
CALLER, CALLED = "+15550100001", "+15550100002"


async def book_table(guests: int) -> str:
    """Book a table."""
    structlog.get_logger("guest").warning("booked", guests=guests)
    logging.getLogger("guest.library").warning("a library's line")
    await trio.to_thread.run_sync(structlog.get_logger("guest").warning, "from a thread")
    return "booked"


def look_up(name: str) -> str:
    """Look somebody up, in a thread."""
    structlog.get_logger("guest").warning("looked up")
    raise KeyError(name)


async def conversation(agent: AgentSession) -> None:
    await agent.say("Good morning", WORDS)
    await agent.wait_for_end_of_speech()
    await agent.user_said("a table for two, please")
    (booking,) = await agent.call_functions([{"name": "book_table", "arguments": {"guests": 2}}])
    await booking.settled.wait()
    (looking,) = await agent.call_functions([{"name": "look_up", "arguments": {"name": "Ada"}}])
    await looking.settled.wait()
    await agent.latency_report(total_latency=0.25)
    await agent.say("It is booked", WORDS)


async def a_call(world: World) -> str:
    world.app.extensions["bridge"].functions.loaded[""] = Functions.of(book_table, look_up)
    async with world.call() as phone:
        session = await world.agent.wait_for_session()
        await phone.wait_heard(len(WORDS) / 8000)
        await phone.say(load_clip("still-there"))
        await phone.wait_heard(2 * len(WORDS) / 8000)
        # Until the last mark has come back.
        await phone.wait_quiet(0.2)
        assert session.faults == []
        await phone.hang_up()
    return phone.call_sid


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Where the spans of a server go that starts now."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(service, "tracing_for", lambda: Tracing(provider))
    yield memory
    memory.clear()


def called(spans: tuple[ReadableSpan, ...], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def at(span: ReadableSpan) -> tuple[int, int]:
    """Its beginning and end, in ns since 1970."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


async def test_a_call_becomes_a_span_with_its_parts(exporter: InMemorySpanExporter) -> None:
    before = time.time_ns()
    with trio.fail_after(60):
        async with on_loopback(conversation, HEARS) as world:
            sid = await a_call(world)
    after = time.time_ns()
    spans = exporter.get_finished_spans()
    (call,) = called(spans, "call")
    assert call.parent is None
    assert call.attributes is not None
    assert call.attributes["call.sid"] == sid
    assert call.attributes["call.outcome"] == "caller_hung_up"
    assert call.attributes["call.turns"] == 2
    assert call.status.is_unset
    assert sorted(span.name for span in spans) == [
        *("call", "function", "function", "setup", "teardown", "turn", "turn")
    ]
    for span in spans:
        assert before <= at(call)[0] <= at(span)[0] <= at(span)[1] <= at(call)[1] <= after
        if span is not call:
            assert span.parent is not None
            assert span.parent.span_id == call.context.span_id
            assert span.context.trace_id == call.context.trace_id
    greeting, answer = sorted(called(spans, "turn"), key=at)
    assert greeting.attributes is not None
    assert answer.attributes is not None
    assert "turn.reply_seconds" not in greeting.attributes
    # Half a second until the agent knows that the caller has finished.
    assert answer.attributes["turn.reply_seconds"] > 0.4  # type: ignore[operator]
    assert "turn.typed_reply_seconds" not in answer.attributes
    assert answer.attributes["turn.agent.total_latency"] == 0.25
    booking, looking = called(spans, "function")
    assert dict(booking.attributes or {}) == {
        "function.name": "book_table",
        "function.result": "ok",
    }
    assert (looking.attributes or {})["function.result"] == "error"
    assert not looking.status.is_ok
    (setup,), (teardown,) = called(spans, "setup"), called(spans, "teardown")
    assert at(setup)[1] <= at(greeting)[0]
    assert at(teardown)[1] == at(call)[1]


async def test_no_span_tells_what_was_said_or_who_called(exporter: InMemorySpanExporter) -> None:
    with trio.fail_after(60):
        async with on_loopback(conversation, HEARS) as world:
            await a_call(world)
    told = " ".join(span.to_json() for span in exporter.get_finished_spans())
    assert "call" in told
    for word in ("morning", "please", "booked", "Ada", "guests", CALLER, CALLED, CALLER[1:]):
        assert word not in told


async def test_a_failed_call_is_a_failed_span(exporter: InMemorySpanExporter) -> None:
    async def fails(agent: AgentSession) -> None:
        await agent.error("FAILED_TO_THINK", "the model is gone")

    with trio.fail_after(60):
        async with on_loopback(fails) as world, world.call() as phone:
            await phone.wait_ended()
    (call,) = called(exporter.get_finished_spans(), "call")
    assert (call.attributes or {})["call.outcome"] == "agent_failed"
    assert not call.status.is_ok
    assert not call.status.is_unset


class Collector:
    """A tracing backend: takes OTLP over HTTP."""

    def __init__(self) -> None:
        taken = self.taken = []  # type: list[bytes]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


async def test_the_environment_switches_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real OTLP over HTTP; what the exporter has not sent yet is sent when the server stops."""
    with Collector() as backend:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.address)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        with trio.fail_after(60):
            async with on_loopback(conversation, HEARS) as world:
                await a_call(world)
    resources = [
        resource
        for body in backend.taken
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
    ]
    attributes = {one.key: one.value.string_value for one in resources[0].resource.attributes}
    assert attributes["service.name"] == "bridge"
    assert attributes["deployment.environment"] == "test"
    names = [span.name for r in resources for scope in r.scope_spans for span in scope.spans]
    assert names.count("call") == 1
    assert names.count("turn") == 2


async def test_a_backend_that_is_away_delays_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.3)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with trio.fail_after(60):
        async with on_loopback(conversation, HEARS) as world:
            await a_call(world)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_without_a_wish_there_are_none(environ: dict[str, str]) -> None:
    assert tracing_for(environ) is None


@pytest.mark.parametrize(
    ("environ", "hidden", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, False, "otlp, console and none"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True, "pip install -e '.[otel]'"),
    ],
)
def test_tracing_that_cannot_be_set_up_costs_one_line(
    environ: dict[str, str], hidden: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hidden:
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with structlog.testing.capture_logs() as lines:
        assert tracing_for(environ) is None
    (line,) = lines
    assert says in str(line)


def test_without_otel_variables_nothing_is_imported() -> None:
    program = (
        "import sys; from bridge.telemetry.tracing import tracing_for; "
        "assert tracing_for({}) is None; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


async def test_every_line_about_a_call_has_its_sid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of functions, of their threads, and of libraries that they use."""
    stream = io.StringIO()
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)
    before = structlog.get_config()
    with trio.fail_after(60):
        async with on_loopback(conversation, HEARS, settings()) as world:
            monkeypatch.undo()
            logs.configure(format="json", level="debug", stream=stream)
            try:
                sids = {await a_call(world)}
                await world.quiet()
            finally:
                structlog.configure(**before)
                logs.configure()
                structlog.configure(**before)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    # An exporter of an earlier test may still be trying.
    lines = [line for line in lines if "opentelemetry" not in line.get("logger", "")]
    events = [line["event"] for line in lines]
    ours = lines[events.index("call started") : events.index("call ended") + 1]
    for event in ("booked", "a library's line", "from a thread", "looked up", "said"):
        assert event in [line["event"] for line in ours]
    assert {line.get("call_sid", f"none: {line}") for line in ours} == sids
