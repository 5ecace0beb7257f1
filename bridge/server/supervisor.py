"""Several worker processes behind one address: `server.workers` > 1 under `bridge serve`.

The parent binds and listens once; the workers inherit the sockets, and the first one that is free
accepts a connection. The parent carries no calls. It starts workers, replaces one that dies, passes
requests to stop on to them, and ends after the last of them.

Between the parent and each worker there is a socket pair, the *lifeline*:

- The worker writes a line when it serves, when it begins to drain, and at an immediate stop: how
  many seconds it may take to end, by its settings. The first line tells a start from a failed
  start; the last is how long the parent waits before it kills.
- When the parent dies, in whatever way, the worker reads the end of the stream and drains.

Requests to stop are signals, so that an operator can do by hand what the parent does: SIGTERM makes
a worker drain, however often it comes, SIGINT ends its calls at once. (`kill` one worker with
SIGTERM and it drains, ends, and a new one takes its place.) Each worker has a process group of its
own: Ctrl-C in a terminal goes to the parent, which passes it on.

`Supervisor` is the logic, written against the protocol `Worker`; `ProcessWorker` implements it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final, Protocol

import trio
from hypercorn.config import Config
from hypercorn.utils import repr_socket_addr

from bridge.backoff import pauses
from bridge.config.settings import Settings
from bridge.log import get_logger
from bridge.server.kept_token import announced
from bridge.server.stopping import SLACK_SECONDS, StopSignals, stop_now_at_most
from bridge.telemetry.multiprocess import MetricsFolder

log = get_logger(__name__)

# The module that a worker process runs.
WORKER_MODULE: Final = "bridge.server.worker_process"

# How long a worker may take from its start to its first line. A busy machine needs seconds to
# import a web framework; a worker that hangs would otherwise never be replaced.
START_SECONDS: Final = 60.0

# When so many starts in a row have failed and no worker serves, there will be no server.
START_TRIES: Final = 3

# Before a worker that died is replaced: twice as long each time, so that one that dies at its start
# does not keep the machine busy, and FIRST_DELAY again once one has served for a while.
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
SERVED_WELL_SECONDS: Final = 60.0

# A report is a number of seconds.
REPORT_BYTES: Final = 64

# What a killed process may take to be gone. Nothing is waited for any longer.
KILL_SECONDS: Final = 5.0


class Worker(Protocol):
    """A worker process, as far as the supervisor needs it."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int:
        """Wait until it has ended; return its exit status, negative for a signal."""
        ...

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still running."""
        ...

    async def report(self) -> float | None:
        """Receive the next line of its lifeline: how many seconds it may take to end. None at the
        end of the lifeline."""
        ...

    def close(self) -> None:
        """Close the lifeline."""
        ...


class _Supervised:
    """A worker under supervision. `serving_since` is None until its first report."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.serving_since: float | None = None
        self.seconds_to_end = 0.0
        # The worker's deadline for what it is doing, starting or ending. It is killed after that.
        self.time = trio.CancelScope(deadline=trio.current_time() + START_SECONDS)


class Supervisor:
    """Keeps `count` workers running, until it is asked to end them all.

    `start` starts one, or raises OSError. `stop_now_seconds` is how long a worker may take for an
    immediate stop; a worker that hangs does not report that itself.
    """

    def __init__(
        self, start: Callable[[], Awaitable[Worker]], count: int, *, stop_now_seconds: float
    ) -> None:
        self._start = start
        self._count = count
        self._stop_now_seconds = stop_now_seconds
        self._workers: set[_Supervised] = set()
        self._stopping = trio.Event()
        self._stopping_now = False
        self._failed_starts = 0
        self._status = 0

    def drain(self, why: str) -> None:
        """Ask all workers to drain, and start no more. Idempotent."""
        if not self._stopping.is_set():
            self._stopping.set()
            log.info("draining workers", why=why, workers=len(self._workers))
            for one in self._workers:
                self._ask(one)

    def stop_now(self, why: str) -> None:
        """Ask all workers to stop at once, and start no more. Idempotent."""
        if not self._stopping_now:
            self._stopping_now = True
            self._stopping.set()
            log.info("stopping workers now", why=why, workers=len(self._workers))
            for one in self._workers:
                self._ask(one)

    async def run(self) -> int:
        """Supervise until all workers have ended, because a stop was requested or none can be
        started. Returns the exit status: 0 after `drain` and `stop_now`, else the worker's.

        Cancelling it closes the workers' lifelines: they drain, unsupervised.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(self._count):
                nursery.start_soon(self._keep_one_running)
        return self._status

    async def _keep_one_running(self) -> None:
        delays = pauses(FIRST_DELAY, LONGEST_DELAY)
        while not self._stopping.is_set():
            if await self._run_one() >= SERVED_WELL_SECONDS:
                delays = pauses(FIRST_DELAY, LONGEST_DELAY)
            if not self._stopping.is_set():
                delay = next(delays)
                log.info("starting another worker", in_seconds=delay)
                with trio.move_on_after(delay):
                    await self._stopping.wait()

    async def _run_one(self) -> float:
        """Start a worker and wait for its end. Returns for how many seconds it served."""
        try:
            one = _Supervised(await self._start())
        except OSError as error:
            # No memory, no processes, no descriptors: this may pass.
            log.error("worker cannot be started", error=str(error))
            self._start_failed(1)
            return 0.0
        worker = one.worker
        log.info("worker started", pid=worker.pid)
        self._workers.add(one)
        try:
            if self._stopping.is_set():
                self._ask(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, one)
                status = await self._outlive(one)
                nursery.cancel_scope.cancel(reason="the worker has ended")
        finally:
            self._workers.discard(one)
            worker.close()
        expected = status == 0 or self._stopping.is_set()
        (log.info if expected else log.error)("worker ended", pid=worker.pid, status=status)
        if one.serving_since is not None:
            return trio.current_time() - one.serving_since
        if not self._stopping.is_set():
            self._start_failed(status)
        return 0.0

    def _start_failed(self, status: int) -> None:
        self._failed_starts += 1
        serving = any(one.serving_since is not None for one in self._workers)
        if self._failed_starts >= START_TRIES and not serving:
            # As a shell reports it; and an end without ever a server is no success.
            self._status = 128 - status if status < 0 else status or 1
            self.drain(f"{self._failed_starts} starts in a row have failed")

    async def _listen(self, one: _Supervised) -> None:
        while (seconds := await one.worker.report()) is not None:
            one.seconds_to_end = seconds
            if one.serving_since is not None:
                self._allow(one, seconds)
                continue
            one.serving_since = trio.current_time()
            one.time.deadline = float("inf")
            self._failed_starts = 0
            log.info("worker serves", pid=one.worker.pid)
            if self._stopping.is_set():
                # The request to stop may not have reached it while it was starting.
                self._ask(one)

    async def _outlive(self, one: _Supervised) -> int:
        worker = one.worker
        with one.time:
            return await worker.wait()
        log.error("worker took too long; killing it", pid=worker.pid)
        worker.send_signal(signal.SIGKILL)
        with trio.move_on_after(KILL_SECONDS):
            return await worker.wait()
        # In a system call that cannot be interrupted. The kernel ends it when it can.
        log.error("worker still alive after SIGKILL", pid=worker.pid)
        return -signal.SIGKILL

    def _ask(self, one: _Supervised) -> None:
        if one.serving_since is None:
            # It has no calls to end. Before it handles signals, this ends it without a traceback;
            # if it hangs instead, the deadline of its start ends it.
            one.worker.send_signal(signal.SIGTERM)
        elif self._stopping_now:
            one.worker.send_signal(signal.SIGINT)
            self._allow(one, self._stop_now_seconds)
        else:
            one.worker.send_signal(signal.SIGTERM)
            self._allow(one, one.seconds_to_end)

    def _allow(self, one: _Supervised, seconds: float) -> None:
        """Give a worker that was asked to end `seconds` from now."""
        if self._stopping.is_set():
            one.time.deadline = trio.current_time() + seconds + SLACK_SECONDS


class ProcessWorker:
    """A worker in a process of its own, and the parent's end of its lifeline. `gone` is called
    once, by `close`."""

    def __init__(
        self,
        process: trio.Process,
        lifeline: trio.SocketStream,
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._process = process
        self._lifeline = lifeline
        self._received = bytearray()
        self._gone = gone

    @classmethod
    async def start(
        cls, listening: Sequence[socket.socket], metrics: MetricsFolder | None = None
    ) -> ProcessWorker:
        """Start a worker that serves on these sockets. Raises OSError.

        It gets its settings as the parent did, from the environment and the file named there; on
        its command line are numbers of descriptors. Its metrics go into the folder of `metrics`.
        """
        environment = dict(os.environ)
        gone: Callable[[], None] = lambda: None  # noqa: E731
        if metrics is not None:
            number = metrics.take()
            environment |= metrics.environment(number)
            gone = partial(metrics.give_back, number)
        ours, theirs = socket.socketpair()
        # Closed here once the process has it, so that our end is closed when the process is gone.
        with theirs:
            descriptors = [one.fileno() for one in (theirs, *listening)]
            try:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", WORKER_MODULE, *map(str, descriptors)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=descriptors,
                    process_group=0,
                    env=environment,
                )
            except BaseException:
                ours.close()
                gone()
                raise
        ours.setblocking(False)
        return cls(process, trio.SocketStream(trio.socket.from_stdlib_socket(ours)), gone)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def report(self) -> float | None:
        while b"\n" not in self._received:
            try:
                received = await self._lifeline.receive_some(REPORT_BYTES)
            except trio.BrokenResourceError:
                return None
            self._received += received
            if not received or len(self._received) > REPORT_BYTES:
                return None
        line, _, self._received = self._received.partition(b"\n")
        try:
            return float(line)
        except ValueError:
            return None  # a worker of another version, after an update in place

    def close(self) -> None:
        self._lifeline.socket.close()
        self._gone()


async def supervise(
    config: Config, settings: Settings, signals: StopSignals, run_token: str = ""
) -> int:
    """Serve with `server.workers` processes until `signals` end it, or no worker can be started.

    `run_token` is the API token that was made for this run, to be printed; "" for none.
    Returns the exit status. Raises OSError when an address cannot be bound.
    """
    with ExitStack() as stack:
        listening, addresses = config.create_sockets().insecure_sockets, list[str]()
        for one in listening:
            stack.enter_context(one)
        for one in listening:
            one.listen(config.backlog)
            address = repr_socket_addr(one.family, one.getsockname())
            log.info("listening", address=f"http://{address}", workers=settings.server.workers)
            addresses.append(f"http://{address}")
        if run_token:
            stack.enter_context(announced(run_token, addresses))
        metrics = None
        try:
            metrics = stack.enter_context(MetricsFolder())
        except OSError as error:
            log.warning(
                "no folder for metrics: each worker reports only its own", reason=str(error)
            )
        supervisor = Supervisor(
            partial(ProcessWorker.start, listening, metrics),
            settings.server.workers,
            stop_now_seconds=stop_now_at_most(settings),
        )
        signals.tell(supervisor)
        return await supervisor.run()
