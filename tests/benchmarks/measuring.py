"""One run: a fresh server on one core, the load generator on another, and the figures of both."""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import trio

from bridge.testing.load import machine
from bridge.testing.load.generator import SET_UP_EACH, SETTLE, TEAR_DOWN
from tests.benchmarks.figures import Figures, figures
from tests.benchmarks.load import FIRST_CALL
from tests.benchmarks.server import LOOPBACK, Server, ServerError, Subject, running, stop

SLACK_SECONDS: Final = 30.0
"""For the load generator to start, to sort its figures and to exit."""

PROFILE_SLACK_SECONDS: Final = 60.0
"""For py-spy to write its samples."""


class BenchmarkError(Exception):
    """The benchmark cannot continue. One line."""


class Run(NamedTuple):
    """The length of one run, in seconds of load, and `call.frame_ms` of the server."""

    seconds: float
    warm_up: float
    frame_ms: int


async def measure(subject: Subject, calls: int, run: Run, profile: Path | None = None) -> Figures:
    """Run a fresh server under one load.

    With `profile`, py-spy samples the server and writes this file. Cancelling stops both processes.
    Raises BenchmarkError, ServerError.
    """
    server_core, generator_core = machine.cores()
    with socket.create_server((LOOPBACK, 0), backlog=1024) as agents:
        agents.set_inheritable(True)
        url = f"ws://{LOOPBACK}:{agents.getsockname()[1]}/v1/agent/converse"
        async with running(url, frame_ms=run.frame_ms, core=server_core, subject=subject) as server:
            command = [
                *(sys.executable, "-m", "tests.benchmarks.load"),
                *("--calls", str(calls), "--seconds", str(run.seconds)),
                *("--warm-up", str(run.warm_up), "--frame-ms", str(run.frame_ms)),
                *("--server", server.address, "--server-pid", str(server.pid)),
                *(() if subject.echoes else ("--agent-fd", str(agents.fileno()))),
                *(("--server-core", str(server_core)) if server_core is not None else ()),
            ]
            limit = SLACK_SECONDS + SET_UP_EACH + 2 * FIRST_CALL + SETTLE + TEAR_DOWN
            limit += calls * SET_UP_EACH + run.warm_up + run.seconds + SETTLE + TEAR_DOWN
            result = b""
            with trio.move_on_after(limit) as scope:
                result = await _generate(
                    command, agents, generator_core, server, profile, run.seconds
                )
            if scope.cancelled_caught:
                raise BenchmarkError(f"the load generator was not done after {limit:.0f} s")
            complaints = server.complaints()
    try:
        return figures(subject.name, calls, msgspec.json.decode(result), complaints)
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
        lines = errors.decode(errors="replace").strip().splitlines() or ["load: failed silently"]
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
        why = "not finished in time" if scope.cancelled_caught else done.stderr.decode().strip()
        raise BenchmarkError(f"py-spy failed: {why.splitlines()[-1] if why else 'no message'}")


# ---- for the programs ----------------------------------------------------------------------------


def facts() -> dict[str, str]:
    """Describe the machine, and the cores that server and load generator run on."""
    server_core, generator_core = machine.cores()
    pinned = (
        f"server on core {server_core}, load on core {generator_core}"
        if server_core is not None
        else "no: fewer than two cores, or a system that cannot pin; figures include the load's"
    )
    return {**machine.facts(), "pinned": pinned}


def numbers(text: str) -> list[int]:
    """Parse an option of numbers of calls, separated by commas. Raises ValueError."""
    found = [int(part) for part in text.split(",")]
    if any(number < 1 for number in found):
        raise ValueError
    return found


def run_program(
    name: str,
    program: Callable[[argparse.Namespace], Awaitable[int]],
    options: argparse.Namespace,
) -> None:
    """Run `program` on Trio and exit with its code.

    SIGINT and SIGTERM cancel it, so that it stops its servers; a BenchmarkError or ServerError is
    one line on standard error and exit code 1.
    """

    async def watch_signals(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                raise BenchmarkError("stopped by a signal")

    async def main() -> int:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch_signals)
            code = await program(options)
            nursery.cancel_scope.cancel(reason="the program is done")
        return code

    try:
        code = trio.run(main)
    except* (BenchmarkError, ServerError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        sys.exit(f"{name}: {error}")
    sys.exit(code)
