"""Debian's HAProxy with the configuration in deploy/, in front of two servers."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from tests.ports import free_port

CONFIG = Path(__file__).parents[1] / "deploy" / "haproxy.cfg"

# Interval of asking HAProxy, which tells nobody by itself.
_CHECKED = 0.05


@dataclass(frozen=True)
class HAProxy:
    """A running HAProxy: where it takes requests, and where it shows the state of its servers."""

    front: str
    statistics: str

    async def wait_state(self, server: str, state: str, backend: str = "webhooks") -> None:
        """Wait until HAProxy takes `server` (a or b) to be UP or DOWN."""
        while await self._state(backend, server) != state:  # noqa: ASYNC110  # see _CHECKED
            await trio.sleep(_CHECKED)

    async def _state(self, backend: str, server: str) -> str:
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"http://{self.statistics}/;csv", timeout=30)).text
        rows = csv.DictReader(page.removeprefix("# ").splitlines())
        (row,) = [row for row in rows if (row["pxname"], row["svname"]) == (backend, server)]
        return row["status"]


def program() -> str:
    """The path of HAProxy."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found is not None, "HAProxy is missing: apt-get install -y haproxy"
    return found


def environment(proxy: HAProxy, a: str, b: str) -> Mapping[str, str]:
    """The addresses that the configuration leaves open."""
    addresses = {"BRIDGE_FRONT": proxy.front, "BRIDGE_STATISTICS": proxy.statistics}
    return {**os.environ, **addresses, "BRIDGE_A": a, "BRIDGE_B": b}


@asynccontextmanager
async def haproxy(a: str, b: str) -> AsyncIterator[HAProxy]:
    """Run HAProxy in front of the servers at `a` and `b`."""
    proxy = HAProxy(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    process = await trio.lowlevel.open_process(
        [program(), "-db", "-f", str(CONFIG)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(proxy, a, b),
    )
    try:
        await _listening(proxy.statistics)
        yield proxy
        assert process.poll() is None, "HAProxy ended by itself"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _listening(address: str) -> None:
    host, _, port = address.partition(":")
    with trio.fail_after(60):
        while True:
            try:
                stream = await trio.open_tcp_stream(host, int(port))
            except OSError:
                await trio.sleep(_CHECKED)
            else:
                await stream.aclose()
                return
