"""WAV files in and out, resampling and the shipped clips."""

from __future__ import annotations

import math
import struct
import wave
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.testing.speech import (
    SpeechFileError,
    load_clip,
    pcm_to_ulaw,
    read_wav,
    resample,
    ulaw_to_pcm,
    write_wav,
)


def wav_bytes(frames: bytes, *, rate=8000, width=2, channels=1, coding=1, size=None) -> bytes:
    header = struct.pack("<HHIIHH", coding, channels, rate, 0, width * channels, width * 8)
    if coding == 0xFFFE:
        header += struct.pack("<HHIH", 22, width * 8, 0, 1) + bytes(14)
    data_size = len(frames) if size is None else size
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(header)) + header
    body += b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk, padded, to be skipped
    body += b"data" + struct.pack("<I", data_size) + frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sine(frequency: float, rate: int, seconds: float, amplitude=10000) -> array:
    count = round(rate * seconds)
    return array(
        "h", [round(amplitude * math.sin(2 * math.pi * frequency * i / rate)) for i in range(count)]
    )


def loudest(samples: array) -> int:
    """Away from the ends, where a filter rings."""
    return max(abs(value) for value in samples[200:-200])


@given(ulaw=st.binary(max_size=2000))
def test_what_is_written_is_read_again(tmp_path_factory, ulaw):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    write_wav(path, ulaw)
    # µ-law has two zeros; they sound the same and come back as one.
    assert read_wav(path) == ulaw.replace(b"\x7f", b"\xff")
    with wave.open(str(path)) as file:
        shape = (file.getframerate(), file.getsampwidth(), file.getnchannels(), file.getnframes())
    assert shape == (8000, 2, 1, len(ulaw))


@given(st.binary(max_size=500))
def test_ulaw_survives_pcm(ulaw):
    assert pcm_to_ulaw(ulaw_to_pcm(ulaw)) == ulaw.replace(b"\x7f", b"\xff")


@pytest.mark.parametrize("coding", [1, 0xFFFE])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_and_both_channel_counts_sound_the_same(tmp_path, width, channels, coding):
    samples = [value & ~0xFF for value in sine(440, 8000, 0.1)]
    frames = bytearray()
    for value in samples:
        wide = (value >> 8) + 128 if width == 1 else value << (8 * width - 16)
        one = wide.to_bytes(width, "little", signed=width > 1)
        frames += one * channels
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(bytes(frames), width=width, channels=channels, coding=coding))
    assert read_wav(path) == pcm_to_ulaw(array("h", samples).tobytes())


def test_a_recording_from_a_pipe_does_not_know_its_size(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(sine(440, 8000, 0.1).tobytes() + b"\0", size=0xFFFFFFFF))
    assert len(read_wav(path)) == 800


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"ID3 not a wav", "not a WAV file"),
        (b"", "not a WAV file"),
        (b"RIFF\0\0\0\0WAVE", "header is incomplete"),
        (wav_bytes(b"", coding=7, width=1), "coding 7 is not PCM"),
        (wav_bytes(b"", coding=3, width=4), "coding 3 is not PCM"),
        (wav_bytes(b"", width=8), "64 bits"),
        (wav_bytes(b"", channels=6), "6 channels"),
        (wav_bytes(b"", rate=0), "0 Hz"),
        (wav_bytes(b"", rate=4_000_000_000), "4000000000 Hz"),
    ],
)
def test_anything_else_is_refused_with_the_file_and_the_remedy(tmp_path, content, why):
    path = tmp_path / "strange.wav"
    path.write_bytes(content)
    with pytest.raises(SpeechFileError, match=why) as caught:
        read_wav(path)
    assert str(path) in str(caught.value)
    assert "sox" in str(caught.value)


@given(st.binary(max_size=200))
def test_no_file_breaks_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    path.write_bytes(b"RIFF\0\0\0\0WAVE" + data)
    with pytest.raises(SpeechFileError):
        read_wav(path)


@pytest.mark.parametrize("rate", [6000, 11025, 16000, 22050, 44100, 48000])
def test_resampling_keeps_speech_as_it_is(rate):
    resampled = resample(sine(1000, rate, 0.5), rate, 8000)
    wanted = sine(1000, 8000, 0.5)
    assert len(resampled) == len(wanted)
    errors = array("h", [a - b for a, b in zip(resampled, wanted, strict=True)])
    assert loudest(errors) < 50  # 46 dB down


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("frequency", [4300, 5000, 7000])
def test_what_a_phone_cannot_carry_does_not_fold_back(rate, frequency):
    assert loudest(resample(sine(frequency, rate, 0.5), rate, 8000)) < 50


@pytest.mark.parametrize("frequency", [300, 3000, 3400])
def test_the_telephone_band_passes(frequency):
    assert loudest(resample(sine(frequency, 44100, 0.5), 44100, 8000)) > 9700


def test_resampling_full_scale_does_not_wrap_round():
    square = array("h", ([32767] * 50 + [-32768] * 50) * 50)
    resampled = resample(square, 16000, 8000)
    assert max(resampled) == 32767
    assert min(resampled) == -32768


def test_resampling_nothing():
    assert len(resample(array("h"), 44100, 8000)) == 0


def test_the_callers_clip_is_short_utterances_with_pauses():
    clip = load_clip("caller")
    assert 6 * 8000 < len(clip) < 120_000
    samples = array("h", ulaw_to_pcm(clip))
    loud = [
        max(abs(v) for v in samples[at : at + 800]) > 1000 for at in range(0, len(samples), 800)
    ]
    silences = "".join(".#"[is_loud] for is_loud in loud).strip(".").split("." * 20)
    assert len([piece for piece in silences if "#" in piece]) == 3


def test_an_unknown_clip_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(SpeechFileError, match="caller"):
        load_clip("nobody")
