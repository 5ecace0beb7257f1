"""HTTP/2, where an operator offers it: what one request suffers, the others do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import h2.connection
import h2.events
import hypercorn.protocol
import pytest
import trio
import trio.testing
from hypercorn.protocol.h2 import H2Protocol

from bridge.config.file import FixedConfig
from bridge.http.app import create_app
from bridge.server.serve import hypercorn_config
from tests.world import OPERATOR, SECRETS, serve_connection, settings

HOST = "voice.example.com"


class Line:
    """A connection that has agreed on HTTP/2, from the client's side."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self._protocol = h2.connection.H2Connection()
        self._protocol.initiate_connection()
        self.statuses: dict[int, int] = {}
        self.resets: set[int] = set()
        self.ended = trio.Event()
        self.data: dict[int, bytes] = {}

    async def request(
        self, method: str, path: str, *, body: bool = False, headers: Any = ()
    ) -> int:
        stream_id = self._protocol.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", HOST)]
        given = [(name.lower(), value) for name, value in dict(headers).items()]
        self._protocol.send_headers(stream_id, [*head, *given], end_stream=not body)
        await self.flush()
        return stream_id

    async def body(self, stream_id: int, data: bytes) -> None:
        self._protocol.send_data(stream_id, data)
        await self.flush()

    async def flush(self) -> None:
        async with self._sending:
            with suppress(trio.BrokenResourceError):  # the server has ended it
                await self._stream.send_all(self._protocol.data_to_send())

    async def read(self) -> None:
        while received := await self._stream.receive_some():
            for event in self._protocol.receive_data(received):
                match event:
                    case h2.events.ResponseReceived():
                        self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
                    case h2.events.DataReceived():
                        so_far = self.data.get(event.stream_id, b"")
                        self.data[event.stream_id] = so_far + event.data
                    case h2.events.StreamReset():
                        self.resets.add(event.stream_id)
            await self.flush()
        self.ended.set()


class Agreed:
    """A stream as TLS gives it once both sides have agreed on HTTP/2."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.transport_stream = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def do_handshake(self) -> None:
        pass

    def selected_alpn_protocol(self) -> str:
        return "h2"


@asynccontextmanager
async def line() -> AsyncIterator[Line]:
    ours, theirs = trio.testing.memory_stream_pair()
    using = settings()
    app = create_app(FixedConfig(using), SECRETS)
    await app.startup()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, app, hypercorn_config(using), Agreed(theirs))
        client = Line(ours)
        await client.flush()
        nursery.start_soon(client.read)
        yield client
        nursery.cancel_scope.cancel(reason="the test is over")


async def refuse_one_while_another_streams(client: Line) -> int:
    """Have a webhook refused before its body comes; the stream of events that is on meanwhile."""
    events = await client.request("GET", "/events", headers=OPERATOR)
    refused = await client.request("POST", "/incoming-call", body=True)
    await trio.testing.wait_all_tasks_blocked()
    assert client.statuses == {events: 200, refused: 403}
    await client.body(refused, b"CallSid=CA1")
    await trio.testing.wait_all_tasks_blocked()
    return events


async def test_a_refused_request_ends_no_other() -> None:
    async with line() as client:
        await refuse_one_while_another_streams(client)
        assert not client.ended.is_set()
        assert len(client.resets) == 1
        again = await client.request("GET", "/healthz")
        await trio.testing.wait_all_tasks_blocked()
        assert client.statuses[again] == 200
        assert client.data[again] == b"ok\n"


async def test_hypercorns_own_ends_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the remedy is needed."""
    monkeypatch.setattr(hypercorn.protocol, "H2Protocol", H2Protocol)
    async with line() as client:
        await refuse_one_while_another_streams(client)
        assert client.ended.is_set()
