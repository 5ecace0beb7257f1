"""The pool of speech workers: one per session, and a loaded spare for the next.

Loading takes seconds, so a spare is kept ready. There are as many workers as cores, because each
can keep one core busy.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from bridge.local_agent.events import Setup
from bridge.local_agent.worker_client import SpeechWorker, WorkerBroken, end_worker, start_worker

# The usual causes (low memory, a package being replaced) take a while to pass.
RETRY_SECONDS = 5.0


def cores() -> int:
    """Return the number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """At most `size` workers; `run` keeps a spare ready as long as there is room.

    The pool does not enforce the limit: the server must accept at most `size` sessions at once.
    """

    def __init__(self, setup: Setup, size: int | None = None) -> None:
        self._setup = setup
        self.size = cores() if size is None else size
        self._starting = trio.Lock()
        self._waiting: SpeechWorker | None = None
        self._changed = trio.Event()
        self.taken = 0
        self.voice = ""

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep a spare worker ready until cancelled; started when the first one is ready.

        Raises WorkerBroken when the first one cannot be started; later failures are retried every
        RETRY_SECONDS. Cancelling kills the spare.
        """
        try:
            await self._prepare()
            task_status.started()
            while True:
                changed = self._changed
                try:
                    if self.taken < self.size:
                        await self._prepare()
                    await changed.wait()
                except WorkerBroken:
                    await trio.sleep(RETRY_SECONDS)
        finally:
            if self._waiting is not None:
                await end_worker(self._waiting)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[SpeechWorker]:
        """Take a worker for one session; it is killed and reaped when the context closes.

        Raises WorkerBroken when none can be started.
        """
        self.taken += 1
        try:
            await self._prepare()
            worker, self._waiting = self._waiting, None
            assert worker is not None  # no checkpoint since it was prepared
            self._wake()
            try:
                yield worker
            finally:
                await end_worker(worker)
        finally:
            self.taken -= 1
            self._wake()

    async def _prepare(self) -> None:
        """Start a spare worker unless a live one is ready. Raises WorkerBroken."""
        async with self._starting:
            worker = self._waiting
            if worker is not None and not worker.alive:
                self._waiting = None
                await end_worker(worker)
            if self._waiting is None:
                self._waiting = await start_worker(self._setup)
                self.voice = self._waiting.voice

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
