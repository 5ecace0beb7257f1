"""The bridge's own transcript in `bridge phone`: the event stream, followed and shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bridge.cli.phone.caller import may_ask
from bridge.cli.phone.live_call import EventParser, LiveCall
from bridge.cli.phone.view import CallView, bar, level
from tests.unit.cli.phone.tones import quiet, tone

SID = "CA" + "0" * 32


def line(words: str, role: str = "agent", at: float = 1.0, heard: str = "") -> dict[str, Any]:
    return {"at": at, "role": role, "words": words, "heard": heard, "heard_seconds": None}


def said(*words: str, start: int = 0) -> dict[str, Any]:
    return {"call_sid": SID, "from": start, "items": [line(one) for one in words]}


def words_of(live: LiveCall) -> list[str]:
    return [entry["words"] for entry in live.transcript]


def test_events_change_what_is_known():
    live = LiveCall()
    live.apply("snapshot", {"call": {"state": "listening", "transcript": [line("Hello.")]}})
    live.apply("transcript", said("How are you?", start=1))
    assert words_of(live) == ["Hello.", "How are you?"]
    live.apply("transcript", said("Who are you?", start=1))
    assert words_of(live) == ["Hello.", "Who are you?"]
    live.apply("call", {"state": "speaking"})
    assert live.state == "speaking"
    live.apply("snapshot", {"call": {"transcript": [line("Anew.")]}})
    assert words_of(live) == ["Anew."]
    live.apply("ended", {"outcome": "caller_hung_up"})
    assert (live.over, live.outcome) == (True, "caller_hung_up")


def test_reply_times_are_the_servers_own_and_typed_ones_are_apart():
    live = LiveCall()
    turns = [
        {"confirmed_at": None, "reply_seconds": None, "typed_reply_seconds": None},
        {"confirmed_at": 2.0, "reply_seconds": 0.75, "typed_reply_seconds": None},
        {"confirmed_at": 5.0, "reply_seconds": None, "typed_reply_seconds": 0.25},
        {"confirmed_at": 7.0},
        {"reply_seconds": "soon"},
    ]
    live.apply("turns", {"from": 0, "items": turns})
    assert (live.reply_seconds, live.typed_reply_seconds) == ([0.75], [0.25])


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("snapshot", {}),
        ("snapshot", {"call": []}),
        ("snapshot", {"call": {"transcript": 3, "turns": ["x"]}}),
        ("transcript", {"from": -1, "items": []}),
        ("transcript", {"from": 9, "items": [{}]}),
        ("transcript", {"from": "0", "items": None}),
        ("turns", {}),
        ("weather", {"sunny": True}),
    ],
)
def test_what_is_not_as_agreed_changes_nothing(event, data):
    live = LiveCall()
    live.apply(event, data)
    assert (live.transcript, live.turns, live.over) == ([], [], False)


@given(st.lists(st.text(max_size=40)))
def test_any_lines_are_taken(lines):
    parser, live = EventParser(), LiveCall()
    for text in lines:
        if found := parser.feed(text):
            live.apply(*found)


def test_lines_become_events():
    parser = EventParser()
    text = ': still here\nevent: call\ndata: {"a":\ndata: 1}\nid: 7\n\ndata: nonsense\n\n\n'
    found = [event for event in map(parser.feed, text.split("\n")) if event]
    assert found == [("call", {"a": 1})]


def test_what_is_said_is_shown_once_and_safely(capsys):
    view = CallView(Console(stderr=True))
    view.live = LiveCall()
    view.live.apply("transcript", said("Hello."))
    view.news()
    view.news()
    view.live.apply("transcript", said("Hello.", "\x1b[31mred"))
    view.live.transcript.append(line("5#", "keypad", at=4.0))
    view.news()
    assert capsys.readouterr().err.splitlines() == [
        "00:01.0 agent: “Hello.”",
        "00:01.0 agent: “\\x1b[31mred”",
        "00:04.0 keypad pressed 5#",
    ]


def test_who_is_asked():
    assert may_ask("http://127.0.0.1:5000", "")
    assert may_ask("https://voice.example.com", "token")
    assert not may_ask("https://voice.example.com", "")
    assert not may_ask("http://voice.example.com", "token")


def test_levels():
    assert level(b"") == level(quiet(0.1)) == 0.0
    assert 0.4 < level(tone(0.1)) <= 1.0
    assert bar(0.0) == "·" * 12
    assert bar(1.0) == "█" * 12
    assert len(bar(0.37)) == 12
