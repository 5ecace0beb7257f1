"""Recordings: both sides at their time, playable at any moment, never in the call's way."""

from __future__ import annotations

import errno
import os
import random
import stat
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio import SAMPLE_RATE, SILENCE
from bridge.records import wav
from bridge.records.wav import Gap, RecordingError, Stretch, Timeline, WavFile, purge
from bridge.twilio.media_clock import MediaClock
from tests.unit.records.samples import NASTY, SID
from tests.unit.records.wav_reading import LOUD, A, B, runs, samples


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


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_jitter_makes_no_holes(seed: int) -> None:
    """Packets of 20 ms, each late by up to 0.3 s, but the first: the caller's voice stays whole, at
    its time. Each packet is another sample, so that one in the wrong place would be seen."""
    timeline, clock, delays = Timeline(), MediaClock(), random.Random(seed)
    caller, now = b"", 0.0
    for number in range(300):
        now = max(now, 0.02 * number + (delays.uniform(0, 0.3) if number else 0.0))
        timeline.caller(bytes([number % 250]) * 160, clock.spoken_at(str(155 + 20 * number), now))
        if stretch := timeline.settled(now):
            caller += stretch.caller
    caller += b"".join(one.caller for one in timeline.rest(now))
    assert caller.rstrip(SILENCE) == b"".join(bytes([n % 250]) * 160 for n in range(300))


@pytest.mark.parametrize("stall", [0.5, 1.5, 4.0])
def test_a_stall_of_the_line_shifts_nothing(stall: float) -> None:
    """The caller's audio is held back from the second second on, while the agent speaks, and comes
    all at once. What came too late for the file is silence; what follows is at its time again."""
    timeline, clock = Timeline(), MediaClock()
    caller = b""
    for number in range(500):
        spoken = 0.02 * number
        now = 2 + stall if 2 <= spoken < 2 + stall else spoken
        if spoken == 2.0:
            for tick in range(round(stall * 10)):
                timeline.agent(B * 800, 2 + tick / 10)
                if stretch := timeline.settled(2 + tick / 10):
                    caller += stretch.caller
        timeline.caller(bytes([number % 250]) * 160, clock.spoken_at(str(155 + 20 * number), now))
        if stretch := timeline.settled(now):
            caller += stretch.caller
    caller += b"".join(one.caller for one in timeline.rest(10.0))
    wanted = b"".join(bytes([n % 250]) * 160 for n in range(500))
    assert len(caller) == len(wanted)
    lost = [at for at, pair in enumerate(zip(caller, wanted, strict=True)) if pair[0] != pair[1]]
    assert len(lost) <= max(0.0, stall - 1 + 0.2) * SAMPLE_RATE
    assert all(caller[at] == 0xFF and 2 <= at / SAMPLE_RATE < 2 + stall for at in lost)


def test_audio_that_was_lost_leaves_a_hole_of_its_length() -> None:
    """Not even half a second of it shifts what follows."""
    timeline = Timeline()
    for number in range(100):
        if not 40 <= number < 65:
            timeline.caller(A * 160, 0.02 * number)
    caller, _ = whole(timeline, 2.0)
    assert runs(caller) == [(0x00, 6_400), (0xFF, 4_000), (0x00, 5_600)]


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
    assert SAMPLE_RATE < caller <= (1 + wav.CALLER_AHEAD_SECONDS) * SAMPLE_RATE
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
