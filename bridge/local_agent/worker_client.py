"""The client of a speech worker process: starts it, talks through its pipes, ends it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from bridge.local_agent import frames
from bridge.local_agent.events import Event, Ready, Setup, Unable

# Loading takes 1.7 s on an idle machine; much longer on a busy one with a cold disk.
READY_SECONDS = 60.0
# Synthesis takes 0.02 s with espeak-ng and 0.1 s with flite, after the audio that is queued.
SPEAK_SECONDS = 20.0
# The pipe holds eight seconds of audio. A worker that reads nothing for this long is stuck.
WRITE_SECONDS = 5.0
# A worker answers between two pieces of audio; without an answer for this long it hangs.
PING_EVERY = 5.0
PONG_SECONDS = 15.0
# A killed process ends at once; this bounds the wait for the kernel.
KILL_SECONDS = 2.0

_READ_BYTES = 65536


class WorkerBroken(Exception):
    """The worker crashed, hangs, or cannot work; the message says which."""


class SpeechWorker:
    """One worker process. Use `open_worker`, which also ends it.

    `run` must be running during `speak`.
    """

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._reader = frames.FrameReader()
        self._writing = trio.Lock()
        self._numbers = itertools.count(1)
        self._spoken: dict[int, bytes | None] = {}  # None: still awaited
        self._changed = trio.Event()
        self._pongs = 0
        self.voice = ""

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    async def load(self, setup: Setup) -> None:
        """Send the worker its set-up and wait until it is ready. Raises WorkerBroken."""
        with trio.move_on_after(READY_SECONDS):
            await self._send(frames.SETUP, msgspec.json.encode(setup))
            while not self.voice:
                for kind, content in await self._receive():
                    event = _event(kind, content)
                    if isinstance(event, Unable):
                        raise WorkerBroken(event.reason)
                    if isinstance(event, Ready):
                        self.voice = event.voice
            return
        raise WorkerBroken(f"the speech worker was not ready within {READY_SECONDS:g} s")

    async def run(self, on_event: Callable[[Event], None]) -> None:
        """Read from the worker until it breaks; call `on_event` with what it recognises.

        Ends by raising WorkerBroken (in a group), or by cancellation.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, on_event)
            nursery.start_soon(self._watch)

    async def hear(self, ulaw: bytes) -> None:
        """Send audio of the caller: µ-law at 8 kHz. Raises WorkerBroken."""
        await self._send(frames.HEAR, ulaw)

    async def end_turn(self) -> None:
        """End the caller's turn by force. Raises WorkerBroken."""
        await self._send(frames.END_TURN)

    async def speak(self, text: str) -> bytes:
        """Return the speech of `text`: µ-law at 8 kHz. Raises WorkerBroken.

        When cancelled, the speech is discarded on arrival.
        """
        number = next(self._numbers)
        self._spoken[number] = None
        try:
            with trio.move_on_after(SPEAK_SECONDS):
                await self._send(frames.SPEAK, frames.numbered(number, text.encode()))
                while (speech := self._spoken[number]) is None:
                    await self._changed.wait()
                return speech
        finally:
            del self._spoken[number]
        raise WorkerBroken(f"the speech worker did not speak within {SPEAK_SECONDS:g} s")

    async def _read(self, on_event: Callable[[Event], None]) -> None:
        while True:
            for kind, content in await self._receive():
                if kind == frames.PONG:
                    self._pongs += 1
                elif kind == frames.SPEECH:
                    number, speech = frames.split_number(content)
                    if number in self._spoken:  # else the waiter was cancelled
                        self._spoken[number] = speech
                elif (event := _event(kind, content)) is not None:
                    on_event(event)
            self._changed.set()
            self._changed = trio.Event()

    async def _watch(self) -> None:
        for sent in itertools.count(1):
            await trio.sleep(PING_EVERY)
            await self._send(frames.PING)
            with trio.move_on_after(PONG_SECONDS):
                while self._pongs < sent:
                    await self._changed.wait()
                continue
            raise WorkerBroken(f"the speech worker hangs: no answer for {PONG_SECONDS:g} s")

    async def _receive(self) -> list[tuple[bytes, bytes]]:
        try:
            data = await self._stdout.receive_some(_READ_BYTES)
            if not data:
                raise WorkerBroken("the speech worker ended")
            return list(self._reader.feed(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError, frames.FrameError) as error:
            raise WorkerBroken(f"the speech worker broke: {error}") from None

    async def _send(self, kind: bytes, content: bytes = b"") -> None:
        async with self._writing:
            # Shielded: a frame cut in half would make the rest of the pipe unreadable.
            with trio.move_on_after(WRITE_SECONDS, shield=True) as scope:
                try:
                    await self._stdin.send_all(frames.frame(kind, content))
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise WorkerBroken(f"the speech worker broke: {error}") from None
            if scope.cancelled_caught:
                raise WorkerBroken(
                    f"the speech worker hangs: it read nothing for {WRITE_SECONDS:g} s"
                )


@asynccontextmanager
async def open_worker(setup: Setup) -> AsyncIterator[SpeechWorker]:
    """Start a worker and wait until it is ready; kill and reap it when the context closes.

    Raises WorkerBroken when it cannot be started; the message has the remedy if there is one.
    """
    worker = await start_worker(setup)
    try:
        yield worker
    finally:
        await end_worker(worker)


async def start_worker(setup: Setup) -> SpeechWorker:
    """Start a worker and wait until it is ready; the caller must call `end_worker`."""
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-W", "ignore", "-m", "bridge.local_agent.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    except OSError as error:
        raise WorkerBroken(f"cannot start a speech worker: {error.strerror or error}") from None
    worker = SpeechWorker(process)
    try:
        await worker.load(setup)
    except BaseException:
        await end_worker(worker)
        raise
    return worker


async def end_worker(worker: SpeechWorker) -> None:
    """Kill the worker and reap it, within KILL_SECONDS, also under cancellation."""
    process = worker._process
    with trio.move_on_after(KILL_SECONDS, shield=True):
        process.kill()
        await process.wait()
    with trio.CancelScope(shield=True):  # deadline: none needed, closing by force does not wait
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await trio.aclose_forcefully(pipe)


def _event(kind: bytes, content: bytes) -> Event | None:
    """Parse the event in a frame; None for other frames. Raises WorkerBroken."""
    if kind != frames.EVENT:
        return None
    try:
        event: Event = msgspec.json.decode(content, type=Event)
    except msgspec.DecodeError as error:
        raise WorkerBroken(f"the speech worker sent an invalid event: {error}") from None
    return event
