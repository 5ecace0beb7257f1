"""A server that ends TLS itself (hypercorn's --certfile): calls as on any other connection."""

from __future__ import annotations

import ssl

import trio
import trio.testing
import trustme

from bridge.server.serve import hypercorn_config
from tests.world import in_memory, serve_connection, settings

Clock = trio.testing.MockClock
SPEECH = bytes(range(1, 251)) * 64  # two seconds


async def test_a_call_is_not_delayed_by_tls(autojump_clock: Clock) -> None:
    """Read once a frame, a record at a time, it would fall behind by two thirds of what is said."""
    authority = trustme.CA()
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("bridge.test").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)

    async with in_memory() as world, trio.open_nursery() as nursery:
        config = hypercorn_config(settings())

        async def to_server(host: str, port: int, tls: bool) -> trio.abc.Stream:
            phones, servers = trio.testing.memory_stream_pair()
            servers.socket = _NoSocket()  # type: ignore[attr-defined]
            secure = trio.SSLStream(servers, ours, server_side=True, https_compatible=True)
            nursery.start_soon(serve_connection, world.app, config, secure)
            return trio.SSLStream(
                phones, theirs, server_hostname="bridge.test", https_compatible=True
            )

        world.phone_options["open_stream"] = to_server
        async with world.call() as phone:
            session = await world.agent.wait_for_session()
            await phone.say(SPEECH)
            began = trio.current_time()
            await phone.hang_up()
        await world.quiet()
        nursery.cancel_scope.cancel(reason="the test is over")
    assert bytes(session.received_audio) == phone.sent_audio
    assert trio.current_time() - began < 0.2


class _NoSocket:
    family = 2

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 5000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 50000
