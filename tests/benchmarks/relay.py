"""What carrying a call costs: delay, CPU and memory of the real server, at several loads.

    python -m tests.benchmarks.relay [--calls 1,25,50] [--seconds 5] [--rounds 1] [--pairs 2]

First pairs of runs with 10 calls, bridge and then `asyncio_relay`, which does the least that
carries the same calls, for a ratio of CPU time that means something on other machines. Then one
core is loaded more and more until it is full; or with the given numbers of calls.

The real server runs in one process on one core; the load generator, phones and agents both, in
another on another core. Each call is 160 bytes 50 times a second, both ways, over loopback
sockets. Each run has a fresh server; the numbers of calls take turns, round after round, so that
a minute in which the machine was busy does not fall on one of them alone.

Times are printed, never judged: that is for who knows the machine. Exit code 1 when something
failed or audio was damaged, with one line that says what.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from bridge.testing.load import machine
from tests.benchmarks.compare import fill, pairs, pairs_text
from tests.benchmarks.figures import Figures, figures, medians, table
from tests.benchmarks.load import FIRST_CALL, SET_UP_EACH, SETTLE, TEAR_DOWN, WARM_UP
from tests.benchmarks.server import Server, ServerError, running, stop

SLACK_SECONDS: Final = 30.0
"""For the load generator to start, to sort its figures and to end."""

PAIR_CALLS: Final = 10
"""As many as the known figures of other bridges are of."""

PROFILE_SLACK_SECONDS: Final = 60.0
"""For py-spy to write what it has sampled."""


class BenchmarkError(Exception):
    """The benchmark cannot go on. One line."""


async def measure(
    calls: int, seconds: float, frame_ms: int, profile: Path | None = None, *, floor: bool = False
) -> Figures:
    """Run one server, bridge or the `floor`, under one load. Raises BenchmarkError, ServerError."""
    server_core, generator_core = machine.cores()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as agents:
        agents.set_inheritable(True)
        url = f"ws://127.0.0.1:{agents.getsockname()[1]}/v1/agent/converse"
        async with running(url, frame_ms=frame_ms, core=server_core, floor=floor) as server:
            command = [
                *(sys.executable, "-m", "tests.benchmarks.load"),
                *("--calls", str(calls), "--seconds", str(seconds), "--frame-ms", str(frame_ms)),
                *("--server", server.address, "--server-pid", str(server.pid)),
                *("--agent-fd", str(agents.fileno())),
                *(("--server-core", str(server_core)) if server_core is not None else ()),
            ]
            limit = SLACK_SECONDS + SET_UP_EACH + 2 * FIRST_CALL + SETTLE + TEAR_DOWN
            limit += calls * SET_UP_EACH + WARM_UP + seconds + SETTLE + TEAR_DOWN
            result = b""
            with trio.move_on_after(limit) as scope:
                result = await _generate(command, agents, generator_core, server, profile, seconds)
            if scope.cancelled_caught:
                raise BenchmarkError(f"the load generator was not done after {limit:.0f} s")
            complaints = server.complaints()
    try:
        return figures(calls, msgspec.json.decode(result), complaints)
    except ValueError as error:
        raise BenchmarkError(str(error)) from None


async def _generate(
    command: list[str],
    agents: socket.socket,
    core: int | None,
    server: Server,
    profile: Path | None,
    seconds: float,
) -> bytes:
    """Run the load generator and return its last line."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[agents.fileno()],
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = bytearray(), bytearray()

    async def collect(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
        to_profile = profile
        async for chunk in stream:
            into += chunk
            if to_profile is not None and b"measuring\n" in into:
                nursery.start_soon(_profile, to_profile, server.pid, seconds)
                to_profile = None

    try:
        machine.pin(process.pid, core)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, process.stdout, output)
            nursery.start_soon(collect, process.stderr, errors)
            await process.wait()
    finally:
        await stop(process)
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or ["load: no word why"]
        logged = server.complaints()
        raise BenchmarkError(lines[-1] + (f"; server: {logged[-1][:200]}" if logged else ""))
    return bytes(output).rstrip().rpartition(b"\n")[2]


async def _profile(path: Path, pid: int, seconds: float) -> None:
    """Sample the server's stacks for the measured time. Raises BenchmarkError."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise BenchmarkError("--profile needs py-spy, which is not installed")
    form = "flamegraph" if path.suffix == ".svg" else "raw"
    with trio.move_on_after(seconds + PROFILE_SLACK_SECONDS) as scope:
        done = await trio.run_process(
            [
                *(spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))),
                *("--rate", "250", "--format", form, "--output", str(path)),
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    if scope.cancelled_caught or done.returncode:
        why = "no end in time" if scope.cancelled_caught else done.stderr.decode().strip()
        raise BenchmarkError(f"py-spy failed: {why.splitlines()[-1] if why else 'no word why'}")


async def run(options: argparse.Namespace) -> int:
    """Measure everything, print it, and return the exit code."""
    facts = machine.facts()
    server_core, generator_core = machine.cores()
    pinned = server_core is not None
    facts["pinned"] = (
        f"server on core {server_core}, load on core {generator_core}"
        if pinned
        else "no: fewer than two cores, or a system that cannot pin; figures include the load's"
    )
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
        print("Noisy by nature: trust ratios of runs that follow each other.\n", flush=True)

    async def bridge(calls: int) -> Figures:
        _progress(f"bridge, {calls} calls")
        return await measure(calls, options.seconds, options.frame_ms)

    async def floor(calls: int) -> Figures:
        _progress(f"asyncio, {calls} calls")
        return await measure(calls, options.seconds, options.frame_ms, floor=True)

    found = await pairs(bridge, floor, options.pairs, PAIR_CALLS)
    if found and not options.json:
        print(pairs_text(found, options.frame_ms) + "\n", flush=True)
    rounds: list[list[Figures]] = []
    full = ""
    if options.calls is None:
        runs, full = await fill(bridge, options.frame_ms)
        rounds = [[run] for run in runs]
    else:
        rounds = [[] for _ in options.calls]
        for _ in range(options.rounds):
            for runs, calls in zip(rounds, options.calls, strict=True):
                runs.append(await bridge(calls))
    rows = [medians(runs) for runs in rounds]
    if options.profile is not None:
        # A run of its own: the sampled process is stopped for every sample.
        calls = max(options.calls or [PAIR_CALLS])
        _progress(f"profile: {calls} calls")
        await measure(calls, options.seconds, options.frame_ms, options.profile)
    if options.json:
        document: dict[str, Any] = {
            "machine": facts,
            "frame_ms": options.frame_ms,
            "pairs": [
                {"bridge": asdict(pair.bridge), "floor": asdict(pair.floor), "ratio": pair.ratio}
                for pair in found
            ],
            "full": full,
            "figures": [asdict(row) for row in rows],
            "rounds": [[asdict(one) for one in runs] for runs in rounds],
        }
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        print(table(rows, options.frame_ms))
        print(full)
    damaged = sum(run.faults for run in [*rows, *(pair.bridge for pair in found)])
    if damaged:
        print(f"relay: {damaged} frames did not arrive once and in order", file=sys.stderr)
    return 1 if damaged else 0


async def _run_or_stop(options: argparse.Namespace) -> int:
    """`run`, but a signal ends it in good order: no server is left behind."""
    code = 1

    async def listen(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                raise BenchmarkError("stopped by a signal")

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        code = await run(options)
        nursery.cancel_scope.cancel(reason="all is measured")
    return code


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if any(number < 1 for number in numbers):
        raise ValueError
    return numbers


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.relay",
        description="Print what carrying calls costs: delay, CPU and memory of the real server.",
    )
    parser.add_argument(
        "--calls", type=_numbers, metavar="N,N,…", help="default: until a core is full"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each run")
    parser.add_argument("--rounds", type=int, default=1, help="how often each of --calls is run")
    parser.add_argument("--pairs", type=int, default=2, help="runs beside asyncio; 0: none")
    parser.add_argument("--frame-ms", type=int, default=60, help="call.frame_ms of the server")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="afterwards, run py-spy on the server under the greatest load; .svg: a flame graph",
    )
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("at least one round of more than no seconds")
    try:
        code = trio.run(partial(_run_or_stop, options))
    except* (BenchmarkError, ServerError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        sys.exit(f"relay: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
