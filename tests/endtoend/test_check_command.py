"""`bridge check` as a process beside the real server: nothing is wrong, and then something is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import trio

from tests.world import AUTH_TOKEN, QUIET, SECRETS, World, on_loopback

BRIDGE = [sys.executable, "-c", "from bridge.cli import main; main()"]


async def check(world: World, folder: Path, agent_port: int, *options: str) -> tuple[int, str, str]:
    """Run it in the server's place, with the server's environment."""
    bind = world.base_url.removeprefix("http://")
    (folder / "config.toml").write_text(
        f'[server]\nbind = "{bind}"\npublic_url = "{world.base_url}"\n'
        f'[deepgram]\nurl = "ws://127.0.0.1:{agent_port}/v1/agent/converse"\n'
        '[agents.sales]\nnumbers = ["+15557654321"]\ngreeting = "Sales."\n'
    )
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    secret = {"TWILIO_AUTH_TOKEN": AUTH_TOKEN, "DEEPGRAM_API_KEY": SECRETS.deepgram_api_key}
    with trio.fail_after(120):
        done = await trio.run_process(
            [*BRIDGE, "check", "--config", str(folder / "config.toml"), *options],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=folder,
            env={**kept, **secret, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    output, errors = done.stdout.decode(), done.stderr.decode()
    for value in secret.values():
        assert value not in output + errors
    return done.returncode, output, errors


async def test_nothing_is_wrong_and_then_something_is(tmp_path: Path) -> None:
    greets = msgspec.structs.replace(QUIET, greeting=None)
    async with on_loopback(behaviour=greets) as world:
        agent_port = await _port_of(world)
        code, output, errors = await check(world, tmp_path, agent_port, "--json")
        assert code == 0, output + errors
        result = json.loads(output)
        assert result["ok"] is True
        status = {one["check"]: one["status"] for one in result["findings"]}
        assert status == {
            **dict.fromkeys(("agent", "agents.sales", "server", "public"), "ok"),
            **dict.fromkeys(("operators", "signature", "webhook", "socket", "records"), "ok"),
            **dict.fromkeys(("twilio", "clock"), "skipped"),
        }
        # The same agent, gone: nobody listens at port 1.
        code, output, errors = await check(world, tmp_path, 1)
        await world.quiet()
    assert code == 1
    assert output.startswith("WRONG  agent      nothing listens at 127.0.0.1:1")
    assert "-> start the agent (`bridge agent`)" in output.splitlines()[0]
    assert errors.startswith("bridge: 1 problem: nothing listens at 127.0.0.1:1")


async def _port_of(world: World) -> int:
    settings = await world.app.extensions["bridge"].settings()
    port = settings.deepgram.url.partition("://")[2].partition("/")[0].rpartition(":")[2]
    return int(port)
