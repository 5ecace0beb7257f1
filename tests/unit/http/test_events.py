"""The event streams as HTTP: who gets them, when they end, and what of calls that are not here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import trio

from bridge.http.events import BEGIN_SECONDS, HEARTBEAT
from bridge.live import hub as live_module
from tests.unit.http.world import SID, ControlWorld
from tests.watching import read_events

OVER = {
    "call_sid": SID,
    "started_at": "2026-01-01T10:00:00Z",
    "caller": "+15551234567",
    "seconds": 12.5,
    "outcome": "caller_hung_up",
    "reason": "the phone said stop",
    "revision": 3,
    "transcript": [{"at": 1.0, "role": "agent", "words": "Hello."}],
}


class EventWorld(ControlWorld):
    """The control API with a hub that has no calls."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.hub = self.bridge.live

    async def events(self, sid: str = SID) -> list[tuple[str, Mapping[str, Any]]]:
        """All of a stream that ends by itself."""
        answer = await self.ask("GET", f"/calls/{sid}/events")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.content.startswith(b"retry: ")
        return list(read_events(answer.content.split(b"\n\n", 1)[1]))


@pytest.fixture
def world() -> EventWorld:
    return EventWorld()


async def test_a_call_that_is_over_is_told_from_its_record(world: EventWorld) -> None:
    world.records.stored[SID] = dict(OVER)
    (first, snapshot), (last, ended) = await world.events()
    assert (first, last) == ("snapshot", "ended")
    assert snapshot["call"] | OVER == snapshot["call"]
    assert snapshot["call"]["functions"] == []
    facts = {name: OVER[name] for name in ("call_sid", "outcome", "reason", "seconds")}
    assert ended == {**facts, "at": 12.5}


async def test_a_call_of_another_process_is_said_to_be_elsewhere(world: EventWorld) -> None:
    world.records.stored[SID] = {**OVER, "outcome": "", "revision": 1}
    ((name, data),) = await world.events()
    assert (name, data["call_sid"]) == ("elsewhere", SID)


async def test_a_call_that_is_not_begun_is_waited_for_and_given_up(
    world: EventWorld, autojump_clock: trio.testing.MockClock
) -> None:
    """A report of Twilio's that it rings does not say that a process carries it."""
    world.records.stored[SID] = {"call_sid": SID, "status": "ringing", "status_sequence": 1}
    began = trio.current_time()
    ((name, data),) = await world.events()
    assert (name, data["call_sid"]) == ("unknown", SID)
    assert BEGIN_SECONDS <= trio.current_time() - began <= BEGIN_SECONDS + 2
    assert len(world.hub) == 0


async def test_a_call_that_ends_elsewhere_meanwhile_is_found(
    world: EventWorld, autojump_clock: trio.testing.MockClock
) -> None:
    async def record() -> None:
        await trio.sleep(5)
        world.records.stored[SID] = dict(OVER)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(record)
        assert [name for name, _ in await world.events()] == ["snapshot", "ended"]


@pytest.mark.parametrize("sid", ["x", "CA", "CA123!"])
async def test_what_is_no_sid_is_not_waited_for(world: EventWorld, sid: str) -> None:
    answer = await world.ask("GET", f"/calls/{sid}/events")
    assert answer.status_code == 404
    assert answer.json() == {"error": "a call's SID is CA and 32 hexadecimal digits"}


@pytest.mark.parametrize("path", ["/events", f"/calls/{SID}/events"])
async def test_only_clients_with_the_token_watch(world: EventWorld, path: str) -> None:
    async with world.client(token="") as stranger:
        answer = await stranger.get(path)
    assert answer.status_code == 401
    async with world.client() as operator:
        answer = await operator.get(path, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/events", f"/calls/{SID}/events"])
async def test_the_head_alone_is_answered_at_once(world: EventWorld, path: str) -> None:
    with trio.fail_after(5):
        answer = await world.ask("HEAD", path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert len(world.hub) == 0


async def test_nobody_watches_without_the_token() -> None:
    world = EventWorld(token="")
    async with world.client(host="127.0.0.1", peer="127.0.0.1") as near:
        assert (await near.get("/events")).status_code == 401


@pytest.mark.parametrize("path", ["/events", f"/calls/{SID}/events"])
async def test_too_many_viewers_are_told_so(
    world: EventWorld, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("bridge.live.hub", "bridge.http.events"):
        monkeypatch.setattr(f"{module}.MAX_VIEWERS", 2)
    with ExitStack() as others:
        for _ in range(2):
            others.enter_context(world.hub.watching())
        answer = await world.ask("GET", path)
    assert answer.status_code == 503
    assert answer.json() == {"error": "2 are watching already; close one of the pages that do"}
    assert live_module.MAX_VIEWERS == 2


@pytest.mark.parametrize("path", ["/events", f"/calls/{SID}/events"])
async def test_a_server_that_stops_ends_streams_and_begins_none(
    world: EventWorld, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def stop() -> None:
        await trio.sleep(11)
        world.hub.close()

    answers: list[httpx.Response] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        answers.append(await world.ask("GET", path))
        assert trio.current_time() < BEGIN_SECONDS
    assert answers[0].status_code == 200
    assert HEARTBEAT in answers[0].content
    answer = await world.ask("GET", path)
    assert (answer.status_code, answer.json()) == (503, {"error": "the server is stopping"})
