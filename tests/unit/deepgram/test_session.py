"""The agent session against peers that do not do what they should. No wait without an end.

The peers are a few lines of wsproto each, on a stream in memory and the virtual clock, so that
what they do on the wire is exact.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from bridge.deepgram import messages
from bridge.deepgram.session import (
    SEND_TIMEOUT,
    AgentClosed,
    AgentFailed,
    AgentSession,
    AgentUnavailable,
    open_session,
)

Clock = trio.testing.MockClock
CONNECT = 5.0
CLOSE = 1.0


class Peer:
    """The other end: raw bytes, or wsproto events."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.SERVER)
        self.said: list[Event] = []
        self.headers: dict[bytes, bytes] = {}

    async def read(self) -> list[Event]:
        """Events of one read; empty at the end of the stream."""
        data = await self.stream.receive_some(65536)
        self.ws.receive_data(data or None)
        events = list(self.ws.events())
        self.said += events
        return events if data else []

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.ws.send(event))

    async def upgrade(self) -> None:
        while True:
            for event in await self.read():
                if isinstance(event, Request):
                    self.headers = dict(event.extra_headers)
                    return await self.send(AcceptConnection())

    async def text(self, text: str) -> None:
        await self.send(TextMessage(data=text))

    async def settle(self, *, then: bytes = b"") -> None:
        """Welcome, Settings, SettingsApplied, and perhaps some bytes in the same write."""
        await self.upgrade()
        await self.text('{"type":"Welcome","request_id":"r"}')
        await self.read()
        applied = self.ws.send(TextMessage(data='{"type":"SettingsApplied"}'))
        await self.stream.send_all(applied + then)

    async def read_to_end(self) -> None:
        while await self.read():
            pass


Behaviour = Callable[[Peer], Awaitable[None]]
Body = Callable[[AgentSession], Awaitable[Any]]


async def nothing(_agent: AgentSession) -> None:
    pass


async def converse(
    behaviour: Behaviour,
    body: Body = nothing,
    *,
    cancel_after: float = float("inf"),
    key: str = "secret",
) -> Peer:
    """Open a session with a peer that behaves like this, run `body`, leave."""
    ours, theirs = trio.testing.memory_stream_pair()
    peer = Peer(theirs)

    async def open_stream(target: SplitResult) -> trio.abc.Stream:
        return ours

    async with trio.open_nursery() as world:
        world.start_soon(behaviour, peer)
        async with trio.open_nursery() as call:
            call.cancel_scope.deadline = trio.current_time() + cancel_after
            async with open_session(
                "ws://agent.test/v1/agent/converse",
                key=key,
                settings='{"type":"Settings"}',
                timeout=CONNECT,
                close_by=lambda: trio.current_time() + CLOSE,
                open_stream=open_stream,
            ) as agent:
                await body(agent)
        world.cancel_scope.cancel()
    return peer


def only(group: pytest.ExceptionInfo[BaseExceptionGroup[Any]]) -> BaseException:
    """The one exception inside nested nurseries' groups."""
    error: BaseException = group.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


async def failing(behaviour: Behaviour, body: Body = nothing) -> BaseException:
    with pytest.raises(BaseExceptionGroup) as caught:
        await converse(behaviour, body)
    return only(caught)


async def test_the_opening_is_in_the_documented_order(autojump_clock: Clock) -> None:
    async def body(agent: AgentSession) -> None:
        assert agent.request_id == "r"

    peer = await converse(Peer.settle, body)
    assert peer.headers[b"authorization"] == b"Token secret"
    texts = [event.data for event in peer.said if isinstance(event, TextMessage)]
    assert texts == ['{"type":"Settings"}']


async def test_messages_right_after_settings_applied_are_not_lost(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        greeting = WSConnection(ConnectionType.SERVER)
        greeting.receive_data(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        greeting.send(AcceptConnection())
        audio = greeting.send(BytesMessage(data=b"hello"))
        text = greeting.send(TextMessage(data='{"type":"AgentAudioDone"}'))
        await peer.settle(then=audio + text)
        await peer.read_to_end()

    received: list[Any] = []

    async def body(agent: AgentSession) -> None:
        while len(received) < 2:
            received.extend(await agent.receive())

    await converse(behaviour, body)
    assert received == [b"hello", messages.AgentAudioDone()]


async def test_waiting_messages_are_received_together(autojump_clock: Clock) -> None:
    """Twenty messages of a burst become one media message to the phone."""

    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        burst = [peer.ws.send(BytesMessage(data=bytes([n]))) for n in range(20)]
        await peer.stream.send_all(b"".join(burst))
        await peer.read_to_end()

    async def body(agent: AgentSession) -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert await agent.receive() == [bytes([n]) for n in range(20)]

    await converse(behaviour, body)


async def test_bad_and_unknown_messages_are_skipped(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        for text in (
            "no json",
            '{"type":7}',
            '{"type":"New"}',
            '{"type":"History"}',
        ):
            await peer.text(text)
        await peer.read_to_end()

    async def body(agent: AgentSession) -> None:
        received: list[Any] = []
        while not received:
            received += await agent.receive()
        assert received == [messages.History()]
        assert agent.bad_messages == 2

    await converse(behaviour, body)


async def test_messages_of_another_shape_are_understood_and_named_once(
    autojump_clock: Clock,
) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        await peer.text('{"type":"LatencyReport","tts_latency":"0.2"}')
        await peer.text('{"type":"LatencyReport","tts_latency":"0.3"}')
        await peer.text('{"type":"Error","code":null,"description":"out of order"}')
        await peer.read_to_end()

    async def body(agent: AgentSession) -> None:
        received: list[Any] = []
        while len(received) < 3:
            received += await agent.receive()
        assert [one.tts_latency for one in received[:2]] == [0.2, 0.3]
        assert received[2] == messages.Error(description="out of order")

    with capture_logs() as lines:
        await converse(behaviour, body)
    named = [one["type"] for one in lines if one["event"].endswith("has another shape")]
    assert named == ["LatencyReport", "Error"]


async def test_what_comes_before_settings_applied_is_kept(autojump_clock: Clock) -> None:
    """An agent in a hurry greets before it has confirmed the Settings."""

    async def behaviour(peer: Peer) -> None:
        await peer.upgrade()
        await peer.text('{"type":"Welcome","request_id":null}')
        await peer.read()
        await peer.send(BytesMessage(data=b"Hello"))
        await peer.text('{"type":"ConversationText","role":"assistant","content":"Hello."}')
        await peer.text('{"type":"SettingsApplied"}')
        await peer.send(BytesMessage(data=b"there"))
        await peer.read_to_end()

    received: list[Any] = []

    async def body(agent: AgentSession) -> None:
        while len(received) < 3:
            received.extend(await agent.receive())

    await converse(behaviour, body)
    said = messages.ConversationText(role="assistant", content="Hello.")
    assert received == [b"Hello", said, b"there"]


@pytest.mark.parametrize(
    ("key", "words"), [("a-real-key", "[secret] extra"), ("x", "a-real-key extra")]
)
async def test_a_key_is_taken_out_of_what_is_said_unless_it_is_part_of_words(
    autojump_clock: Clock, key: str, words: str
) -> None:
    """With a local agent DEEPGRAM_API_KEY may be any text."""

    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        await peer.text('{"type":"ConversationText","role":"user","content":"a-real-key extra"}')
        await peer.read_to_end()

    async def body(agent: AgentSession) -> None:
        received: list[Any] = []
        while not received:
            received += await agent.receive()
        assert received == [messages.ConversationText("user", words)]

    await converse(behaviour, body, key=key)


# ---- opening ----------------------------------------------------------------------------------


async def silent(peer: Peer) -> None:
    await trio.sleep_forever()


async def hangs_up(peer: Peer) -> None:
    await peer.stream.receive_some()
    await peer.stream.aclose()


async def speaks_something_else(peer: Peer) -> None:
    await peer.stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await trio.sleep_forever()


async def never_welcomes(peer: Peer) -> None:
    await peer.upgrade()
    await peer.read_to_end()


async def never_applies(peer: Peer) -> None:
    await peer.upgrade()
    await peer.text('{"type":"Welcome"}')
    await peer.read_to_end()


async def closes_at_once(peer: Peer) -> None:
    await peer.upgrade()
    await peer.send(CloseConnection(code=1008, reason="no"))
    await peer.stream.aclose()


@pytest.mark.parametrize(
    ("behaviour", "after", "words"),
    [
        (silent, CONNECT, "did not answer the handshake within 5 s"),
        (hangs_up, 0, "closed the connection during the handshake"),
        (speaks_something_else, 0, "did not answer with a websocket"),
        (never_welcomes, CONNECT, "did not apply the Settings within 5 s"),
        (never_applies, CONNECT, "did not apply the Settings within 5 s"),
        (closes_at_once, 0, "ended the session at once: closed with 1008 (no)"),
    ],
)
async def test_a_failed_opening_is_bounded_and_named(
    autojump_clock: Clock, behaviour: Behaviour, after: float, words: str
) -> None:
    began = trio.current_time()
    error = await failing(behaviour)
    assert isinstance(error, AgentUnavailable)
    assert words in str(error)
    assert after <= trio.current_time() - began <= after + CLOSE


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "DEEPGRAM_API_KEY"),
        (402, "credit"),
        (403, "permissions"),
        (404, "deepgram.url"),
        (429, "as many sessions"),
        (500, "500"),
    ],
)
@pytest.mark.parametrize("body", [b"", b'{"err_code":"X"}'])
async def test_a_rejected_handshake_says_what_to_do(
    autojump_clock: Clock, status: int, words: str, body: bytes
) -> None:
    async def behaviour(peer: Peer) -> None:
        while not any(isinstance(e, Request) for e in await peer.read()):
            pass
        headers = [(b"content-length", str(len(body)).encode())]
        await peer.send(RejectConnection(status_code=status, headers=headers, has_body=bool(body)))
        if body:
            await peer.send(RejectData(data=body))
        await trio.sleep_forever()

    error = await failing(behaviour)
    assert isinstance(error, AgentUnavailable)
    assert error.status == status
    assert words in str(error)
    assert "secret" not in str(error)


REFUSAL = b'{"err_code":"INSUFFICIENT_PERMISSIONS","err_msg":"No secret here.","request_id":"r-2"}'


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        (
            [(b"dg-request-id", b"r-1")],
            REFUSAL,
            " (INSUFFICIENT_PERMISSIONS: No [secret] here.; request_id r-1)",
        ),
        ([], REFUSAL, "; request_id r-2)"),
        ([(b"DG-Request-ID", b"r-1")], b"<html>", "console (request_id r-1)"),
        ([], b'{"err_code":7}', "in the Deepgram console"),
        ([], b'{"err_msg":"\\u202e\\u0007"}', r" (\u202e\x07)"),
        ([], b'{"err_msg":"' + b"x" * 5000 + b'"}', f" ({'x' * 200})"),
        ([], b'{"err_msg":"' + b"x" * 196 + b'secret"}', f" ({'x' * 196}[sec)"),
    ],
)
async def test_a_refusal_says_what_deepgrams_support_asks_for(
    autojump_clock: Clock, headers: list[tuple[bytes, bytes]], body: bytes, told: str
) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.read()
        await peer.send(RejectConnection(status_code=403, headers=headers, has_body=True))
        await peer.send(RejectData(data=body))

    error = await failing(behaviour)
    assert isinstance(error, AgentUnavailable)
    assert str(error).endswith(told)


async def test_a_refusal_without_end_is_not_collected(autojump_clock: Clock) -> None:
    """64 KiB say why well enough; the rest is not read."""
    sent = 0

    async def behaviour(peer: Peer) -> None:
        nonlocal sent
        await peer.read()
        await peer.send(RejectConnection(status_code=503, has_body=True))
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while sent < 10_000_000:
                await peer.send(RejectData(data=bytes(10_000), body_finished=False))
                sent += 10_000

    error = await failing(behaviour)
    assert isinstance(error, AgentUnavailable)
    assert "a refusal of more than 65536 bytes" in str(error)
    assert sent < 200_000


async def test_an_error_in_answer_to_the_settings(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.upgrade()
        await peer.text('{"type":"Welcome"}')
        await peer.text('{"type":"Error","code":"INVALID_SETTINGS","description":"no model"}')
        await peer.read_to_end()

    error = await failing(behaviour)
    assert isinstance(error, AgentFailed)
    assert error.code == "INVALID_SETTINGS"
    assert str(error) == "INVALID_SETTINGS: no model"


async def test_a_refused_connection_keeps_its_reason(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    async def open_stream(target: SplitResult) -> trio.abc.Stream:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(AgentUnavailable, match=r"agent\.test:9000.*Connection refused"):
        async with open_session(
            "ws://agent.test:9000/",
            key="",
            settings="{}",
            timeout=CONNECT,
            close_by=trio.current_time,
            open_stream=open_stream,
        ):
            pytest.fail("there is no session")


# ---- ending -----------------------------------------------------------------------------------


async def receive_until_closed(agent: AgentSession) -> None:
    while True:
        await agent.receive()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1000, "closed with 1000 (bye)"),
        (1001, "closed with 1001 (bye)"),
        (1011, "closed with 1011 (bye)"),
    ],
)
async def test_the_agent_closes(autojump_clock: Clock, code: int, words: str) -> None:
    """It never closes the TCP connection afterwards, and we leave all the same."""

    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        await peer.send(CloseConnection(code=code, reason="bye"))
        await trio.sleep_forever()

    began = trio.current_time()
    error = await failing(behaviour, receive_until_closed)
    assert isinstance(error, AgentClosed)
    assert str(error) == words
    assert trio.current_time() == began


async def test_everything_said_before_the_close_is_received(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        for number in range(20):
            await peer.send(BytesMessage(data=bytes([number])))
        await peer.text('{"type":"Error","code":"C"}')
        await peer.send(CloseConnection(code=1011))
        await peer.read_to_end()

    received: list[Any] = []

    async def body(agent: AgentSession) -> None:
        await trio.testing.wait_all_tasks_blocked()
        while True:
            received.extend(await agent.receive())

    assert isinstance(await failing(behaviour, body), AgentClosed)
    assert received == [*(bytes([n]) for n in range(20)), messages.Error(code="C")]


async def test_the_connection_is_lost(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        await peer.stream.aclose()

    error = await failing(behaviour, receive_until_closed)
    assert isinstance(error, AgentClosed)
    assert "lost" in str(error)


async def test_a_protocol_error_is_named(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle(then=b"\xff\xff\xff\xff")
        await peer.read_to_end()

    error = await failing(behaviour, receive_until_closed)
    assert isinstance(error, AgentClosed)
    assert "broke" in str(error)


async def test_leaving_says_goodbye_and_waits_for_the_answer(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        while True:
            for event in await peer.read():
                if isinstance(event, CloseConnection):
                    await trio.sleep(0.3)
                    return await peer.send(event.response())

    began = trio.current_time()
    peer = await converse(behaviour)
    assert trio.current_time() - began == pytest.approx(0.3)
    assert any(isinstance(event, CloseConnection) and event.code == 1000 for event in peer.said)


async def test_leaving_a_peer_that_never_answers_is_bounded(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        await peer.read_to_end()

    began = trio.current_time()
    peer = await converse(behaviour)
    assert trio.current_time() - began == pytest.approx(CLOSE)
    assert any(isinstance(event, CloseConnection) for event in peer.said)


async def test_leaving_under_cancellation_still_says_goodbye(autojump_clock: Clock) -> None:
    answered = False

    async def behaviour(peer: Peer) -> None:
        nonlocal answered
        await peer.settle()
        while True:
            for event in await peer.read():
                if isinstance(event, CloseConnection):
                    await peer.send(event.response())
                    answered = True
                    return

    began = trio.current_time()
    await converse(behaviour, receive_until_closed, cancel_after=0.5)
    assert answered is True
    assert trio.current_time() - began == pytest.approx(0.5)


async def test_a_ping_during_the_close_handshake_cancels_no_task(autojump_clock: Clock) -> None:
    """trio-websocket's reader dies of it; with open_websocket the call would silently stop."""

    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        while True:
            for event in await peer.read():
                if isinstance(event, CloseConnection):
                    await peer.stream.send_all(b"\x89\x01p")
                    await peer.send(event.response())
                    return

    reached = False
    await converse(behaviour)
    await trio.lowlevel.checkpoint()
    reached = True
    assert reached


async def test_an_agent_that_does_not_read_is_lost_in_time(autojump_clock: Clock) -> None:
    """Both tasks of the call hear of it: the one that sends and the one that receives."""
    ours, theirs = trio.testing.memory_stream_pair()
    peer = Peer(theirs)
    pump = ours.send_stream.send_all_hook
    assert pump is not None
    full = False

    async def fill() -> None:
        if full:
            await trio.sleep_forever()
        await pump()

    ours.send_stream.send_all_hook = fill

    async def open_stream(target: SplitResult) -> trio.abc.Stream:
        return ours

    heard: list[str] = []
    async with trio.open_nursery() as world:
        world.start_soon(peer.settle)
        async with (
            trio.open_nursery() as call,
            open_session(
                "ws://agent.test/",
                key="",
                settings="{}",
                timeout=CONNECT,
                close_by=lambda: trio.current_time() + CLOSE,
                open_stream=open_stream,
            ) as agent,
        ):

            async def receive() -> None:
                try:
                    await receive_until_closed(agent)
                except AgentClosed as error:
                    heard.append(str(error))

            call.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            full = True
            began = trio.current_time()
            with pytest.raises(AgentClosed, match="what was sent was not read for 5 s"):
                await agent.send_audio(b"x" * 480)
            assert trio.current_time() - began == pytest.approx(SEND_TIMEOUT)
    assert heard == ["the connection was lost: what was sent was not read for 5 s"]
    assert trio.current_time() - began == pytest.approx(SEND_TIMEOUT)


async def says_goodbye(peer: Peer) -> None:
    """Read, and answer the Close."""
    while events := await peer.read():
        for event in events:
            if isinstance(event, CloseConnection):
                await peer.send(event.response())
                return


async def cancelled_while_sending(behaviour: Behaviour) -> tuple[Peer, float]:
    """Cancel a call whose agent does not take the audio that is being sent; how long it takes."""
    # On this stream a write lasts until all of it is read.
    ours, theirs = trio.testing.lockstep_stream_pair()
    peer = Peer(theirs)

    async def open_stream(target: SplitResult) -> trio.abc.Stream:
        return ours

    async with trio.open_nursery() as world:
        world.start_soon(behaviour, peer)
        async with (
            trio.open_nursery() as call,
            open_session(
                "ws://agent.test/",
                key="",
                settings="{}",
                timeout=CONNECT,
                close_by=lambda: trio.current_time() + CLOSE,
                open_stream=open_stream,
            ) as agent,
        ):

            async def send() -> None:
                with suppress(AgentClosed):
                    await agent.send_audio(b"x" * 480)

            call.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            call.cancel_scope.cancel()
        took = trio.current_time() - began
    return peer, took


async def test_a_send_under_way_is_finished_and_then_the_goodbye_is_said(
    autojump_clock: Clock,
) -> None:
    """Cut off halfway, it would take the Close for its second half."""

    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        await trio.sleep(0.3)
        await says_goodbye(peer)

    peer, took = await cancelled_while_sending(behaviour)
    *_, audio, goodbye = peer.said
    assert isinstance(audio, BytesMessage)
    assert audio.data == b"x" * 480
    assert isinstance(goodbye, CloseConnection)
    assert took == pytest.approx(0.3)


async def test_a_send_that_is_stuck_does_not_outlast_the_goodbye(autojump_clock: Clock) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.settle()

    _, took = await cancelled_while_sending(behaviour)
    assert took == pytest.approx(CLOSE)


async def test_a_send_that_is_cancelled_before_it_begins_leaves_no_trace(
    autojump_clock: Clock,
) -> None:
    """The caller's audio and the end of the call may come in one pass of the event loop."""

    async def behaviour(peer: Peer) -> None:
        await peer.settle()
        await says_goodbye(peer)

    async def send_too_late(agent: AgentSession) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await agent.send_audio(b"x" * 480)
        assert scope.cancelled_caught

    peer = await converse(behaviour, send_too_late)
    assert not any(isinstance(event, BytesMessage) for event in peer.said)
    goodbye = peer.said[-1]
    assert isinstance(goodbye, CloseConnection)
    assert goodbye.code == 1000
