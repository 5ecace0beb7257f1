"""`bridge phone` as a process: it speaks text in a voice of this machine, and Ctrl-C hangs up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import msgspec
import pytest
import trio

from bridge.local_agent import missing
from bridge.testing.agent.server import AgentSession
from tests.world import AUTH_TOKEN, QUIET, SECRETS, on_loopback

BRIDGE = [sys.executable, "-c", "from bridge.cli import main; main()"]

ENVIRONMENT = {
    **os.environ,
    "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
    "BRIDGE_API_TOKEN": SECRETS.api_token,
}

# An interpreter starts in this time on any machine, and a call of some seconds is over.
PATIENCE = 120


async def answers(session: AgentSession) -> None:
    while True:
        heard = await session.wait_for_end_of_speech()
        await session.user_said(f"{heard.seconds:.1f} s of speech")
        await session.say("I see.", b"\x10\x90" * 2000)


@pytest.mark.skipif(bool(missing(recognition=False)), reason="no voice on this machine")
async def test_texts_are_said_one_after_the_other() -> None:
    # Longer than a pause between words, and than a busy machine holds a frame back.
    hearing = msgspec.structs.replace(QUIET, hears=True, speech_end=1.0)
    async with on_loopback(answers, hearing) as world:
        with trio.fail_after(PATIENCE):
            done = await trio.run_process(
                [
                    *(*BRIDGE, "phone", "--url", world.base_url, "--wait", "0", "--json"),
                    *("--say", "A table for two, please.", "--say", "At eight o'clock."),
                ],
                capture_stdout=True,
                capture_stderr=True,
                stdin=subprocess.DEVNULL,
                env=ENVIRONMENT,
                check=False,
            )
        await world.quiet()
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout)
    roles = [line["role"] for line in result["transcript"]]
    assert roles == ["caller", "agent", "caller", "agent"]
    assert result["faults"] == []
    shown = done.stderr.decode()
    assert "agent: “I see.”" in shown
    [session] = world.agent.sessions
    # Speech, and not noise of a moment: each text takes longer than a second to say.
    assert all(turn["end"] - turn["start"] > 0.5 for turn in result["turns"][::2])
    assert session.turns


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind")
async def test_ctrl_c_hangs_up() -> None:
    """With a `stop`, as a caller does, and the summary; 130 says that it was interrupted."""
    async with on_loopback() as world:
        process = await trio.lowlevel.open_process(
            [*BRIDGE, "phone", "--url", world.base_url, "--linger", "60"],
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        shown, result = b"", b""
        with trio.fail_after(PATIENCE):
            while b"answered" not in shown:
                piece = await process.stderr.receive_some()
                assert piece, shown
                shown += piece
            os.kill(process.pid, signal.SIGINT)
            while piece := await process.stdout.receive_some():
                result += piece
            await process.wait()
        await world.quiet()
        await process.stdout.aclose()
        await process.stderr.aclose()
    assert process.returncode == 130
    assert b"caller_hung_up" in result
    assert b"errors    none" in result
