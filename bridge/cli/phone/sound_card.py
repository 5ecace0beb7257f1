"""The sound card of this machine, through PortAudio: https://python-sounddevice.readthedocs.io"""

from __future__ import annotations

import audioop
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bridge.cli.phone.handset import SoundCardError
from bridge.extras import install_command
from bridge.testing.speech import RATE

# The phone's own rate first: most systems then resample for us, and better.
_RATES = (RATE, 48_000, 44_100, 16_000)
_BLOCKS_A_SECOND = 50

NO_PACKAGE = f"--mic needs sounddevice, which is not installed here: {install_command('mic')}"
NO_LIBRARY = (
    "--mic needs PortAudio, which is not installed here: apt install libportaudio2 (or your"
    " system's package)"
)


def open_library() -> Any:
    """Import sounddevice. Raises SoundCardError if it or PortAudio is missing."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise SoundCardError(NO_PACKAGE) from None
    except OSError:
        raise SoundCardError(NO_LIBRARY) from None


class SystemSoundCard:
    """A `SoundCard`: the system's default microphone and loudspeaker.

    `library` is sounddevice or a stand-in. Raises SoundCardError without a device, so that the
    command fails before it places a call.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = open_library() if library is None else library
        self._rate = self._common_rate()

    @contextmanager
    def open(
        self,
        capture: Callable[[bytes], None],
        render: Callable[[int], bytes],
        stopped: Callable[[str], None],
    ) -> Iterator[None]:
        """See `SoundCard.open`."""
        rate = self._rate
        converting = Converting(rate, capture, render)
        closing = False

        def callback(indata: Any, outdata: Any, frames: int, time: Any, status: Any) -> None:
            converting.capture(bytes(indata))
            outdata[:] = converting.render(frames)

        def finished() -> None:
            if not closing:
                stopped("the sound card stopped; was it unplugged?")

        try:
            stream = self._library.RawStream(
                samplerate=rate,
                blocksize=rate // _BLOCKS_A_SECOND,
                dtype="int16",
                channels=1,
                callback=callback,
                finished_callback=finished,
            )
            stream.start()
        except self._library.PortAudioError as error:
            raise SoundCardError(_unusable(error)) from None
        try:
            yield
        finally:
            closing = True
            stream.abort()
            stream.close()

    def _common_rate(self) -> int:
        """Return the first rate that both microphone and loudspeaker support."""
        refusal: Exception | None = None
        for rate in _RATES:
            try:
                self._library.check_input_settings(channels=1, dtype="int16", samplerate=rate)
                self._library.check_output_settings(channels=1, dtype="int16", samplerate=rate)
            except self._library.PortAudioError as error:
                refusal = refusal or error
            except ValueError as error:  # how sounddevice reports a missing device
                refusal = refusal or error
            else:
                return rate
        assert refusal is not None
        raise SoundCardError(_unusable(refusal))


class Converting:
    """Resamples between the card's rate and the phone's; 16-bit samples, one channel."""

    def __init__(
        self, rate: int, capture: Callable[[bytes], None], render: Callable[[int], bytes]
    ) -> None:
        self._rate = rate
        self._capture = capture
        self._render = render
        self._heard_state: Any = None
        self._played_state: Any = None
        self._ready = bytearray()

    def capture(self, pcm: bytes) -> None:
        """Pass on what the microphone recorded, at the card's rate."""
        if self._rate != RATE:
            # The weights are a one-pole low-pass, against the worst of the aliasing.
            pcm, self._heard_state = audioop.ratecv(
                pcm, 2, 1, self._rate, RATE, self._heard_state, 1, 1
            )
        self._capture(pcm)

    def render(self, samples: int) -> bytes:
        """Return this many samples for the loudspeaker, at the card's rate."""
        if self._rate == RATE:
            return self._render(samples)
        while len(self._ready) < 2 * samples:
            pcm, self._played_state = audioop.ratecv(
                self._render(RATE // _BLOCKS_A_SECOND), 2, 1, RATE, self._rate, self._played_state
            )
            self._ready += pcm
        piece = bytes(self._ready[: 2 * samples])
        del self._ready[: 2 * samples]
        return piece


def _unusable(error: Exception) -> str:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"no microphone and loudspeaker ({why}): connect and select them, or use --say"
