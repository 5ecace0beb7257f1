"""The server under measurement, in a process of its own: bridge, the floor, or a peer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bridge.testing.load import machine
from tests.ports import free_port

AUTH_TOKEN: Final = "benchmark-auth-token"
"""Phones sign with it, so the cost of the server's checks is measured too."""

START_SECONDS: Final = 30.0
"""Python may take this long to import a web framework on a busy machine."""

STOP_SECONDS: Final = 10.0
"""From SIGTERM to SIGKILL."""

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Subject:
    """A program that carries calls.

    `command` is followed by `--bind HOST:PORT --agent URL --frame-ms N`; an empty one is
    `bridge serve`, which reads all of that from its configuration. With `echoes`, the program
    returns the audio itself and opens no session with an agent.
    """

    name: str
    command: Sequence[str] = ()
    echoes: bool = False


BRIDGE: Final = Subject("bridge")
FLOOR: Final = Subject("floor", (sys.executable, "-m", "tests.benchmarks.asyncio_relay"))

_SERVE: Final = (sys.executable, "-c", "from bridge.cli import main; main()", "serve")


class ServerError(Exception):
    """The server did not start, or ended on its own. One line."""


@dataclass(frozen=True)
class Server:
    """A running server: `address` is HOST:PORT, `errors` the file its standard error goes to."""

    pid: int
    address: str
    errors: Path

    def complaints(self) -> list[str]:
        """Return the warnings and errors it has logged so far."""
        text = self.errors.read_text(errors="replace")
        return [line for line in text.splitlines() if line.strip()]


@asynccontextmanager
async def running(
    agent_url: str, *, frame_ms: int, core: int | None, subject: Subject = BRIDGE
) -> AsyncIterator[Server]:
    """Start a server whose agent is at `agent_url`, on `core`; stop it on leaving.

    Bridge runs with every feature that costs something during a call: records, transcripts,
    metrics, signatures and tickets. Cancelling this stops the server, too. Raises ServerError when
    it does not listen within START_SECONDS, or ends before it is stopped.
    """
    with tempfile.TemporaryDirectory(prefix="bridge-benchmark-") as directory:
        folder = Path(directory)
        address = f"{LOOPBACK}:{free_port()}"
        config = folder / "config.toml"
        config.write_text(
            f'[server]\nbind = "{address}"\nmax_calls = 400\n'
            # An agent that closes ends its call.
            f'[deepgram]\nurl = "{agent_url}"\nmax_reconnects = 0\n'
            f"[call]\nframe_ms = {frame_ms}\n"
            f'[records]\nurl = "sqlite:///{folder}/calls.db"\n'
            '[logging]\nlevel = "warning"\n'
        )
        command = list(_SERVE)
        if subject.command:
            command = [*subject.command, "--bind", address, "--agent", agent_url]
            command += ["--frame-ms", str(frame_ms)]
        errors = folder / "stderr"
        with errors.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=Path.cwd(),
                env=environment(config, AUTH_TOKEN),
            )
        server = Server(process.pid, address, errors)
        try:
            machine.pin(process.pid, core)
            await _answering(process, server)
            yield server
            if process.poll() is not None:
                raise ServerError(f"the server ended with {process.returncode}{_last(server)}")
        finally:
            await stop(process)


async def stop(process: trio.Process) -> None:
    """Terminate the process, and kill it after STOP_SECONDS. Returns when it has ended."""
    with trio.CancelScope(shield=True):  # bounded: SIGKILL ends what SIGTERM did not
        if process.poll() is None:
            process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
            return
        process.kill()
        await process.wait()


async def _answering(process: trio.Process, server: Server) -> None:
    host, _, port = server.address.partition(":")
    with trio.move_on_after(START_SECONDS):
        while process.poll() is None:
            try:
                await (await trio.open_tcp_stream(host, int(port))).aclose()
                return
            except OSError:
                await trio.sleep(0.05)
    what = "did not listen in time" if process.poll() is None else "refused to start"
    raise ServerError(f"the server {what}{_last(server)}")


def _last(server: Server) -> str:
    complaints = server.complaints()
    return f": {complaints[-1][:300]}" if complaints else ""


def environment(config: Path, auth_token: str) -> dict[str, str]:
    """Return the environment of a server: this process's tokens, proxies and switches are left out,
    so that they do not change the result."""
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "BRIDGE_CONFIG": str(config),
        "DEEPGRAM_API_KEY": "benchmark",
        "TWILIO_AUTH_TOKEN": auth_token,
        "BRIDGE_API_TOKEN": "benchmark-api-token",
    }
