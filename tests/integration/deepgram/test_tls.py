"""wss:// to the agent: a certificate that is not the agent's ends the attempt, in words."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trustme

from bridge.transport import websocket_client
from bridge.transport.websocket_client import open_tcp_stream

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def _trusted(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The authority is one the system trusts."""
    bundle = tmp_path / "authorities.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    websocket_client._client_tls.cache_clear()
    yield
    websocket_client._client_tls.cache_clear()


async def connect(certificate: trustme.LeafCert, *, host: str = "localhost") -> None:
    """Connect to an agent that has this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.do_handshake()
            await stream.receive_some(1)
        except trio.BrokenResourceError:
            pass

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, serve, listeners)
            port = listeners[0].transport_listener.socket.getsockname()[1]
            try:
                stream = await open_tcp_stream(urlsplit(f"wss://{host}:{port}/"))
                await trio.aclose_forcefully(stream)
            finally:
                nursery.cancel_scope.cancel(reason="the test is over")


async def test_the_agents_own_certificate_is_taken(authority: trustme.CA) -> None:
    await connect(authority.issue_cert("localhost"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_another_hosts_certificate_is_refused(authority: trustme.CA, host: str) -> None:
    """By name and by address."""
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match=r"TLS failed: .*mismatch")):
        await connect(authority.issue_cert("agent.example.com"), host=host)


async def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    """One signed by an untrusted authority, for example self-signed."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(OSError, match=r"TLS failed: .*(self.signed|unable to get local issuer)")
    ):
        await connect(trustme.CA().issue_cert("localhost"))


async def test_an_expired_certificate_is_refused(authority: trustme.CA) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match=r"TLS failed: .*expired")):
        await connect(authority.issue_cert("localhost", not_after=YESTERDAY))


@pytest.mark.parametrize(
    ("systems", "ours"),
    [
        (ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_2),  # Debian's Python
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
    ],
)
async def test_there_is_no_way_to_ask_for_less(
    systems: ssl.TLSVersion, ours: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's administrator can raise the oldest TLS version, but not lower it below 1.2."""
    default = ssl.create_default_context()
    default.minimum_version = systems
    monkeypatch.setattr(ssl, "create_default_context", lambda: default)
    context = websocket_client._client_tls()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ours
