"""A speech worker as its server sees it: what is left of it when it is ended."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from bridge.local_agent.worker_client import SpeechWorker, end_worker


async def test_nothing_is_left_of_a_worker_that_is_ended_by_cancellation() -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with trio.CancelScope() as scope:
        scope.cancel()
        await end_worker(SpeechWorker(process))
    assert process.returncode is not None
    assert process.stdin is not None
    assert process.stdout is not None
    with pytest.raises(trio.ClosedResourceError):
        await process.stdin.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await process.stdout.receive_some(1)
