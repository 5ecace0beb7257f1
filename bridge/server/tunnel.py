"""A public https address for a server on this machine, by cloudflared or ngrok.

For trying things out: a real phone reaches a laptop. The address is new each time, comes without a
guarantee, and is open to everybody who knows it.

https://developers.cloudflare.com/cloudflare-one/connections/connect-networks/do-more-with-tunnels/trycloudflare/
https://ngrok.com/docs/agent/
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from bridge.log import get_logger
from bridge.text import printable

log = get_logger(__name__)

# Both take a few seconds; cloudflared asks a service of its own for a name first.
ADDRESS_SECONDS: Final = 30.0

# Both end within a second of SIGTERM when nothing goes through them.
TERMINATE_SECONDS: Final = 5.0
KILL_SECONDS: Final = 2.0

# What an error shows of the tunnel's own words.
LAST_LINES: Final = 5
LINE_LIMIT: Final = 300

# Far above any line of theirs; output without a line break is cut here.
_LINE_BYTES: Final = 65_536

# Not passed on to the program.
_SECRETS: Final = frozenset(
    {
        *("DEEPGRAM_API_KEY", "TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"),
        *("TWILIO_API_KEY", "TWILIO_API_SECRET", "TWILIO_SIGNING_KEYS"),
        *("PGPASSWORD", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
        *("BRIDGE_API_TOKEN", "BRIDGE_RUN_TOKEN", "BRIDGE_WEBHOOK_SECRET"),
    }
)

# Not api.trycloudflare.com, which its error messages name.
_CLOUDFLARE: Final = re.compile(r"https://(?!api\.)[a-z0-9-]+\.trycloudflare\.com(?![\w.-])")


class TunnelError(Exception):
    """No tunnel could be opened: one line that says why and what helps."""


@dataclass(frozen=True, slots=True)
class _Program:
    name: str
    arguments: Callable[[int], list[str]]
    address: Callable[[str], str]
    install: str


def _cloudflared_address(line: str) -> str:
    found = _CLOUDFLARE.search(line)
    return found[0] if found else ""


def _ngrok_address(line: str) -> str:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(event, dict) or event.get("msg") != "started tunnel":
        return ""
    url = event.get("url")
    # Old versions open two, one of them without TLS.
    return url.rstrip("/") if isinstance(url, str) and url.startswith("https://") else ""


_PROGRAMS: Final = (
    _Program(
        "cloudflared",
        # It would restart itself under another address when there is a new version.
        lambda port: ["tunnel", "--no-autoupdate", "--url", f"http://127.0.0.1:{port}"],
        _cloudflared_address,
        "https://developers.cloudflare.com/cloudflare-one/connections/connect-networks/downloads/"
        " (needs no account)",
    ),
    _Program(
        "ngrok",
        lambda port: ["http", f"127.0.0.1:{port}", "--log", "stdout", "--log-format", "json"],
        _ngrok_address,
        "https://ngrok.com/download (needs an account)",
    ),
)


@asynccontextmanager
async def open_tunnel(
    port: int, *, deadline: float = ADDRESS_SECONDS, environ: Mapping[str, str] | None = None
) -> AsyncIterator[str]:
    """Open a tunnel to `port` of this machine for as long as the context lasts. Yields its https
    address, without a slash at the end.

    *Resource handling*: the program is terminated on every way out, and killed if it has not ended
    within `TERMINATE_SECONDS`. It runs in a session of its own, so that Ctrl-C, which drains the
    server, does not cut the calls off by ending the tunnel first. Its output is read as long as it
    runs. *Error handling*: raises TunnelError if neither program is installed, or the program ends
    without an address or prints none within `deadline` seconds. If it ends later, that is logged
    and the server goes on without a tunnel. What the body raises comes out in an exception group,
    as from a nursery. `environ` is os.environ unless given.
    """
    environ = os.environ if environ is None else environ
    program, path = _installed(environ)
    process = await trio.lowlevel.open_process(
        [path, *program.arguments(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={name: value for name, value in environ.items() if name not in _SECRETS},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        lines = _Lines(process.stdout)
        address = await _address(program, lines, deadline)
        log.info("tunnel open", program=program.name, address=address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, program, lines, name=f"tunnel: {program.name}")
            yield address
            nursery.cancel_scope.cancel(reason="the context was left")
    finally:
        await _end(process)


def _installed(environ: Mapping[str, str]) -> tuple[_Program, str]:
    for program in _PROGRAMS:
        if path := shutil.which(program.name, path=environ.get("PATH")):
            return program, path
    hints = ", or ".join(f"{program.name}: {program.install}" for program in _PROGRAMS)
    raise TunnelError(f"a tunnel needs cloudflared or ngrok; install {hints}")


async def _address(program: _Program, lines: _Lines, deadline: float) -> str:
    with trio.move_on_after(deadline):
        while (line := await lines.next()) is not None:
            if address := program.address(line):
                return address
        raise TunnelError(f"{program.name} ended without an address{lines.last_words()}")
    raise TunnelError(
        f"{program.name} gave no address within {deadline:g} seconds{lines.last_words()}"
    )


async def _watch(program: _Program, lines: _Lines) -> None:
    # Read to the end: a full pipe would block the program.
    while await lines.next() is not None:
        pass
    log.error("tunnel closed; restart for a new one", why=program.name + lines.last_words())


async def _end(process: trio.Process) -> None:
    process.terminate()
    with trio.move_on_after(TERMINATE_SECONDS, shield=True):
        await process.wait()
    if process.returncode is None:
        process.kill()
        with trio.move_on_after(KILL_SECONDS, shield=True):
            await process.wait()
    assert process.stdout is not None
    with trio.move_on_after(0, shield=True):  # closing a pipe does not wait
        await process.stdout.aclose()


class _Lines:
    """The output of a program, line by line, and its last few lines for an error."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._rest = b""
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    async def next(self) -> str | None:
        """Read the next line; None at the end."""
        while b"\n" not in self._rest[:_LINE_BYTES] and len(self._rest) < _LINE_BYTES:
            data = await self._stream.receive_some(4096)
            if not data:
                line, self._rest = self._rest, b""
                return self._keep(line) if line else None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return self._keep(line)

    def _keep(self, line: bytes) -> str:
        text = line.decode(errors="replace").strip()
        if text:
            self._last.append(printable(text[:LINE_LIMIT]))
        return text

    def last_words(self) -> str:
        """The last lines in one line, to append to an error."""
        return f": {' | '.join(self._last)}" if self._last else ", without output"
