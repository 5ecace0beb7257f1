"""When things happened in each turn."""

from __future__ import annotations

from bridge.call.turns import Turns


def test_a_turn_that_was_cut_off_was_not_heard_and_its_mark_is_forgotten() -> None:
    turns = Turns(began_at=10.0)
    turns.caller_said(11.0)
    turns.agent_audio(12.0)
    turns.audio_sent(12.0)
    turns.mark_sent("0:1")
    turns.cleared()
    turns.mark_heard("0:1", 13.0)
    (turn,) = turns.all
    assert turn.audio_sent_at == 2.0
    assert turn.heard_at is None


def test_only_the_turn_before_the_mark_is_heard() -> None:
    turns = Turns(began_at=0.0)
    turns.agent_audio(1.0)
    turns.mark_sent("0:1")
    turns.caller_said(2.0)
    turns.agent_audio(3.0)
    turns.mark_sent("0:2")
    turns.mark_heard("0:1", 4.0)
    assert [turn.heard_at for turn in turns.all] == [4.0, None]
