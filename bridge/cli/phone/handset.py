"""A handset between a sound card and a simulated phone: `bridge phone --mic`.

The sound card's callbacks run in a thread of its own, at its own clock, and may not wait; the phone
runs on Trio. Between them are two short buffers of µ-law. Both are bounded, and both clocks drift:
a buffer that is full forgets its oldest bytes, one that is empty gives silence and then waits until
there is a little again, so that one late block makes one gap and not a crackle of many.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import trio

from bridge.testing.phone.media_stream import FRAME_BYTES, FRAME_SECONDS, KEYS
from bridge.testing.phone.phone import CallEndedError, SimulatedPhone
from bridge.testing.speech import RATE, SILENCE, pcm_to_ulaw, ulaw_to_pcm

MOST_BYTES = RATE // 4
"""A quarter of a second: more would be a delay that both sides notice."""

READY_BYTES = 2 * FRAME_BYTES
"""40 ms: what a buffer that ran empty gathers before it gives any."""

HANG_UP = "\x04"
"""Ctrl-D, which ends input everywhere."""


class SoundCardError(Exception):
    """No sound card to be had, or it has stopped; the message has the remedy."""


class SoundCard(Protocol):
    """A microphone and a loudspeaker, mono, 16-bit samples in native byte order at 8 kHz."""

    def open(
        self,
        capture: Callable[[bytes], None],
        render: Callable[[int], bytes],
        stopped: Callable[[str], None],
    ) -> AbstractContextManager[None]:
        """Run while the context is open, calling from any thread.

        `capture` is given what the microphone hears, `render` asked for so many samples to play,
        `stopped` told why the card stopped by itself. Raises SoundCardError.
        """
        ...


class Buffer:
    """µ-law bytes from one thread to another: `put` and `take` never wait for each other long."""

    def __init__(self, most: int = MOST_BYTES, ready: int = READY_BYTES) -> None:
        self._most = most
        self._ready = ready
        self._bytes = bytearray()
        self._filling = True
        self._lock = threading.Lock()
        self.dropped = 0

    def put(self, ulaw: bytes) -> None:
        """Add bytes; the oldest are dropped, and counted, when there are too many."""
        with self._lock:
            self._bytes += ulaw
            if (over := len(self._bytes) - self._most) > 0:
                del self._bytes[:over]
                self.dropped += over

    def take(self, size: int) -> bytes:
        """The next `size` bytes; silence where there are none."""
        with self._lock:
            if self._filling and len(self._bytes) < self._ready:
                return SILENCE * size
            piece = bytes(self._bytes[:size])
            del self._bytes[:size]
            self._filling = len(piece) < size
        return piece.ljust(size, SILENCE)


class Handset:
    """What the caller holds: speaks into a phone, and plays what the phone hears."""

    def __init__(self, card: SoundCard) -> None:
        self._card = card
        self._said = Buffer()
        self._heard = Buffer()

    async def talk(self, phone: SimulatedPhone, keys: AsyncIterator[str]) -> None:
        """Be on the phone until the call ends, or Ctrl-D is among the `keys` typed.

        Raises SoundCardError when there is no sound card, or it stops.
        """
        stopped = trio.Event()
        why = ""
        token = trio.lowlevel.current_trio_token()

        def note_stop(reason: str) -> None:
            nonlocal why
            why = reason
            stopped.set()

        def tell_stop(reason: str) -> None:
            # From the card's thread; a call that is over by then has nobody to tell.
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(note_stop, reason)

        with self._card.open(self._capture, self._render, tell_stop):
            async with trio.open_nursery() as nursery:

                async def until_stopped() -> None:
                    await stopped.wait()
                    nursery.cancel_scope.cancel("the sound card stopped")

                async def until_hung_up() -> None:
                    if await _press(phone, keys):
                        nursery.cancel_scope.cancel("the caller hung up")

                nursery.start_soon(until_stopped)
                nursery.start_soon(until_hung_up)
                nursery.start_soon(self._play, phone)
                # It may have ended before a word; what Twilio does then is still to be seen.
                with suppress(CallEndedError):
                    phone.speak_live(self._said.take)
                await phone.wait_ended(timeout=float("inf"))
                nursery.cancel_scope.cancel("the call is over")
        if stopped.is_set():
            raise SoundCardError(why)

    def _capture(self, pcm: bytes) -> None:
        self._said.put(pcm_to_ulaw(pcm))

    def _render(self, samples: int) -> bytes:
        return ulaw_to_pcm(self._heard.take(samples))

    async def _play(self, phone: SimulatedPhone) -> None:
        """Take what the caller hears from the phone's own playback buffer, as it is heard: what the
        server clears is never played.
        """
        # Counted in bytes, so that nothing is played twice or left out.
        position = round(phone.elapsed * RATE)
        due = trio.current_time()
        while True:
            heard = phone.heard_since(position / RATE)
            position += len(heard)
            self._heard.put(heard)
            due += FRAME_SECONDS
            await trio.sleep_until(due)


async def _press(phone: SimulatedPhone, keys: AsyncIterator[str]) -> bool:
    """Press what is typed, if a keypad has it; whether the caller hangs up by it."""
    async for typed in keys:
        if typed == HANG_UP:
            return True
        if typed.upper() in KEYS:
            try:
                await phone.press(typed.upper())
            except CallEndedError:
                return False
    return False


async def typed_keys() -> AsyncGenerator[str, None]:
    """What is typed in this terminal, key by key, unseen; nothing where there is no terminal.

    The terminal is as before when this is closed: close it. Ctrl-C stays a signal.
    """
    if sys.stdin is None or not sys.stdin.isatty() or sys.platform == "win32":
        return
    descriptor = sys.stdin.fileno()
    with _cbreak(descriptor):
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            typed = os.read(descriptor, 64).decode("ascii", errors="ignore")
            for key in typed or HANG_UP:
                yield key


@contextmanager
def _cbreak(descriptor: int) -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
