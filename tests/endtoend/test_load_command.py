"""`bridge load` against the real server: its figures are of what happened, and it can fail."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from bridge.cli import main
from bridge.config.file import FixedConfig
from bridge.http.app import create_app
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.agent.server import AgentSession, SimulatedAgent
from bridge.testing.load.summary import Summary, lines, summary
from tests.ports import free_port
from tests.world import AUTH_TOKEN, QUIET, SECRETS, settings

BRIDGE = [sys.executable, "-c", "from bridge.cli import main; main()"]


@asynccontextmanager
async def server(agent_port: int, max_calls: int = 100) -> AsyncIterator[str]:
    """The real server in this process, whose agent is to be at `agent_port`."""
    using = settings(
        deepgram={"url": f"ws://127.0.0.1:{agent_port}/v1/agent/converse"},
        server={"bind": "127.0.0.1:0", "max_calls": max_calls},
        call={"frame_ms": 60},
    )
    app = create_app(FixedConfig(using), SECRETS)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(partial(serve, app, hypercorn_config(using), shutdown=stop))
        try:
            yield addresses[0]
        finally:
            stop.set()


async def load(*arguments: str, token: str = AUTH_TOKEN) -> tuple[int, str, str]:
    """The exit code, standard output and the last line of standard error."""
    environment = {**os.environ, "TWILIO_AUTH_TOKEN": token}
    with trio.fail_after(120):
        done = await trio.run_process(
            [*BRIDGE, "load", *arguments],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment,
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()[-1]


async def test_both_ends_are_ours() -> None:
    port = free_port()
    async with server(port, max_calls=3) as url:
        code, out, _ = await load(
            *("--url", url, "--agent-port", str(port), "--calls", "5", "--seconds", "1"),
            *("--server-pid", str(os.getpid()), "--json"),
        )
    assert code == 0
    found = json.loads(out)
    assert (found["calls"], found["admitted"], found["refused"]) == (5, 3, 2)
    [(why, count)] = found["refusals"].items()
    assert "lines are busy" in why
    assert count == 2
    # A second of the measured time and two of warming up, both ways, in three calls.
    assert found["frames_sent"] >= 3 * 2 * 3 * 40
    assert found["complaint"] == ""
    kinds = ("lost", "duplicated", "reordered", "foreign")
    assert {kind: found[f"frames_{kind}"] for kind in kinds} == dict.fromkeys(kinds, 0)
    for name in ("setup", "to_agent", "to_agent_beyond", "to_phone"):
        assert 0 < found[name]["median"] <= found[name]["p99"] <= found[name]["longest"]
    # What waits for its larger frame to fill has waited longer.
    assert found["to_agent"]["median"] > found["to_agent_beyond"]["median"]
    assert found["cpu_ms_per_call_second"] > 0
    assert found["sockets_left_open"] == 0


async def hangs_up(session: AgentSession) -> None:
    if session.number == 1:
        await session.close(1000)
    await trio.sleep_forever()


async def test_a_call_that_ends_by_itself_is_a_failure() -> None:
    async with trio.open_nursery() as nursery:
        agent = SimulatedAgent(hangs_up, QUIET)
        port = await nursery.start(agent.serve)
        async with server(port) as url:
            code, out, err = await load("--url", url, "--calls", "2", "--seconds", "1")
        nursery.cancel_scope.cancel(reason="the test is over")
    assert code == 1
    assert err == "bridge: 1 of 2 calls ended before the caller hung up"
    assert "calls      2 admitted, 0 refused" in out
    assert "this command is not the agent" in out


async def test_the_token_is_another() -> None:
    async with server(free_port()) as url:
        code, _, err = await load("--url", url, "--calls", "1", token="another")
    assert code == 1
    assert "set TWILIO_AUTH_TOKEN" in err


async def test_what_is_no_bridge() -> None:
    async with server(free_port()) as url:
        code, _, err = await load("--url", url + "/wrong", "--calls", "1", "--seconds", "1")
    assert code == 1
    assert err == "bridge: the webhook answered 404"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """As `load`, in this process."""
    monkeypatch.setattr(sys, "argv", ["bridge", "load", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert isinstance(exit_.value.code, int)
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err.splitlines()[-1]


def test_a_server_that_is_not_there(monkeypatch, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = run(monkeypatch, capsys, "--url", url, "--calls", "1")
    assert code == 1
    assert err.startswith(f"bridge: cannot reach {url}")
    assert err.endswith("is `bridge serve` running?")


def test_the_agents_port_is_taken(monkeypatch, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(monkeypatch, capsys, "--agent-port", str(port))
    assert code == 1
    assert err.startswith(f"bridge: cannot listen as the agent on port {port}")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--url", "https://voice.example.com"], "--yes-this-is-my-server"),
        (["--url", "voice.example.com"], "expected an address"),
        (["--url", "http://user:pass@127.0.0.1"], "expected an address"),
        (["--seconds", "0"], "--seconds"),
        (["--frame-ms", "5"], "--frame-ms"),
        (["--server-pid", "999999999"], "no process 999999999"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, arguments, why) -> None:
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert why in err


def raw(**changed: object) -> dict[str, object]:
    """What a load of two calls returns in which all went well."""
    integrity = {"sent": 100, "lost": 0, "duplicated": 0, "reordered": 0, "foreign": 0}
    ns = [1_000_000, 2_000_000, 3_000_000]
    return {
        "seconds": 1.0,
        "server_cpu": 0.05,
        "server_core_busy": None,
        "generator_cpu": 0.01,
        "idle_kb": 1000.0,
        "loaded_kb": 1200.0,
        "uplink_beyond_ns": ns,
        "uplink_total_ns": ns,
        "downlink_total_ns": ns,
        "lateness_ns": ns,
        "integrity": {"uplink": integrity, "downlink": dict(integrity)},
        "unexpected": 0,
        "unclosed": 0,
        "admitted": 2,
        "refusals": [],
        "ended_early": 0,
        "setup_ns": ns,
        "first_audio_ns": ns,
        **changed,
    }


def test_the_figures() -> None:
    found = summary(2, raw())
    assert (found.cpu_ms_per_call_second, found.rss_kb_per_call) == (25.0, 100.0)
    assert found.to_phone is not None
    assert (found.to_phone.median, found.to_phone.longest) == (2.0, 3.0)
    assert found.frames_sent == 200
    assert found.complaint == ""


@pytest.mark.parametrize("kind", ["lost", "duplicated", "reordered", "foreign"])
def test_one_damaged_frame_is_a_failure(kind: str) -> None:
    damaged = {"sent": 100, "lost": 0, "duplicated": 0, "reordered": 0, "foreign": 0, kind: 1}
    found: Summary = summary(2, raw(integrity={"uplink": damaged, "downlink": damaged}))
    assert found.damaged == 2
    assert found.complaint.startswith("audio damaged")


def test_sockets_left_open_are_a_failure() -> None:
    assert "left open" in summary(2, raw(unclosed=1)).complaint


def test_a_generator_that_was_late_says_so() -> None:
    late = [160_000_000] * 3
    assert any(line.startswith("not clean") for line in lines(summary(2, raw(lateness_ns=late))))
