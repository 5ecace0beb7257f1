"""The detector of the caller's speech, on the clock of the audio."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.testing.agent.hearing import MAX_UTTERANCE, Heard, Onset, SpeechDetector
from bridge.testing.agent.voice import hum

SILENCE = b"\xff"
SECOND = 8000
CALL = SILENCE * SECOND + hum(1.5) + SILENCE * SECOND + hum(0.6) + SILENCE * SECOND


def test_silence_is_not_speech() -> None:
    assert SpeechDetector().feed(SILENCE * 60 * SECOND) == []


def test_an_utterance_begins_and_ends_where_its_sound_does() -> None:
    onset, heard = SpeechDetector().feed(SILENCE * SECOND + hum(1.5) + SILENCE * SECOND)
    assert isinstance(onset, Onset)
    assert isinstance(heard, Heard)
    assert onset.start == pytest.approx(1.0, abs=0.05)
    assert heard.start == onset.start
    assert heard.end == pytest.approx(2.5, abs=0.05)
    assert heard.seconds == pytest.approx(1.5, abs=0.1)
    assert hum(1.5) in heard.audio, "nothing of the utterance may be cut off"
    assert len(heard.audio) < len(hum(1.5)) + 0.5 * SECOND, "the pause is no part of it"


def test_onset_is_reported_after_a_tenth_of_a_second_and_end_after_half() -> None:
    detector = SpeechDetector()
    assert detector.feed(hum(1.0)[800 : 800 + 799]) == []
    assert detector.feed(hum(1.0)[1599:1600]) == [Onset(0.0)]
    assert detector.feed(SILENCE * 3999) == []
    assert [type(event) for event in detector.feed(SILENCE)] == [Heard]


def test_a_click_is_not_speech() -> None:
    click = hum(1.0)[800 : 800 + 4 * 160]
    assert SpeechDetector().feed(SILENCE * SECOND + click + SILENCE * SECOND) == []


def test_short_pauses_do_not_end_an_utterance_however_many() -> None:
    events = SpeechDetector().feed((hum(0.5) + SILENCE * 3200) * 5 + SILENCE * SECOND)
    assert [type(event) for event in events] == [Onset, Heard]


def test_noise_without_a_pause_is_cut_so_that_memory_stays_bounded() -> None:
    detector = SpeechDetector()
    heard = [event for event in detector.feed(hum(200)) if isinstance(event, Heard)]
    assert len(heard) == 3
    assert max(len(event.audio) for event in heard) <= MAX_UTTERANCE


def test_a_turn_can_be_ended_by_force() -> None:
    detector = SpeechDetector()
    assert detector.end_turn() is None
    detector.feed(hum(0.5))
    heard = detector.end_turn()
    assert heard is not None
    assert heard.seconds == pytest.approx(0.5, abs=0.05)
    assert detector.feed(SILENCE * SECOND) == []


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=30))
def test_how_audio_is_cut_makes_no_difference(sizes: list[int]) -> None:
    detector = SpeechDetector()
    events = []
    position = 0
    while position < len(CALL):
        for size in sizes:
            events += detector.feed(CALL[position : position + size])
            position += size
    assert events == SpeechDetector().feed(CALL)
    assert len(events) == 4
