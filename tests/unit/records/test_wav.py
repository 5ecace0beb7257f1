"""Recordings: both sides at their time, playable at any moment, never in the call's way."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio import SAMPLE_RATE, SILENCE
from bridge.records import wav
from bridge.records.wav import CallRecording, Gap, RecordingError, Stretch, Timeline, WavFile, purge
from tests.unit.records.samples import NASTY, SID
from tests.unit.records.waiting import until

A, B = b"\x00", b"\x80"  # the loudest µ-law samples there are: -32124 and +32124
LOUD = {A: -32124, B: 32124}


def samples(path: Path) -> tuple[list[int], list[int]]:
    """Left and right of a file, by the standard library's reader."""
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (2, 2, SAMPLE_RATE)
        pcm = memoryview(file.readframes(file.getnframes())).cast("h").tolist()
        assert len(pcm) == 2 * file.getnframes()
    return pcm[::2], pcm[1::2]


def runs(side: list[int] | bytes) -> list[tuple[int, int]]:
    """Values and for how many samples: [(value, length), ...]."""
    result: list[tuple[int, int]] = []
    for value in side:
        if result and result[-1][0] == value:
            result[-1] = (value, result[-1][1] + 1)
        else:
            result.append((value, 1))
    return result


def whole(timeline: Timeline, at: float) -> tuple[bytes, bytes]:
    rest = timeline.rest(at)
    return b"".join(one.caller for one in rest), b"".join(one.agent for one in rest)


# ---- the timeline ------------------------------------------------------------------------------


def test_the_agent_is_heard_when_it_plays_not_when_it_is_sent():
    """Two seconds sent in one moment, then a second more."""
    timeline = Timeline()
    timeline.agent(A * 16_000, 1.0)
    timeline.agent(B * 8_000, 1.1)
    _, agent = whole(timeline, 5.0)
    assert runs(agent) == [(0xFF, 8_000), (0x00, 16_000), (0x80, 8_000), (0xFF, 8_000)]


def test_what_was_cleared_was_not_heard():
    timeline = Timeline()
    timeline.agent(A * 80_000, 0.0)
    timeline.cleared(2.0)
    timeline.agent(B * 8_000, 3.0)
    _, agent = whole(timeline, 5.0)
    assert runs(agent) == [(0x00, 16_000), (0xFF, 8_000), (0x80, 8_000), (0xFF, 8_000)]


def test_what_the_phone_had_not_played_at_the_end_was_not_heard():
    timeline = Timeline()
    timeline.agent(A * 80_000, 0.0)
    _, agent = whole(timeline, 2.0)
    assert runs(agent) == [(0x00, 16_000)]


@given(st.lists(st.floats(0, 0.3), min_size=300, max_size=300))
def test_jitter_makes_no_holes(delays: list[float]) -> None:
    """Packets of 20 ms, each late by up to 0.3 s: the caller's voice stays whole, at its time."""
    timeline = Timeline()
    caller, now = b"", 0.0
    for number, delay in enumerate(delays):
        now = max(now, 0.02 * (number + 1) + delay)
        timeline.caller(A * 160, now)
        if stretch := timeline.settled(now):
            caller += stretch.caller
    caller += b"".join(one.caller for one in timeline.rest(now))
    (lead, length) = (runs(caller)[0][1], runs(caller)[1][1])
    assert lead <= 0.35 * SAMPLE_RATE
    assert length == 300 * 160
    assert [value for value, _ in runs(caller)][2:] in ([], [0xFF])


def test_a_hole_in_the_callers_voice_is_silence():
    timeline = Timeline()
    timeline.caller(A * 160, 0.0)
    timeline.caller(A * 160, 5.0)
    caller, _ = whole(timeline, 6.0)
    assert runs(caller) == [(0x00, 160), (0xFF, 39_840), (0x00, 160), (0xFF, 7_840)]


steps = st.lists(
    st.tuples(
        st.sampled_from(["caller", "agent", "cleared"]), st.integers(0, 30_000), st.floats(0, 3)
    ),
    max_size=40,
)


@given(steps)
def test_any_call_is_as_long_as_it_took_and_bounded(steps: list[tuple[str, int, float]]) -> None:
    timeline, now, taken = Timeline(), 0.0, 0
    for kind, size, wait in steps:
        now += wait
        while stretch := timeline.settled(now):
            assert len(stretch.caller) == len(stretch.agent)
            taken += len(stretch.caller)
        if kind == "caller":
            timeline.caller(A * size, now)
        elif kind == "agent":
            timeline.agent(B * size, now)
        else:
            timeline.cleared(now)
        assert len(timeline._caller) <= (wav.CALLER_AHEAD_SECONDS + 3) * SAMPLE_RATE
        assert len(timeline._agent) <= (wav.AGENT_AHEAD_SECONDS + 3) * SAMPLE_RATE
    taken += sum(len(one.caller) for one in timeline.rest(now))
    assert round(now * SAMPLE_RATE) <= taken
    assert taken <= (now + wav.CALLER_AHEAD_SECONDS) * SAMPLE_RATE + 1


def test_a_flood_is_bounded():
    timeline = Timeline()
    for _ in range(1000):
        timeline.caller(A * 8000, 1.0)
        timeline.agent(A * 80_000, 1.0)
    caller, agent = len(timeline._caller), len(timeline._agent)
    assert caller == (1 + wav.CALLER_AHEAD_SECONDS) * SAMPLE_RATE
    assert agent == (1 + wav.AGENT_AHEAD_SECONDS) * SAMPLE_RATE


# ---- the file ----------------------------------------------------------------------------------


def test_the_caller_is_left_and_the_agent_right(tmp_path):
    file = WavFile(tmp_path, SID)
    file.append(Stretch(A * 3 + SILENCE * 2, SILENCE + B * 4).pcm())
    file.append(Gap(2).pcm())
    file.close()
    file.close()
    left, right = samples(tmp_path / f"{SID}.wav")
    assert left == [LOUD[A]] * 3 + [0, 0] + [0, 0]
    assert right == [0] + [LOUD[B]] * 4 + [0, 0]


def test_only_its_owner_may_listen(tmp_path):
    file = WavFile(tmp_path / "new", SID)
    file.close()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "call_sid", [*NASTY, "..", ".", "/etc/passwd", "a/b", "CA\n", "CA.wav", "C" * 65, "CA\u0661"]
)
def test_a_sid_that_is_none_makes_no_file(tmp_path, call_sid):
    (tmp_path / "inside").mkdir()
    with pytest.raises(RecordingError):
        WavFile(tmp_path / "inside", call_sid)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside"]


def test_what_is_there_is_never_overwritten(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / f"{SID}.wav").symlink_to(target)
    files = [WavFile(tmp_path, SID) for _ in range(19)]
    with pytest.raises(RecordingError, match="already"):
        WavFile(tmp_path, SID)
    for file in files:
        file.close()
    assert target.read_text() == "mine"
    assert len({file.path for file in files}) == 19
    assert {wav._FILE.fullmatch(file.path.name) is not None for file in files} == {True}


def test_it_is_playable_at_any_moment(tmp_path):
    file = WavFile(tmp_path, SID)
    for number in range(4):
        left, _ = samples(file.path)
        assert left == [LOUD[A]] * (800 * number)
        file.append(Stretch(A * 800, SILENCE * 800).pcm())
    file.close()


def test_after_a_write_that_failed_it_is_as_playable_as_before(tmp_path, monkeypatch):
    file = WavFile(tmp_path, SID)
    file.append(Stretch(A * 800, B * 800).pcm())
    really = os.pwrite

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) < 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, data[: len(data) // 2], offset)

    with monkeypatch.context() as patch:
        patch.setattr(wav.os, "pwrite", half)
        with pytest.raises(OSError, match="No space"):
            file.append(Stretch(B * 800, A * 800).pcm())
    assert samples(file.path) == ([LOUD[A]] * 800, [LOUD[B]] * 800)
    file.append(Stretch(A * 800, B * 800).pcm())
    file.close()
    assert samples(file.path) == ([LOUD[A]] * 1600, [LOUD[B]] * 1600)


def test_it_stops_where_a_header_cannot_say_more(tmp_path, monkeypatch):
    monkeypatch.setattr(wav, "_DATA_LIMIT", 4000)
    file = WavFile(tmp_path, SID)
    for _ in range(3):
        file.append(Stretch(A * 800, A * 800).pcm())
    file.close()
    assert len(samples(file.path)[0]) == 800


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


def test_purges_recordings_alone(tmp_path):
    now = datetime.now(UTC)
    old = (now - timedelta(days=40)).timestamp()
    for name in ("CA1.wav", "CA1-2.wav", "song of mine.wav", "CA1.mp3"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "CA2.wav").touch()
    (tmp_path / "CA3.wav").symlink_to(tmp_path / "CA1.mp3")
    assert purge(tmp_path, now - timedelta(days=30)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        *("song of mine.wav", "CA1.mp3", "CA2.wav", "CA3.wav")
    }
    assert purge(tmp_path / "nowhere", now) == 0


# ---- a call ------------------------------------------------------------------------------------


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
            assert time.perf_counter() - began < 0.25
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
        assert trio.current_time() - began < 1
    assert [line["event"] for line in lines] == ["recording ends early"]
    hold.set()
    # The thread's own closing, not the collector's.
    file = recording._file
    assert file is not None
    await until(lambda: file._file.closed)
