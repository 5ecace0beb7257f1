"""Speech engines: espeak-ng, which pip installs on three systems, and flite, which sounds better
but must be installed separately. Only the speech workers import this.

espeak-ng is under GPL-3. It is loaded here only, in a separate process that talks to the server
through pipes; no part of it is in bridge.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path
from typing import Protocol

import numpy as np

from bridge.extras import install_command
from bridge.local_agent.sound import Samples, resample, samples_to_ulaw

# At 0.06 s a character, a minute of speech; more is a mistake or an attack.
MAX_CHARACTERS = 1000

_PEAK = 16000  # of 32767: about as loud as people on the phone

_FLITE_VOICE = "slt"
_FLITE_SECONDS = 20.0  # for one utterance, which takes about 0.1 s

# espeak-ng's speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1
_WORDS_PER_MINUTE = 155  # its own default, 175, is hard to follow on the phone
_ESPEAK_VOICE = b"en-us"


class Engine(Protocol):
    """An engine that speaks English."""

    name: str

    def speak(self, text: str) -> tuple[Samples, int]:
        """Return the speech of `text` and its rate in Hz. Raises OSError when the engine fails."""
        ...


class EngineMissing(Exception):
    """No engine is installed; the message says what to install."""


class Espeak:
    """espeak-ng, from the wheel `espeakng-loader`."""

    name = "espeak-ng"

    def __init__(self) -> None:
        try:
            import espeakng_loader  # type: ignore[import-untyped]

            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            data = espeakng_loader.get_data_path().encode()
        except (ImportError, OSError) as error:
            raise EngineMissing(
                f"espeak-ng cannot be loaded ({error}); {install_command('local')}"
            ) from None
        self._rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, data, _DO_NOT_EXIT
        )
        if self._rate <= 0:
            raise EngineMissing(f"espeak-ng finds no voices; {install_command('local')}")
        self._library.espeak_SetVoiceByName(_ESPEAK_VOICE)
        self._library.espeak_SetParameter(_PARAMETER_RATE, _WORDS_PER_MINUTE, 0)
        self._said = bytearray()
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        # Keep a reference: the library calls it while it speaks.
        self._callback = callback(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str) -> tuple[Samples, int]:
        """See Engine."""
        self._said.clear()
        data = text.replace("\0", " ").encode()
        self._library.espeak_Synth(
            ctypes.c_char_p(data),
            ctypes.c_size_t(len(data) + 1),
            ctypes.c_uint(0),
            _POS_CHARACTER,
            ctypes.c_uint(0),
            ctypes.c_uint(_CHARS_UTF8),
            None,
            None,
        )
        self._library.espeak_Synchronize()
        return np.frombuffer(bytes(self._said), np.int16), self._rate

    def _take(self, samples: object, count: int, events: object) -> int:
        if samples and count > 0:
            self._said += ctypes.string_at(samples, 2 * count)  # type: ignore[arg-type]
        return 0


class Flite:
    """flite, the program (`apt-get install flite`, `brew install flite`)."""

    name = "flite"

    def __init__(self) -> None:
        found = shutil.which("flite")
        if found is None:
            raise EngineMissing("flite is not installed; apt-get install flite")
        self._program = found

    def speak(self, text: str) -> tuple[Samples, int]:
        """See Engine."""
        with tempfile.TemporaryDirectory(prefix="bridge-flite-") as folder:
            # Through files: untrusted text must not be parsed as an option, and flite seeks in its
            # output to fill in the length.
            words, sound = Path(folder, "words.txt"), Path(folder, "sound.wav")
            words.write_text(text, encoding="ascii", errors="replace")
            command = [self._program, "-voice", _FLITE_VOICE, "-f", str(words), "-o", str(sound)]
            try:
                subprocess.run(  # noqa: S603 - a program found by name, with file names of ours
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=_FLITE_SECONDS,
                    check=True,
                )
                with wave.open(str(sound)) as recording:
                    rate = recording.getframerate()
                    data = recording.readframes(recording.getnframes())
            except (subprocess.SubprocessError, wave.Error, EOFError) as error:
                raise OSError(f"flite failed: {error}") from None
        return np.frombuffer(data, "<i2").astype(np.int16), rate


ENGINES: dict[str, type[Espeak] | type[Flite]] = {"flite": Flite, "espeak-ng": Espeak}


def choose(name: str = "") -> Engine:
    """Return the engine of this name, by default the best one. Raises EngineMissing."""
    if name:
        if name not in ENGINES:
            raise EngineMissing(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
        return ENGINES[name]()
    why = ""
    for engine in ENGINES.values():
        try:
            return engine()
        except EngineMissing as error:
            why = str(error)
    raise EngineMissing(why)


def speech_of(engine: Engine, text: str) -> bytes:
    """Return the first MAX_CHARACTERS of `text` as µ-law at 8 kHz. Raises OSError."""
    samples, rate = engine.speak(text[:MAX_CHARACTERS])
    return samples_to_ulaw(_levelled(resample(samples, rate)))


def _levelled(samples: Samples) -> Samples:
    """Normalise the loudness, which differs between engines."""
    peak = int(np.abs(samples.astype(np.int32)).max(initial=0))
    if peak < 100:
        return samples
    levelled: Samples = np.rint(samples * (_PEAK / peak)).astype(np.int16)
    return levelled
