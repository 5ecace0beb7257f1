"""The Grafana dashboard: what it asks for is there, in a real Prometheus that has scraped a real
server with calls on it; and it is what Grafana takes for a dashboard.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from bridge.telemetry.metrics import Metrics
from bridge.testing.agent.server import AgentSession
from bridge.testing.speech import load_clip
from tests.world import QUIET, World, on_loopback

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "bridge.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]

# As Grafana fills them in; a rate needs two scrapes.
VARIABLES = {"$__rate_interval": "1m", "$job": ".+"}
WORDS = bytes(range(1, 201)) * 8
HEARS = msgspec.structs.replace(QUIET, hears=True)


async def conversation(agent: AgentSession) -> None:
    """A turn, an interruption, another turn, keys."""
    await agent.say("Good morning", WORDS)
    await agent.wait_for_end_of_speech()
    await agent.user_said("I would like a table")
    await agent.latency_report(ttt_text_latency=0.2, tts_latency=0.1, total_latency=0.8)
    await agent.say("For how many?", WORDS * 4)


async def a_call(world: World) -> None:
    number = world.agent.opened + 1
    async with world.call() as phone:
        session = await world.agent.wait_for_session(number)
        await phone.wait_heard(len(WORDS) / 8000)
        await phone.say(load_clip("still-there"))
        await phone.wait_heard(len(WORDS) / 8000 + 0.1)
        await session.user_started_speaking()
        await phone.wait_event("clear")
        await session.user_said("for two")
        await session.say("Booked", WORDS)
        await phone.wait_quiet(0.1)
        await phone.press("1#")
        await session.wait_for_message("InjectUserMessage")
        await session.say("Number one", WORDS)
        await phone.wait_quiet(0.1)
        await phone.hang_up()


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[str]:
    """Prometheus, scraping the target ten times a second; its address."""
    program = shutil.which("prometheus")
    assert program is not None, "Prometheus is missing: apt-get install -y prometheus"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "prometheus.yml"
    await trio.Path(config).write_text(
        "scrape_configs:\n"
        "  - job_name: bridge\n"
        "    scrape_interval: 200ms\n"
        "    scrape_timeout: 200ms\n"
        f"    static_configs: [{{targets: ['{target}']}}]\n"
    )
    process = await trio.lowlevel.open_process(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
            "--log.level=error",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", "")},
    )
    try:
        yield f"http://{address}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


class Asking:
    """Questions to Prometheus, as Grafana puts them."""

    def __init__(self, client: httpx.AsyncClient, address: str) -> None:
        self._client = client
        self._address = address

    async def values(self, expression: str) -> list[float]:
        """What a query gives now; none while Prometheus does not answer."""
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, expression
        try:
            answer = await self._client.get(
                f"{self._address}/api/v1/query", params={"query": expression}
            )
        except httpx.HTTPError:
            return []
        if answer.status_code == 503:  # it is still starting
            return []
        body = answer.json()
        assert body["status"] == "success", f"{expression}: {body}"
        found = [float(one["value"][1]) for one in body["data"]["result"]]
        return [value for value in found if not math.isnan(value)]

    async def until(self, expression: str, value: float) -> None:
        """Wait until a query gives this."""
        while await self.values(expression) != [value]:  # noqa: ASYNC110
            await trio.sleep(0.1)


async def test_every_panel_has_data_after_a_few_calls(tmp_path: Path) -> None:
    with trio.fail_after(90):
        async with on_loopback(conversation, HEARS) as world:
            target = world.base_url.removeprefix("http://")
            async with prometheus(tmp_path, target) as address, httpx.AsyncClient() as client:
                ask = Asking(client, address)
                # From before the first call: a rate is a change.
                await ask.until("bridge_calls_active", 0)
                for _ in range(2):
                    await a_call(world)
                await ask.until("sum(bridge_calls_total)", 2)
                # A scrape that has them, and one before.
                with trio.move_on_after(40):
                    while await without_data(ask):  # noqa: ASYNC110
                        await trio.sleep(0.2)
                assert await without_data(ask) == []
                (calls,) = await ask.values(of("Calls per minute"))
                assert calls > 0
                (failed,) = await ask.values(of("Failed calls"))
                assert failed == 0
                (reply,) = await ask.values(of("Reply, median"))
                assert 0 < reply < 30


async def without_data(ask: Asking) -> list[str]:
    """The panels that are empty."""
    return [title for title, expression in QUERIES if not await ask.values(expression)]


def of(title: str) -> str:
    """The first query of a panel."""
    return dict(reversed(QUERIES))[title]


def test_it_shows_every_metric_there_is() -> None:
    body, _ = Metrics().expose(None)
    names = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
    asked = " ".join(expression for _, expression in QUERIES)
    assert {name for name in names if name not in asked} == set()


def test_grafanas_own_model_takes_it_whole() -> None:
    """Nothing of ours is unknown to it, or of another type: it writes what it has read."""
    read = Dashboard.from_json(DASHBOARD)
    written = json.loads(JSONEncoder(sort_keys=True).encode(read))
    assert missing(DASHBOARD, written) == []


def missing(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where `theirs` lacks something of `ours`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            lack
            for key, value in ours.items()
            for lack in (
                missing(value, theirs[key], f"{path}.{key}")
                if key in theirs
                else [f"{path}.{key}"] * (value is not None)
            )
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            lack
            for number, pair in enumerate(zip(ours, theirs, strict=True))
            for lack in missing(*pair, f"{path}[{number}]")
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]


def test_panels_do_not_overlap_and_explain_themselves() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
