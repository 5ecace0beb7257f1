"""Following a live call, over real sockets."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest
import trio
from rich.console import Console

from bridge.cli.phone.caller import Plan, call
from bridge.cli.phone.live_call import LiveCall, follow
from bridge.cli.phone.result import as_json, summary
from bridge.cli.phone.view import CallView
from bridge.testing.agent.server import AgentSession
from tests.integration.check.site import Response, site
from tests.unit.cli.phone.tones import tone
from tests.world import API_TOKEN, QUIET, on_loopback

SID = "CA" + "0" * 32


def line(words: str, role: str = "agent", at: float = 1.0, heard: str = "") -> dict[str, Any]:
    return {"at": at, "role": role, "words": words, "heard": heard, "heard_seconds": None}


def said(*words: str, start: int = 0) -> dict[str, Any]:
    return {"call_sid": SID, "from": start, "items": [line(one) for one in words]}


def words_of(live: LiveCall) -> list[str]:
    return [entry["words"] for entry in live.transcript]


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


async def test_no_server_to_follow():
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert "transcript is incomplete" in await follow(url, SID, "", LiveCall(), lambda: None)


async def converses(session: AgentSession) -> None:
    await session.say("Good day.", tone(0.4))
    while True:
        await session.wait_for_end_of_speech()
        await session.user_said("One more, please.")
        await session.say("Here you are.", tone(0.4))


async def test_a_conversation_of_two_turns_on_the_real_server(monkeypatch):
    """The second utterance waits for the reply to the first; the transcript is the bridge's."""

    # Longer than a busy machine holds a frame back, so that one utterance stays one; all at once,
    # so that a reply does.
    monkeypatch.setenv("BRIDGE_API_TOKEN", API_TOKEN)
    hearing = msgspec.structs.replace(QUIET, hears=True, speech_end=1.5, speed=0)
    output = io.StringIO()
    async with on_loopback(converses, hearing) as world:
        view = CallView(Console(file=output, force_terminal=True, width=100))
        caller = world.phone(on_event=view.event)
        plan = Plan(tone(0.4), then=(tone(0.4),), linger=6)
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
    # A busy machine is late on both sides.
    assert result["at_bridge"]["reply_seconds"] == pytest.approx(result["reply_seconds"], abs=0.5)
    assert len(result["reply_seconds"]) == 2
    assert min(result["reply_seconds"]) > 0.8
    assert "at bridge median" in summary(caller, view, None)
    shown = output.getvalue()
    assert "Good day." in shown
    assert "█" in shown
    assert "reply" in shown
