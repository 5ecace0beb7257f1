"""A proxy of a few lines, as it may stand in front of a server."""

from __future__ import annotations

import re

import trio


async def proxy(
    upstream: str, host: str = "", task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Pass on all there is, websockets too, to HOST:PORT `upstream`.

    The Host header becomes `host`; without `host` nothing is read, as stunnel and `ssh -R` do it.
    """

    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
        try:
            while piece := await source.receive_some():
                await sink.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel("one side has closed")

    async def serve(client: trio.SocketStream) -> None:
        head = b""
        while host and b"\r\n\r\n" not in head:
            if not (piece := await client.receive_some()):
                return
            head += piece
        head = re.sub(rb"(?i)\r\nhost: [^\r]*", b"\r\nHost: " + host.encode(), head, count=1)
        name, _, port = upstream.partition(":")
        async with client, await trio.open_tcp_stream(name, int(port)) as server:
            await server.send_all(head)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, client, server, nursery.cancel_scope)
                nursery.start_soon(pump, server, client, nursery.cancel_scope)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        task_status.started(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
