"""What the phone has played: by its marks, in order, and by the clock where none comes back."""

from __future__ import annotations

from bridge.call.playback import MARK_GRACE, Playback

SECOND = 8000


def test_a_mark_that_returns_was_heard() -> None:
    playback = Playback()
    playback.sent(SECOND, 0)
    mark = playback.next_mark()
    assert playback.may_be_playing
    assert playback.mark_returned(mark) == [mark]
    assert not playback.may_be_playing
    assert playback.mark_returned(mark) == []


def test_a_mark_settles_those_before_it() -> None:
    playback = Playback()
    marks = []
    for at in range(3):
        playback.sent(SECOND, at)
        marks.append(playback.next_mark())
    assert playback.mark_returned(marks[1]) == marks[:2]
    assert playback.mark_returned(marks[0]) == []
    assert playback.may_be_playing
    assert playback.mark_returned(marks[2]) == marks[2:]
    assert not playback.may_be_playing


def test_the_clock_settles_a_mark_that_never_comes_back() -> None:
    playback = Playback()
    playback.sent(3 * SECOND, 10)
    first = playback.next_mark()
    playback.sent(SECOND, 10)
    second = playback.next_mark()
    assert playback.overdue(13 + MARK_GRACE - 0.1) == []
    assert playback.overdue(13 + MARK_GRACE) == [first]
    assert playback.may_be_playing
    assert playback.overdue(14 + MARK_GRACE) == [second]
    assert not playback.may_be_playing
    assert playback.overdue(100) == []


def test_the_clock_settles_audio_that_got_no_mark() -> None:
    """Its session broke in the middle of a sentence."""
    playback = Playback()
    playback.sent(SECOND, 10)
    assert playback.overdue(11 + MARK_GRACE - 0.1) == []
    assert playback.may_be_playing
    assert playback.overdue(11 + MARK_GRACE) == []
    assert not playback.may_be_playing


def test_a_mark_of_cleared_audio_was_not_heard() -> None:
    playback = Playback()
    playback.sent(3 * SECOND, 0)
    mark = playback.next_mark()
    assert playback.cleared(1) == 2
    assert playback.mark_returned(mark) == []
    assert playback.overdue(100) == []
    assert not playback.may_be_playing
