"""Speech on disk and on the phone line: WAV files, shipped clips, µ-law at 8 kHz mono.

Everything a phone carries is *µ-law*: one byte per sample, 8000 samples a second, one channel
(ITU-T G.711). Here a recording of any usual shape becomes that, and back. Resampling is a
windowed-sinc low-pass in plain Python: `audioop.ratecv` only interpolates, so that whatever lies
above 4 kHz in a studio recording would fold back into the caller's voice as a hiss.
"""

from __future__ import annotations

import audioop
import math
import struct
import wave
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from operator import mul
from pathlib import Path

RATE = 8000  # samples a second on the phone line, and bytes a second, as µ-law has one per sample
SILENCE = b"\xff"  # µ-law zero

# The telephone band ends at 3400 Hz and must be gone at 4000: a Kaiser window over twenty periods
# to either side of a sinc cut off at 92.5 % of half the rate keeps what folds back 50 dB down.
_CUTOFF = 0.925
_PERIODS = 20
_KAISER_BETA = 4.55

_LOWEST_RATE, _HIGHEST_RATE = 1000, 384_000  # outside this range the header is damaged

_PCM = 1
_EXTENSIBLE = 0xFFFE  # the true format is then the first field of a GUID
_REMEDY = "convert it with `sox {path} -b 16 -e signed-integer converted.wav`"


class SpeechFileError(ValueError):
    """A recording cannot be used; the message names the file, the fault and the remedy."""


def ulaw_to_pcm(ulaw: bytes) -> bytes:
    """Decode µ-law to 16-bit signed samples in native byte order."""
    return audioop.ulaw2lin(ulaw, 2)


def pcm_to_ulaw(pcm: bytes) -> bytes:
    """Encode 16-bit signed samples in native byte order as µ-law."""
    return audioop.lin2ulaw(pcm, 2)


def read_wav(path: str | Path) -> bytes:
    """Read a WAV file (PCM of 8, 16, 24 or 32 bits, any rate, mono or stereo) as µ-law at 8 kHz.

    Stereo is mixed to mono. Raises `SpeechFileError` for anything that is not such a file, and
    `OSError` when it cannot be read at all.
    """
    recording = _parse_wav(Path(path).read_bytes(), str(path))
    samples = audioop.lin2lin(recording.samples, recording.width, 2)
    if recording.rate != RATE:
        samples = resample(array("h", samples), recording.rate, RATE).tobytes()
    return pcm_to_ulaw(samples)


def write_wav(path: str | Path, ulaw: bytes) -> None:
    """Write µ-law at 8 kHz as a 16-bit PCM mono WAV at 8 kHz, which every player supports."""
    samples = array("h", ulaw_to_pcm(ulaw))
    if _big_endian():
        samples.byteswap()
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples.tobytes())


def load_clip(name: str) -> bytes:
    """The µ-law of a clip shipped in the package (`clips/NAME.ulaw`).

    Raises `SpeechFileError` naming the clips there are when there is none of that name.
    """
    clips = files("bridge.testing") / "clips"
    clip = clips / f"{name}.ulaw"
    if not clip.is_file():
        known = sorted(entry.name[:-5] for entry in clips.iterdir() if entry.name.endswith(".ulaw"))
        raise SpeechFileError(f"no clip named {name!r}; there are: {', '.join(known)}")
    return clip.read_bytes()


def resample(samples: Sequence[int], rate: int, to_rate: int) -> array[int]:
    """Signed 16-bit `samples` at `rate` as samples at `to_rate` (both in Hz), band-limited.

    The result lasts as long as the original, to the nearest sample.
    """
    if rate == to_rate or not samples:
        return array("h", samples)
    common = math.gcd(rate, to_rate)
    step, phases = rate // common, to_rate // common
    # Reach of the kernel to either side, in input samples: its periods are those of the lower rate.
    scale = _CUTOFF * min(1.0, to_rate / rate)
    reach = math.ceil(_PERIODS * max(1.0, rate / to_rate))
    padding = array("d", bytes(8 * reach))
    source = padding + array("d", samples) + padding + array("d", [0.0])
    kernels: dict[int, list[float]] = {}
    out = array("h")
    for index in range((len(samples) * phases + step // 2) // step):
        whole, phase = divmod(index * step, phases)
        kernel = kernels.get(phase)
        if kernel is None:
            kernel = kernels[phase] = _kernel(phase / phases, reach, scale)
        value = round(sum(map(mul, kernel, source[whole + 1 : whole + 1 + 2 * reach])))
        out.append(max(-32768, min(32767, value)))
    return out


def _kernel(fraction: float, reach: int, scale: float) -> list[float]:
    """Weights of the 2 x `reach` samples round a point `fraction` of a sample past the middle one.

    They add up to one, so that no phase is louder than another.
    """
    weights = []
    for tap in range(1 - reach, 1 + reach):
        distance = tap - fraction
        angle = math.pi * distance * scale
        sinc = math.sin(angle) / angle if angle else 1.0
        edge = 1.0 - (distance / reach) ** 2
        weights.append(sinc * _bessel_i0(_KAISER_BETA * math.sqrt(max(0.0, edge))))
    total = sum(weights)
    return [weight / total for weight in weights]


def _bessel_i0(x: float) -> float:
    total = term = 1.0
    for k in range(1, 20):
        term *= (x / (2 * k)) ** 2
        total += term
    return total


@dataclass(frozen=True, slots=True)
class _Recording:
    samples: bytes  # signed, native byte order, one channel
    width: int  # bytes per sample
    rate: int


def _parse_wav(data: bytes, path: str) -> _Recording:
    """Walk the RIFF chunks. The standard library's reader refuses WAVE_FORMAT_EXTENSIBLE before
    Python 3.12, which is what many recorders write for 24 bits."""

    def refuse(why: str) -> SpeechFileError:
        return SpeechFileError(f"{path}: {why}; {_REMEDY.format(path=path)}")

    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise refuse("not a WAV file")
    header = audio = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        # A recorder that writes to a pipe cannot fill in the size: the data runs to the end then.
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt ":
            header = body
        elif name == b"data":
            audio = body
            break
        at += 8 + size + size % 2
    if header is None or len(header) < 16 or audio is None:
        raise refuse("the WAV header is incomplete")
    coding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", header)
    if coding == _EXTENSIBLE and len(header) >= 26:
        (coding,) = struct.unpack_from("<H", header, 24)
    if coding != _PCM:
        raise refuse(f"coding {coding} is not PCM")
    if bits not in (8, 16, 24, 32):
        raise refuse(f"{bits} bits per sample are not 8, 16, 24 or 32")
    if channels not in (1, 2):
        raise refuse(f"{channels} channels are not mono or stereo")
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise refuse(f"a sample rate of {rate} Hz is not speech")
    width = bits // 8
    audio = audio[: len(audio) - len(audio) % (width * channels)]
    if width == 1:
        audio = audioop.bias(audio, 1, 128)  # eight-bit WAV is unsigned
    elif _big_endian():
        audio = audioop.byteswap(audio, width)
    if channels == 2:
        audio = audioop.tomono(audio, width, 0.5, 0.5)
    return _Recording(audio, width, rate)


def _big_endian() -> bool:
    return struct.pack("=H", 1) != struct.pack("<H", 1)
