"""The bridge's own transcript in `bridge phone`: the event stream, followed and shown."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bridge.cli.phone.caller import Plan, call, may_ask
from bridge.cli.phone.live_call import EventParser, LiveCall, follow
from bridge.cli.phone.result import as_json, summary
from bridge.cli.phone.view import CallView, bar, level
from bridge.testing.agent.server import AgentSession
from tests.unit.check.site import Response, site
from tests.unit.cli.phone.test_phone_command import quiet, tone
from tests.world import QUIET, on_loopback

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


def test_latencies_are_those_of_replies():
    live = LiveCall()
    turns = [
        {"caller_stopped_at": None, "first_audio_sent_at": 0.1},
        {"caller_stopped_at": 2.0, "first_audio_sent_at": 2.75},
        {"caller_stopped_at": 5.0, "first_audio_sent_at": None},
    ]
    live.apply("turns", {"from": 0, "items": turns})
    assert live.latencies == [0.75]


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


def stream(*events: tuple[str, dict[str, Any]], status: int = 200) -> Response:
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    return Response(status, body.encode(), {"Content-Type": "text/event-stream; charset=utf-8"})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (stream(("transcript", said("Hello.")), ("ended", {})), ""),
        (stream(("transcript", said("Hello."))), "its connection was lost"),
        (stream(("elsewhere", {"message": "another worker\n"})), "another worker\\n"),
        (stream(("unknown", {})), "does not know this call"),
        (Response(401), "BRIDGE_API_TOKEN"),
        (Response(404, b"{}"), "the server does not provide one"),
        (Response(200, b"<html>"), "the server does not provide one"),
    ],
)
async def test_following(answer, why):
    live, news = LiveCall(), []
    asked = []

    def respond(request):
        asked.append((request.path, request.headers.get("authorization")))
        return answer

    async with site(respond) as address:
        told = await follow(
            f"http://{address}/", SID, "the-token", live, lambda: news.append(words_of(live))
        )
    assert asked == [(f"/calls/{SID}/events", "Bearer the-token")]
    assert why in told
    assert bool(told) == bool(why)
    if b"Hello." in answer.body:
        assert news[0] == ["Hello."]


async def test_nobody_to_follow():
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert "transcript is incomplete" in await follow(url, SID, "", LiveCall(), lambda: None)


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


async def converses(session: AgentSession) -> None:
    await session.say("Good day.", tone(0.4))
    while True:
        await session.wait_for_end_of_speech()
        await session.user_said("One more, please.")
        await session.say("Here you are.", tone(0.4))


async def test_a_conversation_of_two_turns_on_the_real_server():
    """The second utterance waits for the reply to the first; the transcript is the bridge's."""

    # Longer than a busy machine holds a frame back, so that one utterance stays one; all at once,
    # so that a reply does.
    hearing = msgspec.structs.replace(QUIET, hears=True, speech_end=0.9, speed=0)
    output = io.StringIO()
    async with on_loopback(converses, hearing) as world:
        view = CallView(Console(file=output, force_terminal=True, width=100))
        caller = world.phone(on_event=view.event)
        plan = Plan(tone(0.4), then=(tone(0.4),), linger=2.5)
        with trio.fail_after(60):
            await call(caller, world.base_url, plan, view)
        await world.quiet()
    assert view.live is not None
    spoken = [(entry["role"], entry["words"]) for entry in view.live.transcript]
    reply = [("caller", "One more, please."), ("agent", "Here you are.")]
    assert spoken == [("agent", "Good day."), *reply, *reply]
    assert view.live.outcome == "caller_hung_up"
    # Alternating, as in a conversation.
    turns = [(turn.start, "agent") for turn in view.agent.turns]
    turns += [(turn.start, "caller") for turn in view.caller.turns]
    assert [who for _, who in sorted(turns)] == ["agent", "caller", "agent", "caller", "agent"]
    result = json.loads(as_json(caller, view))
    assert [entry["words"] for entry in result["transcript"]][-1] == "Here you are."
    assert len(result["latencies"]) == 2
    assert "at bridge median" in summary(caller, view, None)
    shown = output.getvalue()
    assert "Good day." in shown
    assert "█" in shown
    assert "reply" in shown
