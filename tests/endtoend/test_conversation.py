"""What a conversation leaves behind and reaches out for, on real sockets, files and threads."""

from __future__ import annotations

import json
import threading
import wave
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from bridge.functions import Functions
from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.webhook import sign
from tests.world import AUTH_TOKEN, QUIET, World, on_loopback, settings

SECOND = bytes(range(1, 251)) * 32


def bridge_of(world: World) -> Any:
    return world.app.extensions["bridge"]


async def test_the_record_and_the_recording_of_a_call(tmp_path: Path) -> None:
    """Transcript, timings, functions and outcome are in the database, both voices in the WAV."""

    async def script(agent: AgentSession) -> None:
        arguments = json.dumps({"destination": "nowhere"})
        await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
        await agent.wait_until(lambda: agent.received_bytes >= 8000)
        await agent.user_said("hello")
        await agent.say("Hi there.", SECOND)

    url = f"sqlite:///{tmp_path}/calls.db"
    using = settings(
        records={"url": url, "recordings": str(tmp_path)},
        functions={"transfer_to": {"reception": "+15551112222"}},
    )
    async with on_loopback(script, QUIET, using) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(SECOND)
            await phone.wait_event("mark_echoed")
            await phone.hang_up()
        await world.quiet()
        with trio.fail_after(60):
            await bridge_of(world).recorder.writer.settle()
        record = await bridge_of(world).recorder.get(phone.call_sid)
    assert record.outcome == "caller_hung_up"
    assert [(line.role, line.words, line.heard) for line in record.transcript] == [
        ("caller", "hello", "heard"),
        ("agent", "Hi there.", "heard"),
    ]
    assert record.turns[-1].first_audio_sent_at is not None
    (function,) = record.functions
    assert (function.arguments, function.result) == ('{"destination": "nowhere"}', "error")
    assert "nowhere" in function.answer
    assert record.request_ids == [session.request_id]
    assert record.recording == str(tmp_path / f"{phone.call_sid}.wav")
    check_recording(tmp_path)


def check_recording(folder: Path) -> None:
    (recorded,) = folder.glob("*.wav")
    with wave.open(str(recorded)) as both:
        assert (both.getnchannels(), both.getframerate()) == (2, 8000)
        assert both.getnframes() > 8000


async def test_what_comes_after_is_known_in_another_worker(tmp_path: Path) -> None:
    """`/call-ended` reaches a process that did not carry the call."""

    async def script(agent: AgentSession) -> None:
        arguments = json.dumps({"destination": "reception"})
        await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
        await agent.say("One moment.", SECOND[:1600])

    using = settings(
        records={"url": f"sqlite:///{tmp_path}/calls.db"},
        functions={"transfer_to": {"reception": "+15551112222"}},
    )
    async with on_loopback(script, QUIET, using) as here, on_loopback(using=using) as elsewhere:
        async with here.call(talk_seconds=60) as phone:
            # Asked before it is known how the transfer ends.
            await phone.wait_event("twiml", "dials +15551112222")
            url, form = f"{elsewhere.base_url}/call-ended", {"CallSid": phone.call_sid}
            headers = {"X-Twilio-Signature": sign(url, form.items(), AUTH_TOKEN)}
            async with httpx.AsyncClient() as client:
                answer = await client.post(url, data=form, headers=headers)
            await phone.hang_up()
    assert "<Number>+15551112222</Number>" in answer.text


async def test_a_later_leg_in_another_worker_continues_the_call(tmp_path: Path) -> None:
    """The transfer's result, the return to the agent and its end all reach a process that did not
    carry the first leg: it has the conversation and the record from the database."""

    async def script(agent: AgentSession) -> None:
        await agent.user_said("A person please.")
        arguments = json.dumps({"destination": "reception"})
        await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
        await agent.say("One moment.", SECOND[:1600])

    async def again(agent: AgentSession) -> None:
        await agent.wait_for_message("InjectAgentMessage")

    using = settings(
        records={"url": f"sqlite:///{tmp_path}/calls.db"},
        functions={"transfer_to": {"reception": "+15551112222"}},
    )
    async with (
        on_loopback(script, QUIET, using) as here,
        on_loopback(again, QUIET, using) as there,
    ):

        async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
            # The webhook and its socket here, and everything after them there.
            opened.append(port)
            elsewhere = int(there.base_url.rpartition(":")[2])
            return await trio.open_tcp_stream(host, port if len(opened) <= 2 else elsewhere)

        opened: list[int] = []
        async with here.call(dials=["busy"], open_stream=open_stream) as phone:
            session = await there.agent.wait_for_session(1)
            await session.wait_for_message("InjectAgentMessage")
            await phone.hang_up()
        await here.quiet()
        await there.quiet()
        with trio.fail_after(60):
            for world in (here, there):
                await bridge_of(world).recorder.writer.settle()
        records = [await bridge_of(world).recorder.get(phone.call_sid) for world in (here, there)]
    assert records[0] == records[1]
    record = records[0]
    assert [(leg.outcome, leg.transfer_status) for leg in record.legs] == [
        ("handed_over", "busy"),
        ("caller_hung_up", ""),
    ]
    assert [line.words for line in record.transcript][:2] == ["A person please.", "One moment."]
    assert [item.get("content") for item in session.context_messages if "role" in item] == [
        *("A person please.", "One moment."),
    ]
    assert len(record.request_ids) == 2


class Twilio:
    """Takes the call away, as Twilio does on an update, while the phone is still connected."""

    def __init__(self, phone: list[Any]) -> None:
        self.updates: list[tuple[str, bytes]] = []
        self._phone = phone

    async def update_call(self, call_sid: str, *, twiml: bytes) -> None:
        self.updates.append((call_sid, twiml))
        await self._phone[0].hang_up()

    async def aclose(self) -> None:
        pass


async def test_a_transfer_by_rest_keeps_its_outcome() -> None:
    """Twilio's `stop` comes before we have ended the call: it was transferred all the same."""

    async def script(agent: AgentSession) -> None:
        arguments = json.dumps({"destination": "reception"})
        await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
        await agent.say("One moment.", SECOND[:1600])

    using = settings(functions={"transfer_to": {"reception": "+15551112222"}})
    phones: list[Any] = []
    async with on_loopback(script, QUIET, using) as world:
        twilio = bridge_of(world).twilio = Twilio(phones)
        async with world.call() as phone:
            phones.append(phone)
            await phone.wait_ended()
        await world.quiet()
        ending = await bridge_of(world).recorder.ending_of(phone.call_sid)
    assert [sid for sid, _ in twilio.updates] == [phone.call_sid]
    assert b"+15551112222" in twilio.updates[0][1]
    assert ending.outcome == "handed_over"


async def test_a_hook_tells_who_is_calling(nursery: trio.Nursery) -> None:
    async def hook(stream: trio.SocketStream) -> None:
        request = b""
        while b"caller" not in request:
            request += await stream.receive_some()
        body = b'{"name": "Ada"}'
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode() + body)

    listeners = await nursery.start(trio.serve_tcp, hook, 0)
    port = listeners[0].socket.getsockname()[1]
    using = settings(
        call={"context_url": f"http://localhost:{port}/who"}, agent={"greeting": "Hello {name}!"}
    )
    async with on_loopback(behaviour=QUIET, using=using) as world:
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            await phone.hang_up()
        await world.quiet()
    nursery.cancel_scope.cancel()
    assert session.settings is not None
    assert session.settings["agent"]["greeting"] == "Hello Ada!"


@pytest.mark.parametrize("name", ["hang", "fail", "ignore"])
async def test_a_function_in_flight_does_not_hold_the_call(name: str) -> None:
    """One that hangs, one that raises, one in a thread that ignores cancellation: the caller hangs
    up and everything of the call is gone, but for the thread, which is abandoned."""
    release = threading.Event()

    async def hang() -> None:
        """Hang."""
        await trio.sleep_forever()

    async def fail() -> None:
        """Fail."""
        raise RuntimeError("on purpose")

    def ignore() -> None:
        """Ignore."""
        release.wait(30)

    async def script(agent: AgentSession) -> None:
        await agent.call_functions([{"name": name, "arguments": "{}"}])

    try:
        async with on_loopback(script, QUIET) as world:
            bridge_of(world)._functions = Functions.of(hang, fail, ignore)
            async with world.call() as phone:
                session = await world.agent.wait_for_session()
                await session.wait_until(lambda: bool(session.calls.all))
                began = trio.current_time()
                await phone.hang_up()
            await world.quiet()
            # Half of what the thread sleeps.
            assert trio.current_time() - began < 15
            ending = await bridge_of(world).recorder.ending_of(phone.call_sid)
        assert ending.outcome == "caller_hung_up"
    finally:
        release.set()
