"""Bridge beside the programs that people would use instead: the same load, in the same run.

    python -m tests.benchmarks.peers [--calls 10] [--rounds 3] [--seconds 4] [--quick]
        [--envs FOLDER] [--draw FOLDER]

| program | what it is here | what returns the audio |
|---|---|---|
| bridge | `bridge serve`, every feature on | the agent, over Deepgram's protocol |
| floor | `asyncio_relay` | the agent, over Deepgram's protocol |
| Twilio Agent Connect | its server, OpenAI Realtime | the agent, over OpenAI's protocol |
| Pipecat | websocket transport, Twilio serializer | the pipeline itself, without an agent |

Each peer is installed from PyPI into an environment of its own under `--envs`, once; one that
cannot be installed is named and left out. The programs take turns, round after round, and the
median of each program is shown. `--draw` writes delay against CPU as delay-cpu-light.svg and
delay-cpu-dark.svg. Exit code 1 when a run failed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import trio

from tests.benchmarks.chart import DARK, LIGHT, Point, chart
from tests.benchmarks.figures import LEGEND, Figures, header, row
from tests.benchmarks.measuring import BenchmarkError, Run, facts, measure, run_program
from tests.benchmarks.server import BRIDGE, FLOOR, Subject

ADAPTERS: Final = Path(__file__).parent / "adapters"
ENVIRONMENTS: Final = Path.home() / ".cache" / "bridge-peers"

WARM_UP: Final = 3.0
"""Seconds of load before the measured time: a pipeline starts with a backlog of audio."""

INSTALL_SECONDS: Final = 900.0
"""A slow registry and a busy disk; Pipecat is some 400 MB with what it depends on."""


class Peer(NamedTuple):
    """A program to compare with: its packages on PyPI and the adapter that runs it."""

    name: str
    folder: str
    packages: tuple[str, ...]
    adapter: str
    echoes: bool


PEERS: Final = (
    Peer(
        "Twilio Agent Connect",
        "twilio-agent-connect",
        ("twilio-agent-connect[server]", "websockets"),
        "twilio_agent_connect_relay.py",
        echoes=False,
    ),
    Peer(
        "Pipecat",
        "pipecat",
        ("pipecat-ai[websocket]", "uvicorn[standard]"),
        "pipecat_echo.py",
        echoes=True,
    ),
)


async def install(peer: Peer, folder: Path) -> Subject:
    """Install a peer unless it is installed already, and return how to run it.

    A file written last marks a complete environment, so that an interrupted installation is
    repeated. Raises BenchmarkError with pip's last line.
    """
    environment = folder / peer.folder
    python = environment / "bin" / "python"
    complete = environment / "complete"
    version = peer.packages[0].partition("[")[0]
    if not complete.exists():
        for command in (
            [sys.executable, "-m", "venv", str(environment)],
            [str(python), "-m", "pip", "install", "-q", *peer.packages],
        ):
            with trio.move_on_after(INSTALL_SECONDS) as scope:
                done = await trio.run_process(
                    command, capture_stdout=True, capture_stderr=True, check=False
                )
            if scope.cancelled_caught:
                raise BenchmarkError(f"{peer.name}: not installed after {INSTALL_SECONDS:g} s")
            if done.returncode:
                lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
                raise BenchmarkError(f"{peer.name}: not installed: {lines[-1][:200]}")
        complete.touch()
    found = await trio.run_process(
        [str(python), "-c", f"import importlib.metadata as m; print(m.version('{version}'))"],
        capture_stdout=True,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if found.returncode:
        raise BenchmarkError(f"{peer.name}: not installed in {environment}; remove that folder")
    return Subject(
        f"{peer.name} {found.stdout.decode().strip()}",
        (str(python), str(ADAPTERS / peer.adapter)),
        peer.echoes,
    )


def median(runs: list[Figures]) -> Figures:
    """The median of each figure that the picture shows."""
    middle = {
        name: statistics.median(getattr(run, name) for run in runs)
        for name in ("cpu_ms", "p50_ms", "p95_ms", "p99_ms")
    }
    return replace(runs[-1], **middle, notes=[])


async def peers(options: argparse.Namespace) -> int:
    """Measure everybody, print it, draw it, and return the exit code."""
    print(", ".join(f"{name} {value}" for name, value in facts().items()), flush=True)
    subjects = [BRIDGE, FLOOR]
    for peer in PEERS:
        try:
            subjects.append(await install(peer, options.envs))
        except BenchmarkError as error:
            print(f"left out: {error}", flush=True)
    failures: list[str] = []
    runs: dict[str, list[Figures]] = {subject.name: [] for subject in subjects}
    print(f"\n{header()}")
    for _ in range(options.rounds):
        for subject in subjects:
            try:
                found = await measure(
                    subject, options.calls, Run(options.seconds, WARM_UP, frame_ms=20)
                )
            except BenchmarkError as error:
                failures.append(f"{subject.name}: {error}")
                continue
            runs[subject.name].append(found)
            print(row(found), flush=True)
    rows = [median(found) for found in runs.values() if found]
    print(f"\nmedians of {options.rounds} rounds\n{header()}")
    print(*map(row, rows), sep="\n")
    print(f"\n{LEGEND}")
    if options.draw is not None and rows:
        points = [
            Point(one.server, one.cpu_ms, one.p50_ms, one.p95_ms, one.server == BRIDGE.name)
            for one in rows
        ]
        title = f"{options.calls} calls on one core, echoed by the agent"
        options.draw.mkdir(parents=True, exist_ok=True)
        for name, colours in (("light", LIGHT), ("dark", DARK)):
            path = options.draw / f"delay-cpu-{name}.svg"
            path.write_text(chart(points, title, colours))
            print(f"written: {path}")
    for failure in failures:
        print(f"peers: {failure}", file=sys.stderr)
    return 1 if failures else 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers",
        description="Compare bridge with the programs that people would use instead.",
    )
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time of each run")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s")
    parser.add_argument(
        "--envs", type=Path, default=ENVIRONMENTS, metavar="FOLDER", help="the peers' environments"
    )
    parser.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="write the picture here, as deploy/images"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
    if options.calls < 1 or options.rounds < 1 or options.seconds <= 0:
        parser.error("at least one call and one round, of more than 0 seconds")
    run_program("peers", peers, options)


if __name__ == "__main__":
    main()
