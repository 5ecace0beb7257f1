"""`GET /metrics` of a server with two worker processes: one answer, whichever of them gives it."""

from __future__ import annotations

import itertools
import os
import re
import signal
from pathlib import Path

import httpx
import trio

from tests.endtoend.servers import SERVE_2, Server, a_call_on_each, running, stopped

numbers = itertools.count()


async def scrape(it: Server) -> dict[str, float]:
    """Every series, in a connection of its own, so that any worker may answer; and with an Accept
    of its own, because a worker gives the same answer for a second."""
    accept = f"text/plain, x/{next(numbers)}"
    async with httpx.AsyncClient(headers={"Accept": accept}) as client:
        answer = await client.get(f"{it.base_url}/metrics")
    assert answer.status_code == 200
    lines = re.findall(r"^(bridge_\S+) (\S+)$", answer.text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


async def until(it: Server, name: str, value: float) -> dict[str, float]:
    while (found := await scrape(it))[name] != value:  # noqa: ASYNC110  # it is scraped, not told
        await trio.sleep(0.05)
    return found


def folder_of(pid: int) -> Path:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (folder,) = [e for e in entries if e.startswith(b"PROMETHEUS_MULTIPROC_DIR=")]
    return Path(folder.partition(b"=")[2].decode())


async def test_workers_are_one_server_to_prometheus(tmp_path: Path) -> None:
    """Also when one is killed with a call on it: the call is gone, its counts are not."""
    active, hung_up = "bridge_calls_active", 'bridge_calls_total{outcome="caller_hung_up"}'
    async with running(SERVE_2, tmp_path) as it:
        folder = folder_of(it.workers()[0])
        async with a_call_on_each(it) as (one, other):
            for silent in (one[2], other[2]):
                async with stopped(silent):
                    assert (await scrape(it))[active] == 2
            await other[0].hang_up()
            await it.logged("call ended")
            before = await scrape(it)
            assert (before[active], before[hung_up]) == (1, 1)
            os.kill(other[2], signal.SIGKILL)
            await it.logged("worker serves", 3)
            after = await scrape(it)
            assert {name for name in before if after[name] < before[name]} == set()
            async with stopped(one[2]), it.call() as (phone, _):
                assert (await scrape(it))[active] == 2
                await phone.hang_up()
                await it.logged("call ended", 2)
            assert (await until(it, hung_up, 2))[active] == 1
            # This one dies with its call.
            os.kill(one[2], signal.SIGKILL)
            assert (await until(it, active, 0))[hung_up] == 2
            await one[0].wait_ended()
        assert (await scrape(it))["bridge_call_setup_seconds_count"] == 2
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
    assert not folder.exists()
