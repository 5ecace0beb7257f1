"""How soon the phone is told to be silent when the caller interrupts, on the real server.

    python -m tests.benchmarks.barge_in [--times 50] [--json]

The server is `bridge serve` in a process of its own, on a core of its own; the phone and the agent
are simulated in this one, over loopback sockets. In one call the agent says something long, over
and over, and each time says UserStartedSpeaking in the midst of it. Measured is the time from just
before the agent sends that to the phone's having read `clear`, on one clock: what the simulators
need to write and to read it is included. What the server itself has measured, from reading the one
to having written the other, is printed beside it.

Times are printed, never judged: that is for who knows the machine. Exit code 1 when something
failed, with one line that says what.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
    Event,
    PhoneFault,
    PhoneTimeoutError,
    SimulatedPhone,
    TwimlError,
    UnreachableError,
    WebhookError,
)
from tests.benchmarks.server import AUTH_TOKEN, ServerError, running

FRAME_MS: Final = 20
"""`call.frame_ms` of the server: of the caller's audio, so of no weight here."""

ANSWER: Final = "This is a long answer, and nobody has ever listened to it until its end. " * 5
"""Several times longer than anybody lets the agent speak here."""

HEARD_SECONDS: Final = 0.2
"""How much of an answer the caller hears at least before he interrupts."""

SPREAD_SECONDS: Final = 0.2
"""How much more, evenly spread: the interruption falls anywhere between two pieces of audio."""

STEP_SECONDS: Final = 15.0
"""The longest that any step may take, on the busiest machine."""

GOLDEN: Final = (math.sqrt(5) - 1) / 2

# Neither greeting nor hearing: this program alone says who speaks when.
BEHAVIOUR: Final = Behaviour(greeting="", hears=False, latency_every=0, idle_timeout=0)


class BenchmarkError(Exception):
    """The benchmark cannot go on. One line."""


@dataclass(frozen=True)
class Figures:
    """What `times` interruptions took, in ms. `server_` is the server's own measurement, of which
    it keeps only the sum.
    """

    times: int
    median_ms: float
    p99_ms: float
    max_ms: float
    server_times: int
    server_mean_ms: float


def figures(delays_ms: Sequence[float], server_sum: float, server_count: int) -> Figures:
    """Of at least one delay in ms, and the server's sum in seconds over so many."""
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
    """Make one call with so many interruptions. Raises BenchmarkError, ServerError."""
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
                raise BenchmarkError(f"the server complained: {complaints[-1][:200]}")
        nursery.cancel_scope.cancel(reason="all is measured")
    return figures(delays, total, count)


async def _call(agent: SimulatedAgent, address: str, times: int) -> list[float]:
    """Place the call and interrupt the agent so often; the delays in ms."""
    cleared: list[int] = []  # when, in ns of this process's clock

    def notice(event: Event) -> None:
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
    """Have the agent speak, and be interrupted when `pause` seconds of it have been heard.

    Returns when it was sent, in ns, once the phone has read a `clear`.
    """
    clears = sum(event.kind == "clear" for event in phone.events)
    silent = trio.Event()

    async def speak() -> None:
        await session.say(ANSWER, audio)
        silent.set()

    audio = speech_for(ANSWER)
    # In the session's nursery, and no own one here: errors would come out of it in groups.
    session.nursery.start_soon(speak)
    await phone.wait_heard(phone.heard_seconds + pause, timeout=STEP_SECONDS)
    sent = time.perf_counter_ns()
    await session.user_started_speaking()
    await phone.wait_event("clear", count=clears + 1, timeout=STEP_SECONDS)
    # Audio that was on its way comes after it, as from a real agent; then the caller's turn ends.
    with trio.fail_after(STEP_SECONDS):
        await silent.wait()
    await session.user_said("Stop.")
    return sent


async def _barge_in_metric(address: str, times: int) -> tuple[float, int]:
    """Sum in seconds and count of `bridge_barge_in_seconds`, once the call is in it."""
    values: dict[str, float] = {}
    with trio.move_on_after(STEP_SECONDS):
        async with httpx.AsyncClient(trust_env=False, timeout=STEP_SECONDS) as client:
            # The server adds a call to its figures when the call is over on its side, too.
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


async def run(options: argparse.Namespace) -> None:
    """Measure, and print it."""
    facts = machine.facts()
    server_core, own_core = machine.cores()
    facts["pinned"] = (
        f"server on core {server_core}, simulators on core {own_core}"
        if server_core is not None
        else "no: fewer than two cores, or a system that cannot pin"
    )
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    found = await measure(options.times)
    if options.json:
        document = {"machine": facts, "figures": asdict(found)}
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    print(f"\nUserStartedSpeaking to clear, {found.times} times:")
    print(f"median {found.median_ms:.2f} ms, 99th {found.p99_ms:.2f} ms, max {found.max_ms:.2f} ms")
    print(
        f"bridge_barge_in_seconds: mean {found.server_mean_ms:.2f} ms"
        f" (sum {found.server_mean_ms * found.server_times / 1000:.6f} s,"
        f" count {found.server_times})"
    )


async def _run_or_stop(options: argparse.Namespace) -> None:
    """`run`, but a signal ends it in good order: no server is left behind."""

    async def listen(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                raise BenchmarkError("stopped by a signal")

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        await run(options)
        nursery.cancel_scope.cancel(reason="all is measured")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.barge_in",
        description="Print how soon the phone is told to be silent when the caller interrupts.",
    )
    parser.add_argument("--times", type=_count, default=50, help="how many interruptions")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.parse_args()
    try:
        # The server keeps its records in a file where it is started, unless it is told otherwise.
        with tempfile.TemporaryDirectory(prefix="bridge-benchmark-") as folder:
            with contextlib.chdir(folder):
                trio.run(partial(_run_or_stop, options))
    except* (BenchmarkError, ServerError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        sys.exit(f"barge_in: {error}")


if __name__ == "__main__":
    main()
