"""Speech from text, by a process that is gone afterwards."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import trio

from bridge import local_agent
from bridge.local_agent import worker_client
from bridge.local_agent.events import Setup
from bridge.local_agent.sound import ulaw_to_samples
from bridge.local_agent.synthesis import SynthesisError, synthesise, synthesise_all
from bridge.local_agent.worker_client import WorkerBroken, open_worker

PATIENCE = 120


async def test_text_becomes_speech() -> None:
    with trio.fail_after(PATIENCE):
        short, long = await synthesise_all(["Hello.", "A table for four, tonight at seven."])
    assert 0.3 < len(short) / 8000 < 1.5
    assert 1.2 < len(long) / 8000 < 5
    loudest = np.abs(ulaw_to_samples(long).astype(int)).max()
    assert 12_000 < loudest < 20_000


async def test_text_that_is_odd_is_harmless() -> None:
    with trio.fail_after(PATIENCE):
        for_nothing, option, endless = await synthesise_all(
            ["", "--help\0\n<break/>", "so " * 5000]
        )
    assert len(for_nothing) < 8000
    assert option
    assert len(endless) / 8000 < 200


async def test_a_voice_that_is_not_there() -> None:
    with (
        trio.fail_after(PATIENCE),
        pytest.raises(SynthesisError, match="no engine 'sam'; there are"),
    ):
        await synthesise("Hello.", voice="sam")


async def test_without_the_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_agent, "find_spec", lambda name: None)
    monkeypatch.setattr(local_agent.shutil, "which", lambda name: None)
    with pytest.raises(
        SynthesisError, match=r"numpy and espeakng-loader.*pip install -e '\.\[local\]"
    ):
        await synthesise("Hello.")
    assert "pocketsphinx" in local_agent.missing()


async def test_a_worker_is_gone_when_it_is_left() -> None:
    with trio.fail_after(PATIENCE):
        async with open_worker(Setup()) as worker:
            assert worker.alive
        assert not worker.alive


async def test_cancelling_ends_the_worker_too() -> None:
    with trio.fail_after(PATIENCE):
        with trio.CancelScope() as scope:
            async with open_worker(Setup()) as worker:
                scope.cancel()
                await trio.sleep_forever()
        assert not worker.alive


async def test_a_worker_that_crashes_is_noticed() -> None:
    with trio.fail_after(PATIENCE):
        async with open_worker(Setup()) as worker:
            worker._process.kill()
            with pytest.RaisesGroup(
                pytest.RaisesExc(WorkerBroken, match="ended"), flatten_subgroups=True
            ):
                await worker.run(lambda event: None)


async def test_a_worker_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "PING_EVERY", 0.05)
    monkeypatch.setattr(worker_client, "PONG_SECONDS", 0.2)
    with trio.fail_after(PATIENCE):
        async with open_worker(Setup()) as worker:
            worker._process.send_signal(19)  # SIGSTOP: there, but it does nothing
            with pytest.RaisesGroup(
                pytest.RaisesExc(WorkerBroken, match="hangs"), flatten_subgroups=True
            ):
                await worker.run(lambda event: None)
        assert not worker.alive


def test_nothing_heavy_is_imported_by_the_server() -> None:
    """The recogniser holds the interpreter's lock, and the voice is under GPL-3."""
    script = (
        "import sys, bridge.local_agent.synthesis, bridge.local_agent\n"
        "heavy = {'numpy', 'pocketsphinx', 'espeakng_loader'} & sys.modules.keys()\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
