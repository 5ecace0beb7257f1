"""What was said, and how much of it was heard."""

from __future__ import annotations

from bridge.call.transcript import Transcript


def test_lines_that_are_left_out_cost_nothing_and_change_nothing() -> None:
    """An agent may write on and on without a word of audio, so that no mark ever settles a line."""
    transcript = Transcript(limit=2)
    transcript.agent("One.", 0.0)
    transcript.audio_sent(8000)
    transcript.agent("Two.", 1.0)
    transcript.audio_sent(8000)
    for number in range(1000):
        transcript.agent(f"Left out, {number}.", 2.0)
    assert len(transcript._open) == 3
    transcript.mark_sent("0:1")
    transcript.audio_sent(8000)
    transcript.mark_heard("0:1")
    assert [line.heard for line in transcript.lines] == ["heard", "heard"]
    assert transcript.left_out == 1000


def test_the_last_line_that_is_kept_ends_where_the_next_begins() -> None:
    transcript = Transcript(limit=1)
    transcript.agent("One.", 0.0)
    transcript.audio_sent(8000)
    transcript.agent("Two.", 1.0)
    transcript.audio_sent(8000)
    transcript.cleared(1.0)
    assert [(line.words, line.heard) for line in transcript.lines] == [("One.", "heard")]
