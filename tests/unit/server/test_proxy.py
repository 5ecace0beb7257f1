"""Behind a proxy that terminates TLS, with hypercorn's ProxyFixMiddleware in front of us."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.middleware import ProxyFixMiddleware
from quart import request, websocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIWebsocketConnection

from bridge.config.file import FixedConfig
from bridge.http.app import create_app
from bridge.http.media_socket import DirectWebsocketConnection, accepted
from tests.unit.server.wire import serving
from tests.world import SECRETS, settings, signed

Clock = trio.testing.MockClock

FORWARDED = (
    b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: voice.example.com\r\n"
    b"X-Forwarded-Proto: https\r\n"
)


def app(*, stock: bool = False) -> Any:
    """An application that tells what it believes it was asked for."""
    quart = QuartTrio("test")
    quart.asgi_websocket_class = TrioASGIWebsocketConnection if stock else DirectWebsocketConnection

    @quart.websocket("/ws")
    async def tell() -> None:
        # The connection is found through the copy of the scope that the middleware makes.
        async with accepted(websocket._get_current_object()) as socket:  # type: ignore[attr-defined]
            await socket.send(f"{websocket.url} from {websocket.remote_addr}")

    @quart.get("/")
    async def index() -> str:
        return f"{request.url} from {request.remote_addr}"

    return ProxyFixMiddleware(quart, mode="legacy", trusted_hops=1)


async def test_a_websocket_has_the_public_address(autojump_clock: Clock) -> None:
    """The route is found, and the URL is the one Twilio signed."""
    async with serving(app()) as server:
        peer = server.connect()
        assert b" 101 " in await peer.upgrade(FORWARDED)
        event = await peer.hear()
        assert getattr(event, "data", "") == "wss://voice.example.com/ws from 203.0.113.9"
        assert await peer.hear_close() == 1000


@pytest.mark.parametrize("headers", [b"", b"X-Forwarded-Proto: http\r\n"])
async def test_a_websocket_without_tls(autojump_clock: Clock, headers: bytes) -> None:
    """Nothing forwarded, or plain HTTP: the scheme is ws."""
    async with serving(app()) as server:
        peer = server.connect()
        assert b" 101 " in await peer.upgrade(headers)
        event = await peer.hear()
        assert getattr(event, "data", "").startswith("ws://x/ws from ")


async def test_a_request_has_the_public_address(autojump_clock: Clock) -> None:
    """HTTP keeps the proxy's scheme."""
    async with serving(app()) as server:
        peer = server.connect()
        await peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + FORWARDED + b"\r\n")
        answer = bytes(await peer.stream.receive_some(65536))
        assert answer.endswith(b"https://voice.example.com/ from 203.0.113.9")


async def test_the_real_application_behind_a_proxy(autojump_clock: Clock) -> None:
    """Twilio's websocket is accepted by the application as it is deployed."""
    bridge = create_app(FixedConfig(settings()), SECRETS)
    await bridge.startup()
    async with serving(ProxyFixMiddleware(bridge)) as server:
        ((name, signature),) = signed("voice.example.com")
        headers = FORWARDED + name + b": " + signature + b"\r\n"
        head = await server.connect().upgrade(headers, path=b"/media-stream")
        assert b" 101 " in head


async def test_the_trap_is_real_a_websocket_is_a_bad_request(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the remedy Quart has no websocket route for the scheme "https"."""
    async with serving(app(stock=True)) as server:
        assert b" 400 " in await server.connect().upgrade(FORWARDED)
