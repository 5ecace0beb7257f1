"""Opening a websocket as a client: trio-websocket shakes hands, then the stream is a `WebSocket`'s.

trio-websocket's `open_websocket` is not used. Against a peer that accepts and then stays silent it
waits without a limit, it hides why a connect failed, and its reader task, when it crashes, cancels
the caller's tasks. Its handshake alone has none of that: it runs in the caller's task, under the
caller's deadline, and raises what went wrong. What the peer sent behind its answer is handed on.

All private names of trio-websocket that bridge uses are used here, so its version is pinned in
pyproject.toml.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import cache
from typing import Final, NoReturn
from urllib.parse import SplitResult

import trio
import trio_websocket
import wsproto
from wsproto.events import AcceptConnection, RejectData
from wsproto.events import Event as WebsocketEvent

from bridge.transport.byte_stream import RECEIVE_BYTES
from bridge.transport.websocket import WebSocket

# More than any page that says why a handshake was refused.
MAX_REFUSAL_BYTES: Final = 64 * 1024

OpenStream = Callable[[SplitResult], Awaitable[trio.abc.Stream]]


class HandshakeFailed(Exception):
    """The peer did not open a websocket. The message says what it did instead, beginning with the
    verb. `status`, `headers` and `body` are those of its HTTP response, if it sent one."""

    def __init__(
        self,
        why: str,
        *,
        status: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> None:
        super().__init__(why)
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body


async def shake_hands(
    stream: trio.abc.Stream,
    target: SplitResult,
    headers: list[tuple[bytes, bytes]],
    *,
    max_message: int,
    write_timeout: float,
) -> WebSocket:
    """Ask for a websocket at `target` on a stream that is connected to it, and return it.

    Has no deadline of its own: the caller's ends it. Raises HandshakeFailed; then, and when it is
    cancelled, the stream is still the caller's to close.
    """
    protocol = _HandshakeProtocol()
    handshake = _Handshake(stream, protocol, target, headers)
    try:
        await handshake._reader_task()
    except _OpenedError:
        return WebSocket(
            stream,
            wsproto.ConnectionType.CLIENT,
            max_message=max_message,
            write_timeout=write_timeout,
            received=protocol.received,
        )
    except trio_websocket.ConnectionRejected as refused:
        raise HandshakeFailed(
            f"answered {refused.status_code}",
            status=refused.status_code,
            headers=refused.headers or (),
            body=refused.body or b"",
        ) from None
    except HandshakeFailed:
        raise
    except Exception as error:
        raise HandshakeFailed(f"did not answer with a websocket: {error!r}") from error
    raise HandshakeFailed("closed the connection during the handshake")


class _OpenedError(Exception):
    """The handshake is over: leaves the library's reader, which would go on to read messages."""


class _Handshake(trio_websocket.WebSocketConnection):
    """trio-websocket's connection, whose reader stops when the websocket is open."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        protocol: wsproto.WSConnection,
        target: SplitResult,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        super().__init__(
            stream,
            protocol,
            host=target.netloc,
            path=target.path + (f"?{target.query}" if target.query else "") or "/",
            client_extra_headers=headers,
            receive_buffer_size=RECEIVE_BYTES,
        )

    async def _handle_accept_connection_event(self, event: AcceptConnection) -> NoReturn:
        raise _OpenedError

    async def _handle_reject_data_event(self, event: RejectData) -> None:
        """As the library's, which collects the body of a refusal for as long as one comes."""
        if len(self._reject_body) + len(event.data) > MAX_REFUSAL_BYTES:
            raise HandshakeFailed(f"sent a refusal of more than {MAX_REFUSAL_BYTES} bytes")
        await super()._handle_reject_data_event(event)


class _HandshakeProtocol(wsproto.WSConnection):
    """wsproto's client as far as the handshake goes."""

    def __init__(self) -> None:
        super().__init__(wsproto.ConnectionType.CLIENT)

    def events(self) -> Generator[WebsocketEvent, None, None]:
        return self.handshake.events()

    @property
    def received(self) -> bytes:
        """What came behind the answer to the handshake, in one read with it."""
        received, _ = self.handshake._h11_connection.trailing_data
        return received


async def open_tcp_stream(target: SplitResult) -> trio.abc.Stream:
    """Connect to a ws or wss address, certificates verified. Raises OSError."""
    assert target.hostname is not None
    if target.scheme == "ws":
        return await trio.open_tcp_stream(target.hostname, target.port or 80)
    stream = await trio.open_ssl_over_tcp_stream(
        target.hostname,
        target.port or 443,
        https_compatible=True,
        ssl_context=_client_tls(),
    )
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        # The interesting part is the ssl module's: which certificate check failed.
        raise OSError(f"TLS failed: {error.__cause__ or error}") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


@cache
def _client_tls() -> ssl.SSLContext:
    """The system's certificates, read once: it takes tens of milliseconds, on every call's path."""
    context = ssl.create_default_context()
    # Some distributions' Python leaves the floor to OpenSSL's configuration, which may have none.
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    return context
