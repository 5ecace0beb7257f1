"""The delay from the caller's interruption to the `clear` that silences the phone.

    python -m tests.benchmarks.barge_in [--times 50] [--json]

The server is `bridge serve` in a process of its own, on a core of its own; this process simulates
the phone and the agent over loopback sockets. In one call the agent repeats a long answer and sends
UserStartedSpeaking in the middle of each. The measured time runs from just before the agent sends
that until the phone has read `clear`, on one clock, so it includes the simulators' own reading and
writing. `bridge_barge_in_seconds`, which the server measures from reading the one to having written
the other, is printed beside it.

The figures are printed, not judged, since they depend on the machine. Exit code 1 when something
failed, with one line that says what.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import httpx
import msgspec
import trio
from prometheus_client.parser import text_string_to_metric_families

from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.agent.voice import speech_for
from bridge.testing.load import machine
from bridge.testing.phone.phone import (
    CallEndedError,
    PhoneEvent,
    PhoneFault,
    PhoneTimeoutError,
    SimulatedPhone,
    TwimlError,
    UnreachableError,
    WebhookError,
)
from tests.benchmarks.measuring import BenchmarkError, facts, run_program
from tests.benchmarks.server import AUTH_TOKEN, running

FRAME_MS: Final = 20
"""`call.frame_ms` of the server. It concerns the caller's audio only."""

ANSWER: Final = "This is a long answer, which no caller has ever heard to its end. " * 5
"""Several times longer than the agent may speak before it is interrupted."""

HEARD_SECONDS: Final = 0.2
"""The caller hears at least this much of an answer before the interruption."""

SPREAD_SECONDS: Final = 0.2
"""Up to this much more, evenly spread, so that the interruption falls anywhere between two pieces
of audio."""

STEP_SECONDS: Final = 15.0
"""Deadline of each step, generous for a busy machine."""

GOLDEN: Final = (math.sqrt(5) - 1) / 2

# Without greeting and hearing: this program decides when the agent speaks.
BEHAVIOUR: Final = Behaviour(greeting="", hears=False, latency_every=0, idle_timeout=0)


@dataclass(frozen=True)
class Figures:
    """Delays of `times` interruptions, in ms. `server_` is the server's own measurement, of which
    it keeps the sum and the count only.
    """

    times: int
    median_ms: float
    p99_ms: float
    max_ms: float
    server_times: int
    server_mean_ms: float


def figures(delays_ms: Sequence[float], server_sum: float, server_count: int) -> Figures:
    """Summarise at least one delay in ms, and the server's sum in seconds and its count."""
    ordered = sorted(delays_ms)
    return Figures(
        times=len(ordered),
        median_ms=statistics.median(ordered),
        p99_ms=ordered[math.ceil(0.99 * len(ordered)) - 1],
        max_ms=ordered[-1],
        server_times=server_count,
        server_mean_ms=1000 * server_sum / server_count,
    )


async def measure(times: int) -> Figures:
    """Make one call with `times` interruptions. Raises BenchmarkError, ServerError."""
    server_core, own_core = machine.cores()
    machine.pin(0, own_core)
    async with trio.open_nursery() as nursery:
        agent = SimulatedAgent(behaviour=BEHAVIOUR)
        port = await nursery.start(agent.serve)
        url = f"ws://127.0.0.1:{port}/v1/agent/converse"
        async with running(url, frame_ms=FRAME_MS, core=server_core) as server:
            address = f"http://{server.address}"
            delays = await _call(agent, address, times)
            total, count = await _barge_in_metric(address, times)
            if complaints := server.complaints():
                raise BenchmarkError(f"the server logged: {complaints[-1][:200]}")
        nursery.cancel_scope.cancel(reason="all is measured")
    return figures(delays, total, count)


async def _call(agent: SimulatedAgent, address: str, times: int) -> list[float]:
    """Place the call, interrupt the agent `times` times, and return the delays in ms."""
    cleared: list[int] = []  # when, in ns of this process's clock

    def notice(event: PhoneEvent) -> None:
        # Called as the phone reads it, before any task is woken.
        if event.kind == "clear":
            cleared.append(time.perf_counter_ns())

    phone = SimulatedPhone(strict=True, on_event=notice, auth_token=AUTH_TOKEN)
    delays: list[float] = []
    try:
        async with phone.place_call(address):
            with trio.fail_after(STEP_SECONDS):
                session = await agent.wait_for_session()
                await session.applied.wait()
            for number in range(times):
                pause = HEARD_SECONDS + number * GOLDEN % 1 * SPREAD_SECONDS
                sent = await _interrupt(session, phone, pause)
                if len(cleared) != number + 1:
                    raise BenchmarkError(f"{len(cleared)} clears for {number + 1} interruptions")
                delays.append((cleared[-1] - sent) / 1e6)
    except (WebhookError, TwimlError, UnreachableError, CallEndedError, PhoneTimeoutError) as error:
        raise BenchmarkError(f"the call failed: {error}") from None
    except trio.TooSlowError:
        raise BenchmarkError(f"a step took more than {STEP_SECONDS:g} s") from None
    except PhoneFault as fault:
        raise BenchmarkError(f"Twilio would report: {fault.faults[0]}") from None
    return delays


async def _interrupt(session: AgentSession, phone: SimulatedPhone, pause: float) -> int:
    """Let the agent speak, and interrupt it after the caller has heard `pause` seconds of it.

    Returns the time in ns at which UserStartedSpeaking was sent, once the phone has read `clear`.
    """
    clears = sum(event.kind == "clear" for event in phone.events)
    silent = trio.Event()

    async def speak() -> None:
        await session.say(ANSWER, audio)
        silent.set()

    audio = speech_for(ANSWER)
    # In the session's nursery: a nursery here would wrap errors in groups.
    session.nursery.start_soon(speak)
    await phone.wait_heard(phone.heard_seconds + pause, timeout=STEP_SECONDS)
    sent = time.perf_counter_ns()
    await session.user_started_speaking()
    await phone.wait_event("clear", count=clears + 1, timeout=STEP_SECONDS)
    # Audio that was in flight arrives after it, as from a real agent; then the caller's turn ends.
    with trio.fail_after(STEP_SECONDS):
        await silent.wait()
    await session.user_said("Stop.")
    return sent


async def _barge_in_metric(address: str, times: int) -> tuple[float, int]:
    """Return sum in seconds and count of `bridge_barge_in_seconds`, once they include the call."""
    values: dict[str, float] = {}
    with trio.move_on_after(STEP_SECONDS):
        async with httpx.AsyncClient(trust_env=False, timeout=STEP_SECONDS) as client:
            # The server adds a call to its metrics when the call has ended on its side, too.
            while values.get("bridge_barge_in_seconds_count", 0) < times:
                await trio.sleep(0.05)
                try:
                    answer = await client.get(f"{address}/metrics")
                except httpx.HTTPError as error:
                    raise BenchmarkError(f"GET /metrics failed: {error!r}") from None
                values = {
                    sample.name: sample.value
                    for family in text_string_to_metric_families(answer.text)
                    for sample in family.samples
                }
    count = round(values.get("bridge_barge_in_seconds_count", 0))
    if count != times:
        raise BenchmarkError(f"/metrics has {count} interruptions, not {times}")
    return values["bridge_barge_in_seconds_sum"], count


async def barge_in(options: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    described = facts()
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in described.items()), flush=True)
    # The server keeps some of its files in the working directory.
    with tempfile.TemporaryDirectory(prefix="bridge-benchmark-") as folder:
        with contextlib.chdir(folder):
            found = await measure(options.times)
    if options.json:
        document = {"machine": described, "figures": asdict(found)}
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return 0
    print(f"\nUserStartedSpeaking to clear, {found.times} times:")
    print(f"median {found.median_ms:.2f} ms, 99th {found.p99_ms:.2f} ms, max {found.max_ms:.2f} ms")
    print(
        f"bridge_barge_in_seconds: mean {found.server_mean_ms:.2f} ms"
        f" (sum {found.server_mean_ms * found.server_times / 1000:.6f} s,"
        f" count {found.server_times})"
    )
    return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.barge_in",
        description="Print the delay from an interruption to the clear that silences the phone.",
    )
    parser.add_argument("--times", type=_count, default=50, help="number of interruptions")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    run_program("barge_in", barge_in, parser.parse_args())


if __name__ == "__main__":
    main()
