"""The server under measurement, bridge or what it is compared with, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bridge.testing.load import machine

AUTH_TOKEN: Final = "benchmark-auth-token"
"""Phones sign with it: what the checks cost is part of what is measured."""

START_SECONDS: Final = 30.0
"""For Python to start and import a web framework on a machine that is busy with other things."""

STOP_SECONDS: Final = 10.0
"""From SIGTERM on; then it is killed."""

_BRIDGE: Final = (sys.executable, "-c", "from bridge.cli import main; main()", "serve")
_FLOOR: Final = (sys.executable, "-m", "tests.benchmarks.asyncio_relay")


class ServerError(Exception):
    """The server did not start, or ended by itself. One line."""


@dataclass(frozen=True)
class Server:
    """A running server: `address` is HOST:PORT, `errors` the file its standard error goes to."""

    pid: int
    address: str
    errors: Path

    def complaints(self) -> list[str]:
        """What it has logged so far: warnings and worse."""
        text = self.errors.read_text(errors="replace")
        return [line for line in text.splitlines() if line.strip()]


@asynccontextmanager
async def running(
    agent_url: str, *, frame_ms: int, core: int | None, floor: bool = False
) -> AsyncIterator[Server]:
    """Start a server whose agent is at `agent_url`; it is stopped on leaving, whatever happens.
    With `floor`, that is `asyncio_relay` in place of bridge.

    Raises ServerError when it does not answer within START_SECONDS.
    """
    with tempfile.TemporaryDirectory(prefix="bridge-benchmark-") as directory:
        folder = Path(directory)
        address = f"127.0.0.1:{_free_port()}"
        config = folder / "config.toml"
        config.write_text(
            f'[server]\nbind = "{address}"\n'
            f'[deepgram]\nurl = "{agent_url}"\n'
            f"[call]\nframe_ms = {frame_ms}\n"
            f'[records]\nurl = "sqlite:///{folder}/calls.db"\n'
            '[logging]\nlevel = "warning"\n'
        )
        command = _BRIDGE
        if floor:
            command = (*_FLOOR, "--bind", address, "--agent", agent_url)
            command += ("--frame-ms", str(frame_ms))
        errors = folder / "stderr"
        # Only what this says is measured: no tokens, proxies or switches of whoever runs it.
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {"BRIDGE_CONFIG": str(config), "DEEPGRAM_API_KEY": "benchmark"}
        environment["TWILIO_AUTH_TOKEN"] = AUTH_TOKEN
        with errors.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=Path.cwd(),
                env=environment,
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
    """Ask the process to end, then make it. Returns when it is gone, cancelled or not."""
    with trio.CancelScope(shield=True):
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
