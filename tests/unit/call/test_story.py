"""The story of a call: its lines, how much of each was heard, and the timings of each turn."""

from __future__ import annotations

import pytest

from bridge.call import story as stories
from bridge.call.story import Story
from bridge.call.voice import Voice


def test_lines_that_are_left_out_cost_nothing_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent may write on and on without a word of audio, so that no mark ever settles a line."""
    monkeypatch.setattr(stories, "MAX_LINES", 2)
    story = Story(0.0, Voice())
    story.agent_line("One.", 0.0)
    story.audio_sent(8000, 0.0, 0.0)
    story.agent_line("Two.", 1.0)
    story.audio_sent(8000, 1.0, 1.0)
    for number in range(1000):
        story.agent_line(f"Left out, {number}.", 2.0)
    assert len(story._open) == 3
    story.mark_sent("0:1")
    story.audio_sent(8000, 2.0, 2.0)
    story.mark_heard("0:1", 2.0)
    assert [line.heard for line in story.lines] == ["heard", "heard"]
    assert story.lines_left_out == 1000


def test_the_last_line_that_is_kept_ends_where_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stories, "MAX_LINES", 1)
    story = Story(0.0, Voice())
    story.agent_line("One.", 0.0)
    story.audio_sent(8000, 0.0, 0.0)
    story.agent_line("Two.", 1.0)
    story.audio_sent(8000, 1.0, 1.0)
    story.cleared(1.0, 1.0)
    assert [(line.words, line.heard) for line in story.lines] == [("One.", "heard")]


def test_a_line_that_is_cut_off_knows_how_much_of_it_was_heard() -> None:
    story = Story(0.0, Voice())
    story.agent_line("A long story.", 0.0)
    story.audio_sent(16000, 0.0, 0.0)
    story.agent_line("And more.", 0.5)
    story.audio_sent(8000, 0.5, 0.5)
    story.cleared(1.75, 0.5)
    assert [(line.heard, line.heard_seconds) for line in story.lines] == [
        ("cut", 1.25),
        ("unheard", None),
    ]


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (["es", "en"], ["es", "en"]),
        (None, []),
        ([], []),
        ("es", []),
        ({"es": 1}, []),
        ([None, 7, "es"], ["es"]),
        (["x" * 100] * 100, ["x" * stories.MAX_LANGUAGE] * stories.MAX_LANGUAGES),
    ],
)
def test_the_languages_of_the_callers_words(told: object, kept: list[str]) -> None:
    story = Story(0.0, Voice())
    story.caller_said("Hola", 1.0, told)
    (line,) = story.lines
    assert (line.words, line.languages) == ("Hola", kept)
