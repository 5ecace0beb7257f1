"""Recordings while they are written: a thread, a disk that hangs, a process that is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import structlog
import trio

from bridge.audio import SAMPLE_RATE
from bridge.records import wav
from bridge.records.wav import CallRecording
from tests.integration.records.waiting import until
from tests.unit.records.samples import SID
from tests.unit.records.wav_reading import LOUD, A, B, runs, samples

# Half of what a disk hangs in these tests.
NEVER_BLOCKS = 10.0


def test_a_killed_process_leaves_a_playable_file(tmp_path):
    program = (
        "import sys; from pathlib import Path; from bridge.records.wav import *\n"
        "file = WavFile(Path(sys.argv[1]), 'CA1')\n"
        "while True:\n"
        "    file.append(Stretch(bytes(8000), bytes(8000)).pcm())\n"
        "    print(flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        for _ in range(20):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    left, right = samples(tmp_path / "CA1.wav")
    assert len(left) >= 20 * 8000
    assert set(left) == set(right) == {LOUD[A]}


async def test_a_call_is_recorded(tmp_path):
    recording = CallRecording(tmp_path, SID)
    async with trio.open_nursery() as nursery:
        await nursery.start(recording.run)
        for number in range(500):
            at = 0.02 * number
            recording.caller(A * 160, at)
            if number == 50:
                recording.agent(B * 80_000, at)
            if number == 150:
                recording.cleared(at)
            if number % 50 == 0:
                await trio.sleep(0.005)
        recording.finish(10.0)
    left, right = samples(tmp_path / f"{SID}.wav")
    assert runs(left) == [(LOUD[A], 80_000)]
    assert runs(right) == [(0, 8_000), (LOUD[B], 16_000), (0, 56_000)]
    assert recording.path == tmp_path / f"{SID}.wav"
    assert recording.lost_seconds == 0


async def test_cancelled_it_keeps_all_there_is(tmp_path):
    recording = CallRecording(tmp_path, SID)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recording.run)
        await until(lambda: recording.path)
        for number in range(130):
            recording.caller(A * 160, 0.02 * number)
        nursery.cancel_scope.cancel()
    left, _ = samples(tmp_path / f"{SID}.wav")
    assert len(left) == 130 * 160


async def test_a_sid_that_is_none_ends_the_recording_and_nothing_else(tmp_path):
    recording = CallRecording(tmp_path, "../../x")
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recording.run)
            for number in range(1000):
                recording.caller(A * 160, 0.02 * number)
                await trio.lowlevel.checkpoint()
    assert [line["event"] for line in lines] == ["call not recorded"]
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path, monkeypatch):
    recording = CallRecording(tmp_path, SID)

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recording.run)
            await until(lambda: recording.path)
            with monkeypatch.context() as patch:
                patch.setattr(wav.os, "pwrite", full)
                for number in range(500):
                    recording.caller(A * 160, 0.02 * number)
                await until(lambda: not nursery.child_tasks)
                for number in range(500, 5000):
                    recording.caller(A * 160, 0.02 * number)
                    recording.agent(A * 160, 0.02 * number)
    assert {line["event"] for line in lines} == {"recording ends early"}
    assert len(recording._ready) < 50
    assert len(recording._timeline._caller) < 5 * SAMPLE_RATE


@pytest.mark.parametrize("where", ["append", "close"])
async def test_a_bug_ends_the_recording_and_nothing_else(tmp_path, monkeypatch, where):
    def broken(self: wav.WavFile, *_: object) -> None:
        raise RuntimeError("planted")

    recording = CallRecording(tmp_path, SID)
    with (
        structlog.testing.capture_logs() as lines,
        trio.fail_after(30),
        monkeypatch.context() as patch,
    ):
        patch.setattr(wav.WavFile, where, broken)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recording.run)
            for number in range(500):
                recording.caller(A * 160, 0.02 * number)
                await trio.lowlevel.checkpoint()
            recording.finish(10.0)
    assert {line["event"] for line in lines} == {"recording ends early"}
    assert all(isinstance(line["exc_info"], RuntimeError) for line in lines)
    assert recording._file is not None
    recording._file.close()


async def test_a_slow_disk_costs_the_recording_a_gap_and_the_call_nothing(tmp_path, monkeypatch):
    hold = threading.Event()
    really = os.pwrite
    monkeypatch.setattr(wav, "BACKLOG_SECONDS", 2.0)
    recording = CallRecording(tmp_path, SID)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recording.run)
        await until(lambda: recording.path)

        def slow(descriptor: int, data: bytes, offset: int) -> int:
            assert hold.wait(20)
            return really(descriptor, data, offset)

        monkeypatch.setattr(wav.os, "pwrite", slow)
        for number in range(1000):
            began = time.perf_counter()
            recording.caller(A * 160, 0.02 * number)
            assert time.perf_counter() - began < NEVER_BLOCKS
            if number == 100:
                await trio.sleep(0.05)
        hold.set()
        recording.finish(20.0)
    left, _ = samples(tmp_path / f"{SID}.wav")
    assert len(left) == 160_000
    assert recording.lost_seconds > 10
    assert left.count(0) == round(recording.lost_seconds * SAMPLE_RATE)


async def test_a_hanging_disk_cannot_hold_up_the_end(tmp_path, monkeypatch):
    hold = threading.Event()
    monkeypatch.setattr(wav, "CLOSE_SECONDS", 0.1)
    recording = CallRecording(tmp_path, SID)
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recording.run)
            await until(lambda: recording.path)
            monkeypatch.setattr(wav.os, "fsync", lambda descriptor: hold.wait(20))
            began = trio.current_time()
            recording.finish(1.0)
        assert trio.current_time() - began < NEVER_BLOCKS
    assert [line["event"] for line in lines] == ["recording ends early"]
    hold.set()
    # The thread's own closing, not the collector's.
    file = recording._file
    assert file is not None
    await until(lambda: file._file.closed)
