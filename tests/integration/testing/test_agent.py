"""The simulated agent over TCP, and `bridge agent` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import trio
from trio_websocket import connect_websocket

from bridge.testing.agent.server import SimulatedAgent
from tests.unit.testing.agent_client import (
    KEY,
    PATH,
    Client,
    settings,
)


def listen(**provider: Any) -> dict[str, Any]:
    return settings(listen={"provider": {"type": "deepgram", **provider}})


async def test_over_tcp_sessions_end_with_the_server() -> None:
    agent = SimulatedAgent()
    with trio.fail_after(20):
        async with trio.open_nursery() as clients, trio.open_nursery() as server:
            port = await server.start(partial(agent.serve, port=0))
            ws = await connect_websocket(
                clients, "127.0.0.1", port, PATH, use_ssl=False, extra_headers=KEY
            )
            client = Client(ws, ws._stream)
            clients.start_soon(client.read)
            await client.send(settings())
            await client.wait_for("SettingsApplied")
            server.cancel_scope.cancel()
        assert await client.wait_gone() == 1001
        await ws.aclose()
        await trio.aclose_forcefully(ws._stream)
    assert agent.active == 0


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from bridge.cli import main; main()", "agent", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_command_says_its_address_and_ends_on_a_signal(
    number: signal.Signals, code: int
) -> None:
    with command("--port", "0") as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(4)]
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(20) == code, rest
    assert "ws://127.0.0.1:" in lines[0]
    assert lines[2] == "[deepgram]\n"
    assert lines[3].startswith('url = "ws://127.0.0.1:')
    assert "Traceback" not in rest


def test_the_command_refuses_a_bad_script_and_a_port_in_use(tmp_path) -> None:
    script = tmp_path / "bad.toml"
    script.write_text("greting = 1")
    with command("--script", str(script)) as process:
        _, said = process.communicate(timeout=20)
        assert process.returncode == 2
    assert said == f"bridge: {script}: greting: unknown key; did you mean greeting?\n"
    with command("--port", "0") as first:
        assert first.stderr is not None
        port = first.stderr.readline().partition("127.0.0.1:")[2].partition("/")[0]
        with command("--port", port) as second:
            _, said = second.communicate(timeout=20)
            assert second.returncode == 1
        first.terminate()
        first.communicate(timeout=20)
    assert said.startswith(f"bridge: cannot listen on 127.0.0.1:{port}: ")
    assert said.count("\n") == 1
