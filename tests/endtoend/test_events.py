"""The event streams over real sockets: viewers that read, that do not, that vanish; and the end of
the server. Whatever they do, calls go on, and nothing of a viewer is left (see `scene`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import msgspec
import pytest
import trio

from bridge.config.file import FixedConfig
from bridge.http.app import create_app
from bridge.live.hub import Live
from bridge.server.serve import hypercorn_config, serve
from bridge.server.stopping import Stop
from bridge.testing.agent.server import AgentSession, SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from tests.endtoend.scene import USING, Stage, scene, until
from tests.watching import Watcher
from tests.world import AUTH_TOKEN, OPERATOR, QUIET, SECRETS

SECOND = bytes(range(1, 251)) * 32


def live_of(app: object) -> Live:
    live: Live = app.extensions["bridge"].live  # type: ignore[attr-defined]
    return live


@asynccontextmanager
async def watching(address: str, path: str = "/events") -> AsyncIterator[Watcher]:
    """Read the stream for as long as the context lasts; `over` is set when it has ended by itself,
    whole."""
    watcher = Watcher()
    watcher.over = trio.Event()  # type: ignore[attr-defined]

    async def read(task_status: trio.TaskStatus[None]) -> None:
        async with (
            httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client,
            client.stream("GET", path, headers=OPERATOR) as response,
        ):
            assert response.status_code == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            task_status.started()
            rest = b""
            async for piece in response.aiter_bytes():
                whole, end, rest = (rest + piece).rpartition(b"\n\n")
                watcher.take(whole + end)
            watcher.over.set()  # type: ignore[attr-defined]

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: read(task_status))
        yield watcher
        nursery.cancel_scope.cancel(reason="the test is done watching")


async def test_a_call_is_told_while_it_is_on() -> None:
    watched = trio.Event()

    async def script(agent: AgentSession) -> None:
        await watched.wait()
        await agent.say("Hello.", SECOND[:1600])
        await agent.user_said("Hi.")
        await agent.close()

    async with scene(script, keep_alive=0.5) as stage:
        async with watching(stage.address) as everything:
            async with stage.call() as phone:
                one = watching(stage.address, f"/calls/{phone.call_sid}/events")
                async with one as watcher:
                    await until(lambda: watcher.calls)
                    watched.set()
                    await watcher.over.wait()  # type: ignore[attr-defined]
            await until(lambda: everything.endings)
        assert watcher.endings == everything.endings
        assert watcher.names[-1] == "ended"
        assert watcher.said[-1][:2] == ("caller", "Hi.")
        (ending,) = watcher.endings.values()
        assert ending["outcome"] == "agent_failed"
        assert everything.server["max_calls"] == 100
        assert everything.server["draining"] is False


async def test_a_viewer_that_does_not_read_delays_no_call_and_no_viewer() -> None:
    """It is dropped once a write has taken too long; meanwhile others see all of the call."""

    async def chatter(agent: AgentSession) -> None:
        for number in range(100_000):
            await agent.user_said(f"{number} " + "long words " * 300)
            await trio.sleep(0.01)

    async with scene(chatter, small_buffers=True) as stage:
        line = await stage.open_line("127.0.0.1", stage.port)
        async with stage.call() as phone:
            line.stop_reading()
            await line.stream.send_all(request("/events", stage))
            live = live_of(stage.app)
            await until(lambda: len(live) == 1)
            async with watching(stage.address) as watcher:
                await until(lambda: len(live) == 2)
                # Dropped by the server's WRITE_TIMEOUT, however much there is to tell.
                with trio.fail_after(60):
                    await until(lambda: len(live) == 1)
                assert len(watcher.call["transcript"]) > 10
                assert watcher.call["outcome"] == ""
            await phone.hang_up()
        await line.stream.aclose()


@pytest.mark.parametrize("how", ["reset", "half_close", "close"])
async def test_a_viewer_that_goes_is_forgotten(how: str) -> None:
    async with scene() as stage:
        live = live_of(stage.app)
        line = await stage.open_line("127.0.0.1", stage.port)
        await line.stream.send_all(request("/events", stage))
        await line.stream.receive_some()
        async with stage.call() as phone:
            await stage.agent.wait_for_session()
            assert len(live) == 1
            if how == "close":
                await line.stream.aclose()
            else:
                getattr(line, how)()
            await until(lambda: len(live) == 0)
            await phone.hang_up()
        await trio.aclose_forcefully(line)


async def test_watching_goes_on_while_the_server_drains_and_ends_with_it() -> None:
    """The stream ends whole, by its own last chunk: the server neither waits for viewers nor cuts
    them off."""
    async with trio.open_nursery() as nursery:
        agent = SimulatedAgent(behaviour=QUIET)
        port = await nursery.start(agent.serve)
        chosen = msgspec.structs.replace(
            USING,
            deepgram=msgspec.structs.replace(
                USING.deepgram, url=f"ws://127.0.0.1:{port}/v1/agent/converse"
            ),
            server=msgspec.structs.replace(USING.server, bind="127.0.0.1:0"),
        )
        app = create_app(FixedConfig(chosen), SECRETS)
        stop, stopped = Stop(app.extensions["bridge"]), trio.Event()

        async def run(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(app, hypercorn_config(chosen), stop=stop, task_status=task_status)
            stopped.set()

        with trio.fail_after(60):
            (address,) = await nursery.start(partial(run))
            async with (
                watching(address) as everything,
                SimulatedPhone(auth_token=AUTH_TOKEN).place_call(address) as phone,
                watching(address, f"/calls/{phone.call_sid}/events") as one,
            ):
                await agent.wait_for_session()
                stop.drain("the test")
                await until(lambda: everything.server.get("draining"))
                async with watching(address) as late:  # who opens the console now
                    await until(lambda: late.calls)
                await phone.hang_up()
                await one.over.wait()  # type: ignore[attr-defined]
                assert one.endings[phone.call_sid]["outcome"] == "caller_hung_up"
                await everything.over.wait()  # type: ignore[attr-defined]
                assert everything.endings == one.endings
                await stopped.wait()
        assert len(live_of(app)) == 0
        nursery.cancel_scope.cancel(reason="the test is over")


def request(path: str, stage: Stage) -> bytes:
    token = f"Authorization: {OPERATOR['Authorization']}"
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{stage.port}\r\n{token}\r\n\r\n".encode()
