"""The turns of a call: their timings, and how long the caller waited for each reply."""

from __future__ import annotations

import math

import pytest

from bridge.call.turns import MAX_TURNS, Turn, Turns
from bridge.deepgram.messages import AgentStartedSpeaking, LatencyReport

SECOND = 8000


class Caller:
    """What the caller's audio tells."""

    def __init__(self) -> None:
        self.last_voiced_at = -math.inf


class Scene:
    """A call that began at 100 on the clock; all times here are seconds since."""

    def __init__(self) -> None:
        self.caller = Caller()
        self.turns = Turns(100.0, self.caller)
        self.position = 0
        self.plays_until = -math.inf

    def speech_ends(self, at: float) -> None:
        self.caller.last_voiced_at = 100.0 + at

    def confirmed(self, at: float, *, echo: bool = False) -> None:
        self.turns.confirmed(100.0 + at, echo=echo)

    def says(self, at: float, seconds: float = 1.0, *, reply: bool = True) -> None:
        """An utterance of the agent: its text, its audio in one piece, its end."""
        self.turns.line(self.position, reply=reply)
        self.sends(at, seconds)
        self.turns.utterance_done(self.position)

    def sends(self, at: float, seconds: float = 1.0) -> None:
        nbytes = round(seconds * SECOND)
        self.turns.audio_received(100.0 + at)
        plays_at = max(at, self.plays_until)
        self.turns.audio_sent(self.position, nbytes, 100.0 + at, 100.0 + plays_at)
        self.position += nbytes
        self.plays_until = plays_at + seconds

    def cleared(self, at: float) -> None:
        self.turns.cleared(100.0 + at)
        self.turns.utterance_done(self.position)
        self.plays_until = at

    @property
    def spoken(self) -> list[float | None]:
        return [turn.reply_seconds for turn in self.turns.all]

    @property
    def typed(self) -> list[float | None]:
        return [turn.typed_reply_seconds for turn in self.turns.all]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def about(seconds: float) -> object:
    return pytest.approx(seconds, abs=1e-6)


# ---- spoken turns -------------------------------------------------------------------------------


def test_the_clock_runs_from_the_end_of_the_speech_and_not_from_its_confirmation(
    scene: Scene,
) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.8)
    scene.says(3.25)
    (turn,) = scene.turns.all
    assert turn == Turn(
        speech_ended_at=2.0,
        confirmed_at=about(2.8),
        first_audio_received_at=3.25,
        first_audio_sent_at=3.25,
        reply_seconds=1.25,
    )


def test_what_the_agent_says_by_itself_is_no_reply(scene: Scene) -> None:
    scene.says(0.5)
    scene.says(9.0)
    assert (scene.spoken, scene.typed) == ([None], [None])


def test_only_the_first_audio_is_timed(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(3.0)
    scene.says(5.0)
    assert scene.spoken == [about(1.0)]


def test_a_turn_confirmed_in_parts_ends_with_the_last(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.speech_ends(4.0)
    scene.turns.caller_spoke()
    scene.confirmed(4.5)
    scene.says(5.0)
    assert scene.spoken == [about(1.0)]


def test_a_second_confirmation_of_the_same_speech_changes_nothing(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.confirmed(2.6)
    scene.says(3.0)
    assert scene.spoken == [about(1.0)]


def test_words_that_the_network_held_back_belong_to_the_turn(scene: Scene) -> None:
    """The agent takes the gap for the end of the turn; then the rest comes, spoken before that."""
    scene.speech_ends(2.0)
    scene.confirmed(2.9)
    scene.speech_ends(2.2)
    scene.turns.caller_spoke()
    scene.confirmed(3.5)
    scene.says(4.0)
    assert scene.spoken == [about(1.8)]


def test_a_noise_after_the_turn_does_not_shorten_the_wait(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.speech_ends(3.5)
    scene.says(4.0)
    assert scene.spoken == [about(2.0)]


def test_a_cough_is_no_turn(scene: Scene) -> None:
    scene.says(0.5)
    scene.turns.caller_spoke()
    scene.speech_ends(3.0)
    scene.says(4.0)
    assert scene.spoken == [None, None]


def test_a_cough_before_the_reply_leaves_the_question_unanswered(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.speech_ends(3.0)
    scene.turns.caller_spoke()
    scene.cleared(3.1)
    scene.says(4.0)
    assert scene.spoken == [about(2.0)]


def test_words_that_no_voice_was_heard_with_have_no_end(scene: Scene) -> None:
    """Too quiet to be heard, or long ago: the time is not known, and is not made up."""
    scene.confirmed(2.5)
    scene.says(3.0)
    scene.speech_ends(4.0)
    scene.confirmed(4.5)
    scene.says(5.0)
    scene.confirmed(60.0)
    scene.says(61.0)
    assert scene.spoken == [None, about(1.0), None]


def test_an_agent_that_speaks_over_the_caller_does_not_reply(scene: Scene) -> None:
    scene.speech_ends(2.5)
    scene.confirmed(2.5)
    scene.speech_ends(2.98)
    scene.says(3.0)
    assert scene.spoken == [None]


# ---- what the phone plays -----------------------------------------------------------------------


def test_a_reply_waits_for_what_still_plays(scene: Scene) -> None:
    scene.says(1.0, 5.0)
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(3.0)
    assert scene.spoken == [None, about(4.0)]


def test_a_reply_that_was_cleared_before_it_played_was_none(scene: Scene) -> None:
    scene.says(1.0, 5.0)
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(3.0)
    scene.cleared(4.0)
    scene.sends(4.5)  # what is left of it
    assert scene.spoken == [None, None]


def test_a_reply_that_was_cut_off_had_begun(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(3.0, 5.0)
    scene.turns.caller_spoke()
    scene.cleared(4.0)
    scene.speech_ends(5.0)
    scene.confirmed(5.5)
    scene.says(6.0)
    assert scene.spoken == [about(1.0), about(1.0)]


def test_every_reply_that_waits_is_cleared(scene: Scene) -> None:
    scene.says(1.0, 9.0)
    for at in (2.0, 4.0):
        scene.speech_ends(at)
        scene.confirmed(at + 0.5)
        scene.says(at + 1.0)
    assert scene.spoken == [None, about(8.0), about(7.0)]
    scene.cleared(6.0)
    assert scene.spoken == [None, None, None]


def test_a_caller_who_hangs_up_hears_no_more(scene: Scene) -> None:
    scene.says(1.0, 5.0)
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(3.0)
    scene.turns.over(104.0)
    assert scene.spoken == [None, None]


@pytest.mark.parametrize("confirmed", [False, True])
def test_nothing_that_comes_after_the_end_is_a_reply(scene: Scene, confirmed: bool) -> None:
    scene.speech_ends(2.0)
    if confirmed:
        scene.confirmed(2.5)
    scene.turns.over(102.6)
    if not confirmed:
        scene.confirmed(2.7)
    scene.says(3.0)
    assert scene.spoken == [None]


# ---- words of bridge's own ----------------------------------------------------------------------


def test_a_filler_is_no_reply(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(12.5, reply=False)
    scene.says(15.0)
    assert scene.spoken == [about(13.0)]


def test_a_reply_right_behind_a_filler_begins_where_its_own_words_do(scene: Scene) -> None:
    """Both in one piece of audio: half a second of the filler, then the reply."""
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.turns.line(0, reply=False)
    scene.turns.line(SECOND // 2, reply=True)
    scene.sends(4.0)
    assert scene.spoken == [about(2.5)]


def test_words_given_again_to_a_new_session_are_still_the_callers(scene: Scene) -> None:
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(12.5, reply=False)
    scene.turns.utterance_done(scene.position)
    scene.confirmed(23.0, echo=True)
    scene.says(24.0)
    assert scene.spoken == [about(22.0)]
    assert scene.typed == [None]


# ---- typed turns --------------------------------------------------------------------------------


def test_a_typed_turn_is_measured_from_where_it_was_typed_and_apart(scene: Scene) -> None:
    scene.speech_ends(1.0)
    scene.turns.typed(104.0)
    scene.confirmed(6.0, echo=True)
    scene.says(6.5)
    (turn,) = scene.turns.all
    assert (turn.typed_at, turn.speech_ended_at) == (4.0, None)
    assert (turn.typed_reply_seconds, turn.reply_seconds) == (2.5, None)


def test_typing_waits_for_nobody_to_fall_silent(scene: Scene) -> None:
    """A voice in the room is none of a typed turn's."""
    scene.turns.typed(104.0)
    scene.confirmed(4.1, echo=True)
    scene.speech_ends(4.99)
    scene.says(5.0)
    assert (scene.spoken, scene.typed) == ([None], [about(1.0)])


def test_the_last_words_decide_how_a_turn_was_given(scene: Scene) -> None:
    scene.turns.typed(101.0)
    scene.confirmed(1.1, echo=True)
    scene.speech_ends(2.0)
    scene.confirmed(2.5)
    scene.says(3.0)
    assert (scene.spoken, scene.typed) == ([about(1.0)], [None])


def test_what_the_agent_is_saying_does_not_reply_to_what_is_typed_meanwhile(scene: Scene) -> None:
    scene.turns.line(0, reply=True)
    scene.sends(1.0)
    scene.turns.typed(102.0)
    scene.confirmed(2.1, echo=True)
    scene.sends(2.2)
    scene.turns.utterance_done(scene.position)
    scene.says(3.0)
    assert scene.typed == [None, about(1.2)]


# ---- the rest of a turn -------------------------------------------------------------------------


def test_a_turn_that_was_cut_off_was_not_heard_and_its_mark_is_forgotten(scene: Scene) -> None:
    scene.says(1.0)
    scene.turns.mark_sent("0:1")
    scene.cleared(1.5)
    scene.turns.mark_heard("0:1", 103.0)
    (turn,) = scene.turns.all
    assert (turn.first_audio_sent_at, turn.heard_at) == (1.0, None)


def test_only_the_turn_before_the_mark_is_heard(scene: Scene) -> None:
    scene.says(1.0)
    scene.turns.mark_sent("0:1")
    scene.confirmed(2.0)
    scene.says(3.0)
    scene.turns.mark_sent("0:2")
    scene.turns.mark_heard("0:1", 104.0)
    assert [turn.heard_at for turn in scene.turns.all] == [4.0, None]


def test_deepgrams_figures_keep_their_names_and_stand_beside(scene: Scene) -> None:
    scene.turns.latencies(LatencyReport(stt_latency=0.1))  # before any turn
    scene.confirmed(2.0)
    scene.turns.latencies(LatencyReport(stt_latency=0.2))
    scene.turns.latencies(LatencyReport(ttt_text_latency=0.3))
    scene.turns.latencies(AgentStartedSpeaking(total_latency=0.9, tts_latency=0.4, ttt_latency=0.5))
    scene.says(3.0)
    # Reported all the time: of the caller's next words.
    scene.turns.latencies(LatencyReport(stt_latency=0.7))
    scene.turns.latencies(LatencyReport(total_latency=1.0))
    (turn,) = scene.turns.all
    assert turn.latencies == {
        "stt_latency": 0.2,
        "ttt_text_latency": 0.3,
        "ttt_latency": 0.5,
        "tts_latency": 0.4,
        "total_latency": 1.0,
    }


def test_a_call_of_days_does_not_fill_the_memory(scene: Scene) -> None:
    for number in range(MAX_TURNS + 10):
        scene.speech_ends(10.0 * number + 1)
        scene.confirmed(10.0 * number + 2)
        scene.says(10.0 * number + 3)
    assert len(scene.turns.all) == MAX_TURNS
    assert scene.spoken[0] == scene.spoken[-1] == about(2.0)
    assert len(scene.turns._waiting) < 3
