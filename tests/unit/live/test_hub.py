"""The events that viewers get, on the virtual clock and through the whole stack."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

import bridge.live.hub
import bridge.live.viewer
from bridge.functions import Functions
from bridge.live import view
from bridge.live.diff import TAIL
from bridge.live.hub import MAX_VIEWERS, Live, Stopped, TooManyViewers
from bridge.testing.agent.server import AgentSession, Behaviour
from tests.watching import LISTS, Watcher
from tests.world import QUIET, World, in_memory, settings

Clock = trio.testing.MockClock
SECOND = bytes(range(1, 251)) * 32


def quiet(**knobs: Any) -> Behaviour:
    return msgspec.structs.replace(QUIET, **knobs)


def live_of(world: World) -> Live:
    live: Live = world.app.extensions["bridge"].live
    return live


def call_of(world: World) -> Any:
    (call,) = world.app.extensions["bridge"].calls
    return call


async def get_time() -> str:
    """The time, which takes a second to find out."""
    await trio.sleep(1)
    return "noon"


async def script(agent: AgentSession) -> None:
    """A greeting, a reply that is cut off, a function, and its result."""
    await agent.say("Hello.", SECOND)
    await trio.sleep(2)
    await agent.user_started_speaking()
    await agent.user_said("What time is it?")
    await trio.sleep(0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.say, "It is a long story.", SECOND * 4)
        await trio.sleep(2)
        await agent.user_started_speaking()
    await agent.user_said("No, the time.")
    await agent.call_functions([{"name": "get_time", "arguments": "{}"}], timeout=5)
    await agent.say("It is noon.", SECOND)


async def one_call(world: World) -> None:
    world.app.extensions["bridge"].functions.loaded[""] = Functions.of(get_time)
    async with world.call() as phone:
        await trio.sleep(10)
        await phone.hang_up()
    await world.quiet()


async def test_a_call_from_its_beginning_to_its_end(autojump_clock: Clock) -> None:
    watcher = Watcher()
    async with in_memory(script, quiet(speed=2.0, stale_chunks=0)) as world:
        with live_of(world).watching() as viewer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_call, world)
                await watcher.watch(viewer, 9)
                call = watcher.call
                await watcher.watch(viewer, 6)
    assert watcher.names[:2] == ["snapshot", "began"]
    assert watcher.names[-2:] == ["ended", "server"]
    assert watcher.states() == [
        *("speaking", "listening", "thinking", "speaking"),
        *("thinking", "speaking", "listening", "ending"),
    ]
    assert watcher.lines(call) == [
        ("agent", "Hello.", "heard"),
        ("caller", "What time is it?", "heard"),
        ("agent", "It is a long story.", "cut"),
        ("caller", "No, the time.", "heard"),
        ("agent", "It is noon.", "heard"),
    ]
    assert call["transcript"][2]["heard_seconds"] == pytest.approx(2, abs=0.2)
    (function,) = call["functions"]
    assert function == {"at": function["at"], "name": "get_time", "seconds": 1.0, "result": "ok"}
    running = [data for name, data in watcher.events if name == "functions"]
    assert [data["items"][0]["result"] for data in running] == ["", "ok"]
    assert running[0]["items"][0]["at"] == function["at"]
    assert call["barge_ins"] == 1, "and not 2: the first words met a silent phone"
    turn = call["turns"][1]
    assert turn["first_audio_sent_at"] - turn["confirmed_at"] == pytest.approx(0.5, abs=0.05)
    playing = [
        audio["playback_ms"]
        for name, data in watcher.events
        if name == "audio"
        for audio in data["calls"].values()
    ]
    assert 1500 <= max(playing) <= 2100
    (ending,) = watcher.endings.values()
    assert (ending["outcome"], ending["call_sid"]) == ("caller_hung_up", call["call_sid"])
    assert ending["seconds"] == pytest.approx(10, abs=0.1)
    assert (call["caller"], call["called"]) == ("+15550100001", "+15550100002")
    assert set(view.recorded({})) <= set(call)


async def test_a_viewer_of_one_call_sees_only_this_call_to_its_end(autojump_clock: Clock) -> None:
    watcher, sids = Watcher(), []
    async with in_memory(script, quiet(speed=2.0, stale_chunks=0)) as world:
        async with world.call(), world.call() as phone:
            await trio.sleep(4)
            sids.append(phone.call_sid)
            with live_of(world).watching(phone.call_sid) as viewer:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(watcher.watch_to_the_end, viewer)
                    await trio.sleep(3)
                    await phone.hang_up()
    assert watcher.names[0] == "snapshot"
    assert watcher.names[-1] == "ended"
    assert set(watcher.endings) == set(sids)
    mentioned = {
        sid
        for _, data in watcher.events
        for sid in (data.get("call_sid"), *data.get("calls", ()))
        if sid
    }
    assert mentioned == set(sids)
    # It began in the middle, and has what was said before.
    assert [line[1] for line in watcher.lines(watcher.events[0][1]["call"])][:2] == [
        "Hello.",
        "What time is it?",
    ]


async def test_a_call_that_is_still_to_come_is_waited_for(autojump_clock: Clock) -> None:
    watcher = Watcher()
    sid = "CA" + "7" * 32
    async with in_memory(script, quiet(speed=2.0)) as world:
        with live_of(world).watching(sid) as viewer:
            assert not viewer.has_begun
            assert await viewer.next(5) is None
            async with world.call() as other:
                assert await viewer.next(5) is None  # another call is no news
                assert other.call_sid != sid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watcher.watch_to_the_end, viewer)
                async with world.call(call_sid=sid) as phone:
                    await trio.sleep(1)
                    await phone.hang_up()
    name, data = watcher.events[0]
    assert (name, data["call"]["call_sid"]) == ("snapshot", sid)
    assert data["call"]["state"] == "connecting"
    assert watcher.endings[sid]["outcome"] == "caller_hung_up"


async def test_events_add_up_to_what_there_is(autojump_clock: Clock) -> None:
    """At every moment, what a viewer has put together is what a new viewer is shown."""
    watcher, checked = Watcher(), 0

    def shown(call: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in call.items() if k not in ("seconds", "started_at", "at")}

    async with in_memory(script, quiet(speed=2.0, stale_chunks=0)) as world:
        live = live_of(world)
        with live.watching() as viewer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_call, world)
                for _ in range(150):
                    await watcher.watch(viewer, 0.083)
                    # At one moment, in which the virtual clock stands still.
                    live._look(trio.current_time())
                    await watcher.catch_up(viewer)
                    with live.watching() as newcomer:
                        fresh = Watcher()
                        await fresh.catch_up(newcomer)
                    assert {sid: shown(call) for sid, call in watcher.calls.items()} == {
                        sid: shown(call) for sid, call in fresh.calls.items()
                    }
                    checked += len(fresh.calls)
    assert checked > 100
    assert len(watcher.endings) == 1


async def test_a_long_conversation_is_told_by_its_end(autojump_clock: Clock) -> None:
    """What is compared is bounded, and so is what is sent of a change."""

    async def talk(agent: AgentSession) -> None:
        for number in range(3 * TAIL):
            await agent.user_said(f"line {number}")
            await trio.sleep(0.3)

    watcher = Watcher()
    async with in_memory(talk, using=settings(call={"stall_seconds": 60})) as world:
        with live_of(world).watching() as viewer:
            async with world.call() as phone:
                await watcher.watch(viewer, 31)
                words = [line["words"] for line in watcher.call["transcript"]]
                await phone.hang_up()
    assert words == [f"line {number}" for number in range(3 * TAIL)]
    sent = [len(data["items"]) for name, data in watcher.events if name == "transcript"]
    assert max(sent) <= 2


async def test_two_viewers_are_told_the_same(autojump_clock: Clock) -> None:
    first, second = Watcher(), Watcher()
    async with in_memory(script, quiet(speed=2.0, stale_chunks=0)) as world:
        live = live_of(world)
        with live.watching() as one, live.watching() as other:
            assert len(live) == 2
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_call, world)
                nursery.start_soon(first.watch, one, 15)
                nursery.start_soon(second.watch, other, 15)
    told = [
        [event for event in watcher.events if event[0] not in ("snapshot", "server")]
        for watcher in (first, second)
    ]
    assert told[0] == told[1]
    assert len(told[0]) > 20


# ---- bounds -------------------------------------------------------------------------------------


async def long_speech(agent: AgentSession) -> None:
    await agent.say("A very long story.", SECOND * 12)


async def test_a_slow_viewer_gets_a_fresh_snapshot_instead_of_what_it_missed(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge.live.viewer, "QUEUE_EVENTS", 20)
    quick, slow = Watcher(), Watcher()
    async with in_memory(long_speech, quiet(speed=2.0)) as world:
        live = live_of(world)
        with live.watching() as reads, live.watching() as sleeps:
            slow.take(await sleeps.next(0) or b"")
            async with world.call() as phone:
                for _ in range(6):
                    await quick.watch(reads, 2)
                    assert len(sleeps._queue) <= 20
                assert sleeps.resynchronised > 0
                assert reads.resynchronised == 0
                await slow.watch(sleeps, 1e-3)
                await quick.watch(reads, 1e-3)
                assert slow.names[:2] == ["snapshot", "began"]
                assert slow.call["transcript"] == quick.call["transcript"]
                await phone.hang_up()
        assert len(quick.events) > 20


async def test_viewers_cost_a_call_nothing(autojump_clock: Clock) -> None:
    """A call with viewers who do not read, and who leave, sends what it sends without any, when it
    does without any."""
    logs = []
    for watched in (False, True):
        async with in_memory(script, quiet(speed=2.0, stale_chunks=0)) as world:
            live = live_of(world)
            world.app.extensions["bridge"].functions.loaded[""] = Functions.of(get_time)
            with live.watching() as sleeps:
                if not watched:
                    live._everything.discard(sleeps)
                    live._viewers = 0
                else:
                    await sleeps.next(0)
                async with world.call(call_sid="CA" + "1" * 32) as phone:
                    await trio.sleep(10)
                    await phone.hang_up()
                live._viewers = max(1, live._viewers)
            logs.append(phone.received_audio)
            assert not live._dirty
            assert not live._shown
            assert not live._over
    assert logs[0] == logs[1]


async def test_nothing_is_computed_without_viewers(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    for name in ("facts", "audio", "lists", "whole"):
        monkeypatch.setattr(view, name, lambda *_, name=name: looked.append(name))
    async with in_memory(script, quiet(speed=2.0, stale_chunks=0)) as world:
        live = live_of(world)
        live.server = lambda: looked.append("server") or {}  # type: ignore[func-returns-value]
        with live.watching("CA" + "0" * 32) as viewer:  # of another call: no viewer of this one
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_call, world)
                assert await viewer.next(20) is None
        await one_call(world)
        assert not live._dirty
        assert not live._over
    assert looked == []


async def test_calls_that_end_unseen_are_bounded(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge.live.hub, "MAX_OVER", 2)
    watcher = Watcher()
    async with in_memory(script, quiet(speed=2.0)) as world:
        live = live_of(world)
        with live.watching() as viewer:
            watcher.take(await viewer.next(0) or b"")
            for _ in range(5):
                async with world.call() as phone:
                    await trio.sleep(1)
                    await phone.hang_up()
                await world.quiet()
                assert len(live._over) <= 2
            async with world.call() as phone:
                await trio.sleep(1)
                await watcher.watch(viewer, 0.5)
                assert set(watcher.calls) == {phone.call_sid}
                await phone.hang_up()
    assert watcher.names[0] == "snapshot"


async def test_a_viewer_that_reads_after_the_end_gets_ended(
    autojump_clock: Clock,
) -> None:
    """One call's viewer that was asleep while the call ended."""
    watcher = Watcher()
    async with in_memory(script, quiet(speed=2.0)) as world:
        live = live_of(world)
        async with world.call() as phone:
            await trio.sleep(3)
            with live.watching(phone.call_sid) as viewer:
                await phone.hang_up()
                await world.quiet()
                await trio.sleep(60)
                await watcher.watch_to_the_end(viewer)
                with pytest.raises(trio.EndOfChannel):
                    await viewer.next(1)
        assert not live._shown
    assert watcher.names == ["snapshot", "ended"]
    assert watcher.events[0][1]["call"]["outcome"] == "caller_hung_up"


async def test_there_are_only_so_many_viewers(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        live = live_of(world)
        watching = [live.watching("CA" + f"{n:032x}" if n % 2 else "") for n in range(MAX_VIEWERS)]
        for one in watching:
            one.__enter__()
        with pytest.raises(TooManyViewers), live.watching():
            pass
        watching.pop().__exit__(None, None, None)
        with live.watching() as viewer:
            assert await viewer.next(0)
        for one in watching:
            one.__exit__(None, None, None)
        assert len(live) == 0
        assert not live._of_call


async def test_when_the_server_stops_every_stream_ends_at_once(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        live = live_of(world)
        with live.watching() as one, live.watching("CA" + "0" * 32) as other:
            await one.next(0)
            async with trio.open_nursery() as nursery:
                for viewer in (one, other):
                    nursery.start_soon(Watcher().watch_to_the_end, viewer)
                await trio.sleep(5)
                began = trio.current_time()
                live.close()
            assert trio.current_time() == began
        with pytest.raises(Stopped), live.watching():
            pass


async def test_a_lost_agent_shows(autojump_clock: Clock) -> None:
    async def leave(agent: AgentSession) -> None:
        if agent.number == 1:
            await trio.sleep(2)
            await agent.reset()
        else:
            await trio.sleep_forever()

    watcher = Watcher()
    using = settings(deepgram={"max_reconnects": 1, "connect_budget": 8.0})
    async with in_memory(leave, quiet(), using) as world:
        with live_of(world).watching() as viewer:
            async with world.call() as phone:
                await watcher.watch(viewer, 5)
                assert watcher.call["reconnects"] == 1
                await phone.hang_up()
    assert "reconnects" in {key for name, data in watcher.events if name == "call" for key in data}


def test_facts_have_the_names_of_the_record_fields() -> None:
    """A page shows both by the same code."""
    from bridge.records.record import CallRecord

    shown = view.recorded({"call_sid": "CA", "seconds": 1.0, "started_at": "2026-01-01"})
    extra = {"state", "caller_speaking", "uplink_ms", "playback_ms"}
    assert set(shown) - extra <= set(CallRecord.__struct_fields__)
    assert all(name in shown for name in LISTS)


async def test_the_last_words_come_before_the_end(autojump_clock: Clock) -> None:
    """What changes in the moment in which the call ends is told, and nothing is told after it."""

    async def leave(agent: AgentSession) -> None:
        await agent.user_said("One.")
        await trio.sleep(1)
        await agent.user_said("Goodbye.")
        await agent.close()

    one, everything = Watcher(), Watcher()
    async with in_memory(leave) as world:
        live = live_of(world)
        with live.watching() as all_calls:
            async with world.call() as phone:
                with live.watching(phone.call_sid) as viewer:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(everything.watch, all_calls, 5)
                        await one.watch_to_the_end(viewer)
    for watcher in (one, everything):
        assert [line[1] for line in watcher.said] == ["One.", "Goodbye."]
        assert watcher.endings[phone.call_sid]["outcome"] == "agent_failed"
    assert one.names[-1] == "ended"
