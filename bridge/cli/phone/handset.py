"""A handset between a sound card and a simulated phone: `bridge phone --mic`.

The sound card's callbacks run in a separate thread, on the card's clock, and must not block; the
phone runs on Trio. Two short, bounded buffers of µ-law connect them. Because the clocks drift, a
full buffer drops its oldest bytes; an empty one returns silence until a little audio has gathered
again, so that one late block makes one gap instead of many short ones.
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
"""250 ms: a longer buffer would be a noticeable delay."""

READY_BYTES = 2 * FRAME_BYTES
"""40 ms: an empty buffer gathers this much before it returns any."""

HANG_UP = "\x04"
"""Ctrl-D, end of input."""


class SoundCardError(Exception):
    """There is no usable sound card, or it stopped; the message has the remedy."""


class SoundCard(Protocol):
    """A microphone and a loudspeaker, mono, 16-bit samples in native byte order at 8 kHz."""

    def open(
        self,
        capture: Callable[[bytes], None],
        render: Callable[[int], bytes],
        stopped: Callable[[str], None],
    ) -> AbstractContextManager[None]:
        """Run while the context is open; callbacks come from any thread.

        `capture` gets what the microphone recorded, `render` returns the requested number of
        samples to play, `stopped` gets the reason when the card stops by itself. Raises
        SoundCardError.
        """
        ...


class Buffer:
    """A bounded buffer of µ-law bytes between two threads; `put` and `take` block only briefly."""

    def __init__(self, most: int = MOST_BYTES, ready: int = READY_BYTES) -> None:
        self._most = most
        self._ready = ready
        self._bytes = bytearray()
        self._filling = True
        self._lock = threading.Lock()
        self.dropped = 0

    def put(self, ulaw: bytes) -> None:
        """Append bytes; when the buffer is full, drop the oldest and count them in `dropped`."""
        with self._lock:
            self._bytes += ulaw
            if (over := len(self._bytes) - self._most) > 0:
                del self._bytes[:over]
                self.dropped += over

    def take(self, size: int) -> bytes:
        """Remove and return `size` bytes, padded with silence."""
        with self._lock:
            if self._filling and len(self._bytes) < self._ready:
                return SILENCE * size
            piece = bytes(self._bytes[:size])
            del self._bytes[:size]
            self._filling = len(piece) < size
        return piece.ljust(size, SILENCE)


class Handset:
    """Connects a sound card to a phone: sends the microphone, plays what the phone hears."""

    def __init__(self, card: SoundCard) -> None:
        self._card = card
        self._said = Buffer()
        self._heard = Buffer()

    async def talk(self, phone: SimulatedPhone, keys: AsyncIterator[str]) -> None:
        """Talk until the call ends, or `keys` contains Ctrl-D; other keys are pressed on the phone.

        Raises SoundCardError when there is no sound card, or when it stops.
        """
        stopped = trio.Event()
        why = ""
        token = trio.lowlevel.current_trio_token()

        def note_stop(reason: str) -> None:
            nonlocal why
            why = reason
            stopped.set()

        def tell_stop(reason: str) -> None:
            # Called from the card's thread, possibly after Trio has finished.
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
                # The stream may already have ended; still wait for what Twilio does next.
                with suppress(CallEndedError):
                    phone.speak_live(self._said.take)
                await phone.wait_ended(timeout=float("inf"))
                nursery.cancel_scope.cancel("the call has ended")
        if stopped.is_set():
            raise SoundCardError(why)

    def _capture(self, pcm: bytes) -> None:
        self._said.put(pcm_to_ulaw(pcm))

    def _render(self, samples: int) -> bytes:
        return ulaw_to_pcm(self._heard.take(samples))

    async def _play(self, phone: SimulatedPhone) -> None:
        """Play what the phone's playback buffer has played, so audio cleared by the server is not
        heard.
        """
        # Counted in bytes, so that rounding neither repeats nor skips audio.
        position = round(phone.elapsed * RATE)
        due = trio.current_time()
        while True:
            heard = phone.heard_since(position / RATE)
            position += len(heard)
            self._heard.put(heard)
            due += FRAME_SECONDS
            await trio.sleep_until(due)


async def _press(phone: SimulatedPhone, keys: AsyncIterator[str]) -> bool:
    """Press the typed keys that a keypad has; return whether the caller hung up."""
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
    """Yield the keys typed in this terminal, without echo; nothing without a terminal.

    Closing the generator restores the terminal. Ctrl-C still raises a signal.
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
