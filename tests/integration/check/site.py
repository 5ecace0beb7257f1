"""A web server of a few lines, for whatever else than bridge may answer at an address."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import h11
import trio


@dataclass
class Request:
    """What came in."""

    method: str
    path: str
    headers: dict[str, str]
    form: list[tuple[str, str]]


@dataclass
class Response:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Respond = Callable[[Request], Response]


@asynccontextmanager
async def site(respond: Respond, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve on a free port of this machine; gives HOST:PORT."""

    async def serve(stream: trio.SocketStream) -> None:
        wrapped: trio.abc.Stream = stream
        if tls is not None:
            wrapped = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            await _serve_one(wrapped, respond)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # a client that does not like our certificate
        finally:
            await trio.aclose_forcefully(wrapped)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel(reason="the test is over")


async def _serve_one(stream: trio.abc.Stream, respond: Respond) -> None:
    connection = h11.Connection(h11.SERVER)
    request, body = None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            return
    assert request is not None
    headers = {name.decode().lower(): value.decode() for name, value in request.headers}
    form = parse_qsl(body.decode(), keep_blank_values=True)
    answer = respond(Request(request.method.decode(), request.target.decode(), headers, form))
    head = {"Content-Length": str(len(answer.body)), "Connection": "close", **answer.headers}
    events = [
        h11.Response(status_code=answer.status, headers=list(head.items())),
        h11.Data(data=answer.body),
        h11.EndOfMessage(),
    ]
    await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
