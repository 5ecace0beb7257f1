"""Both websocket ends of ours against RFC 6455, frame by frame."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request

from bridge.deepgram import messages
from bridge.deepgram.session import AgentClosed, AgentSession, open_session
from bridge.transport.websocket import WebSocket, WebSocketClosed
from tests.conformance import cases
from tests.conformance.cases import CLOSE, PING, PONG, TOO_BIG, Case, Role
from tests.endtoend.scene import until
from tests.unit.server.echo import handled_by
from tests.unit.server.wire import UPGRADE, serving

Clock = trio.testing.MockClock

CLIENT = Role(masks=True)
AGENT = Role(masks=False, before=b'{"type":"AgentThinking","content":"', after=b'"}')

played = [(case, False) for case in cases.ALL] + [(c, True) for c in cases.ALL if not c.long]
every_case = pytest.mark.parametrize(
    ("case", "chopped"), played, ids=[f"{c}{', byte by byte' * chopped}" for c, chopped in played]
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


class Heard:
    """What the other end said: frames, unmasked or masked with any key, as they are on the wire."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = data
        self.frames: list[tuple[int, bytes]] = []
        self.masked: set[bool] = set()

    def add(self, data: bytes) -> None:
        self._data += data
        while (frame := self._next()) is not None:
            self.frames.append(frame)

    def _next(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        at, length = 2, data[1] & 0x7F
        if length > 125:
            size = 2 if length == 126 else 8
            if len(data) < 2 + size:
                return None
            (length,) = struct.unpack("!H" if size == 2 else "!Q", data[2 : 2 + size])
            at += size
        key = b""
        if data[1] & 0x80:
            key, at = data[at : at + 4], at + 4
        if len(data) < at + length:
            return None
        payload = data[at : at + length]
        if key:
            payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
        assert data[0] & 0xF0 == 0x80, "our own frames are whole, without reserved bits"
        self.masked.add(bool(key))
        self._data = data[at + length :]
        return data[0] & 0x0F, payload

    @property
    def pongs(self) -> tuple[bytes, ...]:
        return tuple(payload for opcode, payload in self.frames if opcode == PONG)

    @property
    def closes(self) -> list[int]:
        codes = [payload[:2] for opcode, payload in self.frames if opcode == CLOSE]
        return [struct.unpack("!H", code)[0] if code else 1005 for code in codes]


async def _listen(stream: Any, heard: Heard) -> None:
    """Until the other end has closed the connection."""
    while True:
        try:
            data = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            return
        if not data:
            return
        heard.add(data)


async def _play(stream: Any, frames: list[bytes], chopped: bool) -> None:
    raw = b"".join(frames)
    try:
        if not chopped:
            for frame in frames:
                await stream.send_all(frame)
                await trio.testing.wait_all_tasks_blocked()
            return
        for byte in raw:
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it has said what it had to say


# ---- the server's end ----------------------------------------------------------------------------


@every_case
async def test_the_media_socket(autojump_clock: Clock, case: Case, chopped: bool) -> None:
    """What a client sends is delivered as it should be, or the connection is failed with the right
    code and closed; and a Close is answered."""
    delivered: list[str | bytes] = []
    left = trio.Event()

    async def handler(socket: WebSocket) -> None:
        with suppress(WebSocketClosed):
            while True:
                delivered.extend(await socket.receive())
        left.set()

    heard = Heard()
    limit = {"websocket_max_message_size": 65536}
    async with serving(handled_by(handler), **limit) as server, trio.open_nursery() as nursery:
        peer = server.connect()
        await peer.stream.send_all(UPGRADE + b"\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await peer.stream.receive_some(1)
        nursery.start_soon(_listen, peer.stream, heard)
        await _play(peer.stream, case.frames(CLIENT), chopped)
        if case.code is None:
            # It goes on: what comes next is heard, and the goodbye is answered.
            await peer.stream.send_all(CLIENT.message("next") + CLIENT.close(1000))
        with trio.fail_after(10):
            await left.wait()
            # Even a peer that answers nothing is let go of.
            await trio.sleep(6)
        assert server.connections == 0
    expected = (*case.delivers, "next") if case.code is None else case.delivers
    assert delivered == list(expected)
    assert heard.pongs == case.pongs
    assert heard.closes == [1000 if case.code is None else case.code]
    assert heard.masked == {False}, "a server masks nothing (section 5.1)"


# ---- the client's end ----------------------------------------------------------------------------


@every_case
async def test_the_agents_session(autojump_clock: Clock, case: Case, chopped: bool) -> None:
    """What a server sends is delivered as it should be, or the session ends with an AgentClosed
    that is not clean, and our Close says why."""
    heard, delivered = Heard(), []
    ours, theirs = trio.testing.memory_stream_pair()
    closed: AgentClosed | None = None

    async def server() -> None:
        handshake = WSConnection(ConnectionType.SERVER)
        while True:
            handshake.receive_data(await theirs.receive_some(65536))
            if any(isinstance(event, Request) for event in handshake.events()):
                break
        await theirs.send_all(handshake.send(AcceptConnection()))
        plain = Role(masks=False)
        await theirs.send_all(plain.message('{"type":"Welcome"}'))
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                await _listen(theirs, heard)
                nursery.cancel_scope.cancel(reason="the session is over")

            nursery.start_soon(listen)
            await until(lambda: heard.frames)  # the Settings
            await theirs.send_all(plain.message('{"type":"SettingsApplied"}'))
            await trio.testing.wait_all_tasks_blocked()
            await _play(theirs, case.frames(AGENT), chopped)
            if case.code is None:
                await theirs.send_all(AGENT.message("next") + AGENT.close(1000))
            await trio.sleep(10)
            await theirs.aclose()

    async def converse(agent: AgentSession) -> None:
        while True:
            for message in await agent.receive():
                match message:
                    case messages.AgentThinking(content=words):
                        delivered.append(words)
                    case bytes():
                        delivered.append(message)

    async def open_stream(target: Any) -> trio.abc.Stream:
        return ours

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            try:
                async with open_session(
                    "ws://agent.test/",
                    key="",
                    settings='{"type":"Settings"}',
                    timeout=5,
                    close_by=lambda: trio.current_time() + 1,
                    open_stream=open_stream,
                ) as agent:
                    await converse(agent)
            except* AgentClosed as group:
                (closed,) = group.exceptions  # type: ignore[assignment]
            nursery.cancel_scope.deadline = trio.current_time() + 20
    expected = (*case.delivers, "next") if case.code is None else case.delivers
    assert delivered == list(expected)
    assert heard.pongs == case.pongs
    assert heard.closes == [1000 if case.code is None else case.code]
    assert heard.masked == {True}, "a client masks every frame (section 5.1)"
    assert closed is not None


# ---- more than there is room for -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames"),
    {
        "one frame": [CLIENT.frame(2, bytes(70_000))],
        "many fragments": [
            CLIENT.frame(2, bytes(9000), fin=False),
            *[CLIENT.frame(0, bytes(9000), fin=False)] * 20,
        ],
        "a frame that announces 2^62": [CLIENT.frame(2, bytes(70_000), announced=2**62)],
    }.items(),
)
async def test_a_message_without_end_is_failed_when_it_is_too_big(
    autojump_clock: Clock, name: str, frames: list[bytes]
) -> None:
    """Section 7.4.1, 1009: as soon as the limit is passed, not when the message is complete."""
    left = trio.Event()

    async def handler(socket: WebSocket) -> None:
        with pytest.raises(WebSocketClosed):
            await socket.receive()
        left.set()

    heard = Heard()
    async with serving(handled_by(handler), websocket_max_message_size=65536) as server:
        async with trio.open_nursery() as nursery:
            peer = server.connect()
            await peer.upgrade()
            nursery.start_soon(_listen, peer.stream, heard)
            await _play(peer.stream, frames, chopped=False)
            with trio.fail_after(10):
                await left.wait()
        assert server.connections == 0
    assert heard.closes == [TOO_BIG]


def test_the_frames_are_what_they_are_called() -> None:
    """The suite's own tools, checked against the examples in section 5.7."""
    server = Role(masks=False)
    assert server.frame(1, b"Hello").hex() == "810548656c6c6f"
    assert CLIENT.frame(1, b"Hello").hex() == "818537fa213d7f9f4d5158"
    assert server.frame(1, b"Hel", fin=False).hex() == "010348656c"
    assert server.frame(0, b"lo").hex() == "80026c6f"
    assert server.frame(PING, b"Hello").hex() == "890548656c6c6f"
    assert server.frame(2, bytes(256))[:4].hex() == "827e0100"
    assert server.frame(2, bytes(65536))[:10].hex() == "827f0000000000010000"
