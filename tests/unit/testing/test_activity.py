"""Telling voice from silence on one side of a call."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.testing.activity import SpeechTurn, VoiceDetector, key_press, reply_to
from bridge.testing.speech import load_clip, pcm_to_ulaw

QUIET = b"\xff"


def tone(seconds: float) -> bytes:
    count = round(8000 * seconds)
    return pcm_to_ulaw(array("h", [round(9000 * math.sin(i / 3)) for i in range(count)]).tobytes())


def test_a_turn_begins_with_its_first_loud_frame_and_ends_with_its_last():
    detector = VoiceDetector(start=10.0)
    assert detector.feed(QUIET * 8000) == []
    assert detector.feed(tone(1.0)) == [SpeechTurn(pytest.approx(11.0), None)]
    assert detector.feed(QUIET * 3200) == []
    assert detector.feed(QUIET * 1600) == [SpeechTurn(pytest.approx(11.0), pytest.approx(12.0))]
    assert detector.turns == [SpeechTurn(pytest.approx(11.0), pytest.approx(12.0))]
    assert detector.speaking_since is None


def test_a_pause_between_words_is_no_end():
    detector = VoiceDetector()
    detector.feed(tone(0.5) + QUIET * 2400 + tone(0.5) + QUIET * 8000)
    assert len(detector.turns) == 1


def test_a_click_is_no_word():
    detector = VoiceDetector()
    assert detector.feed(QUIET * 1600 + tone(0.04) + QUIET * 8000) == []


def test_a_turn_still_on_can_be_finished():
    detector = VoiceDetector()
    detector.feed(tone(1.0))
    assert detector.finish() == [SpeechTurn(pytest.approx(0.0), pytest.approx(1.0))]
    assert detector.finish() == []


@pytest.mark.parametrize(
    ("caller", "agent", "seconds"),
    [
        pytest.param([], [], None, id="a greeting"),
        pytest.param([SpeechTurn(6, 9)], [], None, id="the caller spoke later only"),
        pytest.param([SpeechTurn(1, 4.5)], [SpeechTurn(0, 0.9)], 0.5, id="a reply"),
        pytest.param(
            [SpeechTurn(1, 2), SpeechTurn(3, 4)], [], 1.0, id="to the last of several turns"
        ),
        pytest.param(
            [SpeechTurn(1, 4), SpeechTurn(6, 7)],
            [SpeechTurn(5, 8)],
            1.0,
            id="what came later is nothing",
        ),
        pytest.param([SpeechTurn(1, 4)], [SpeechTurn(0, 2)], 1.0, id="after an interruption"),
        pytest.param([SpeechTurn(1, 4), SpeechTurn(4.5, None)], [], None, id="the caller speaks"),
        pytest.param([SpeechTurn(1, 5.5)], [], None, id="the caller spoke on"),
        pytest.param(
            [SpeechTurn(1, 2)], [SpeechTurn(0, 4)], None, id="the agent went on, and paused"
        ),
        pytest.param(
            [SpeechTurn(1, 2)], [SpeechTurn(3, 4)], None, id="the reply's second sentence"
        ),
    ],
)
def test_a_reply_takes_from_the_end_of_the_callers_speech(caller, agent, seconds):
    reply = reply_to(5.0, caller, agent)
    assert (reply and reply[1]) == seconds


@pytest.mark.parametrize(
    ("played", "seconds"),
    [
        pytest.param([(0.5, 0.9), (4.9, 6.0)], 0.9, id="a reply whose audio begins silently"),
        pytest.param([(4.8, 4.95), (5.0, 6.0)], 0.8, id="and with a gap of the network's"),
        pytest.param([(4.2, 4.8), (5.0, 6.0)], 1.0, id="a sound before it is none of it"),
        pytest.param([(0.0, 9.0)], 1.0, id="audio without an end: what can be heard counts"),
    ],
)
def test_a_reply_begins_with_its_first_audio(played, seconds):
    turn = SpeechTurn(1, 4)
    assert reply_to(5.0, [turn], [], played) == (turn, pytest.approx(seconds))


def test_a_reply_to_a_key_is_known_by_its_turn():
    turns = [SpeechTurn(1, 2), key_press(4.5)]
    assert reply_to(5.0, turns, [SpeechTurn(3, 4.6)]) == (key_press(4.5), 0.5)
    assert reply_to(5.0, turns, [SpeechTurn(3, 4.8)]) is None, "the key did not interrupt it"


@given(st.lists(st.integers(0, 20_000), max_size=10))
def test_how_the_audio_is_cut_up_makes_no_difference(cuts):
    clip = load_clip("caller")
    whole, pieces = VoiceDetector(), VoiceDetector()
    whole.feed(clip)
    at = 0
    for cut in cuts:
        pieces.feed(clip[at : at + cut])
        at += cut
    pieces.feed(clip[at:])
    assert pieces.turns == whole.turns
    assert len(whole.turns) == 2  # the third utterance is still on when the clip ends
