"""The speech workers of one agent: one for each session, and one loaded and waiting for the next.

Loading takes seconds, so that a caller should find it done. Workers are as many as the machine has
cores, since each can keep one busy.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from bridge.local_agent.events import Setup
from bridge.local_agent.worker_client import SpeechWorker, WorkerBroken, end_worker, start_worker

# What keeps a worker from starting (memory, a package being replaced) takes a while to pass.
RETRY_SECONDS = 5.0


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """At most `size` workers; `run` keeps one of them waiting as long as there is room.

    It does not refuse anybody: whoever serves sessions must take no more than `size` at once.
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
        """Keep a worker ready until cancelled; started when the first one is.

        Raises WorkerBroken when the first one cannot be started; later failures are tried again.
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
        """A worker for one session; it is killed and waited for when this is left.

        Raises WorkerBroken when none can be started.
        """
        self.taken += 1
        try:
            await self._prepare()
            worker, self._waiting = self._waiting, None
            assert worker is not None  # nothing has run since it was prepared
            self._wake()
            try:
                yield worker
            finally:
                await end_worker(worker)
        finally:
            self.taken -= 1
            self._wake()

    async def _prepare(self) -> None:
        """See to it that a live worker waits. Raises WorkerBroken."""
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
