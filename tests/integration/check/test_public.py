"""The public address and what stands between it and the server, with stand-ins for the mistakes."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpx
import pytest
import trio
import trustme
from twilio.request_validator import RequestValidator

from bridge.check.public import ServerAddress, check_server, likely_addresses, local_address
from bridge.config.secrets import Secrets
from bridge.server.instance import HEADER, instance
from tests.integration.check.site import Request, Response, site
from tests.proxies import proxy
from tests.world import SECRETS, on_loopback, settings

TOKEN = "tw-token-5EC237"
SIGNED = Secrets(twilio_auth_tokens=(TOKEN,))
NOBODY = "127.0.0.1:0"
XML = {"Content-Type": "text/xml"}


def using(bind: str = NOBODY, public_url: str = ""):
    return settings(server={"bind": bind, "public_url": public_url})


def bridge_like(computed: Callable[[Request], str], name: str = "0123abcd", media: str = ""):
    """A bridge that takes itself to be at `computed`, whatever it was asked at."""
    validator = RequestValidator(TOKEN)

    def respond(request: Request) -> Response:
        if request.path == "/healthz":
            return Response(body=b"ok\n", headers={HEADER: name})
        signature = request.headers.get("x-twilio-signature", "")
        if not validator.validate(computed(request), dict(request.form), signature):
            return Response(403, b"no\n")
        host = media or request.headers["host"]
        inside = f'<Connect><Stream url="ws://{host}/media-stream"/></Connect>'
        return Response(body=f"<Response>{inside}</Response>".encode(), headers=XML)

    return respond


def by_check(findings):
    return {finding.check: finding for finding in findings}


async def test_the_real_server_here_and_behind_its_public_address():
    async with on_loopback() as world:
        bind = world.base_url.removeprefix("http://")
        found = by_check(await check_server(using(bind, world.base_url), SECRETS))
        await world.quiet()
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(
        ("server", "public", "operators", "signature", "webhook", "socket"), "ok"
    )
    assert found["signature"].what.endswith("accepts only requests signed by Twilio")
    assert found["public"].what == f"{world.base_url} reaches this server"


async def test_without_a_public_address_the_server_here_is_asked():
    async with on_loopback() as world:
        bind = world.base_url.removeprefix("http://")
        found = by_check(await check_server(using(bind), SECRETS))
        await world.quiet()
    assert found["public"].status == "skipped"
    assert found["socket"].status == "ok"


async def test_the_real_server_behind_a_proxy_that_changes_the_host(nursery):
    """The check names the address that the server takes itself to have."""
    async with on_loopback() as world:
        bind = world.base_url.removeprefix("http://")
        inner = f"localhost:{bind.partition(':')[2]}"
        public = await nursery.start(proxy, bind, inner)
        # The operator knows the address; the server was not told.
        found = by_check(await check_server(using(bind), SECRETS, public))
        nursery.cancel_scope.cancel("the test is over")
    assert found["public"].status == "ok"
    assert found["signature"].status == "wrong"
    computed = f"checks Twilio's signature for http://{inner}/incoming-call"
    assert computed in found["signature"].what
    assert f'server.public_url = "{public}"' in found["signature"].remedy


async def test_a_real_server_that_lets_everybody_in():
    open_to_all = settings(twilio={"validate_signatures": False})
    async with on_loopback(using=open_to_all) as world:
        found = by_check(await check_server(using(NOBODY, world.base_url), SECRETS))
        await world.quiet()
    # Harmless on this machine; elsewhere it would be wrong.
    assert "(and, on this machine, any)" in found["signature"].what


async def test_no_server_runs():
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))  # bound, not listening: reserves the port
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        [found] = await check_server(using(bind), Secrets())
    assert (found.check, found.status) == ("server", "skipped")
    assert "bridge serve" in found.remedy


async def test_the_port_belongs_to_somebody_else():
    async with site(lambda _: Response(403, headers={"Server": "AirTunes/1.0"})) as bind:
        [found] = await check_server(using(bind), Secrets())
    assert found.status == "wrong"
    assert "AirTunes/1.0" in found.what
    assert "server.bind" in found.remedy


async def test_the_public_address_reaches_another_bridge():
    async with (
        site(bridge_like(lambda r: f"http://{r.headers['host']}{r.path}")) as there,
        on_loopback() as world,
    ):
        bind = world.base_url.removeprefix("http://")
        found = by_check(await check_server(using(bind, f"http://{there}"), SIGNED))
    assert found["public"].status == "wrong"
    assert "another bridge" in found["public"].what
    assert instance() in found["public"].why


async def test_the_public_address_reaches_no_bridge():
    async with site(lambda _: Response(502, headers={"Server": "nginx"})) as there:
        [_, found] = await check_server(using(public_url=f"http://{there}"), Secrets())
    assert found.status == "wrong"
    assert "/healthz answered 502" in found.why
    assert "nginx" in found.why


async def test_nothing_listens_at_the_public_address():
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        found = (await check_server(using(public_url=url), Secrets()))[-1]
    assert (found.check, found.status) == ("public", "wrong")
    assert found.what.startswith("nothing listens")


async def test_a_certificate_that_twilio_would_refuse():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with site(lambda _: Response(), context) as there:
        found = (await check_server(using(public_url=f"https://{there}"), Secrets()))[-1]
    assert found.status == "wrong"
    assert found.what == f"the certificate of {there} is not trusted"
    assert "unable to get local issuer" in found.why


async def test_a_public_address_without_tls():
    async with site(lambda _: Response()) as there:
        found = (await check_server(using(public_url=f"https://{there}"), Secrets()))[-1]
    assert found.what == f"{there} does not speak TLS"


@pytest.mark.parametrize(
    "inner", ["http://localhost:5000", "http://127.0.0.1:5000", "https://127.0.0.1:5000"]
)
async def test_a_proxy_that_changes_what_was_signed(inner):
    """The server says 403; the check finds out for which address it would not have."""
    async with site(bridge_like(lambda r: inner + r.path)) as there:
        findings = await check_server(
            using("127.0.0.1:5000", f"http://{there}"), SIGNED, f"http://{there}"
        )
    found = by_check(findings)["signature"]
    assert found.status == "wrong"
    assert f"checks Twilio's signature for {inner}/incoming-call" in found.what
    assert f'server.public_url = "http://{there}"' in found.remedy


async def test_another_token():
    async with site(bridge_like(lambda r: f"http://{r.headers['host']}{r.path}")) as there:
        other = Secrets(twilio_auth_tokens=("another",))
        found = (await check_server(using(public_url=f"http://{there}"), other))[-1]
    assert found.check == "signature"
    assert "the server has another token" in found.why


async def test_a_server_that_wants_signatures_and_nothing_to_sign_with():
    async with site(bridge_like(lambda r: r.path)) as there:
        found = (await check_server(using(public_url=f"http://{there}"), Secrets()))[-1]
    assert (found.check, found.status) == ("signature", "skipped")
    assert "TWILIO_AUTH_TOKEN" in found.remedy


async def test_a_proxy_that_does_not_pass_on_websockets():
    async with site(bridge_like(lambda r: f"http://{r.headers['host']}{r.path}")) as there:
        found = by_check(await check_server(using(public_url=f"http://{there}"), SIGNED))
    assert found["signature"].status == "ok"
    assert found["webhook"].status == "ok"
    assert found["socket"].status == "wrong"
    assert "answered 403, not 101" in found["socket"].why


def start(_: Request) -> Response:
    return Response(
        body=b'<Response><Start><Stream url="wss://a.example/b"/></Start></Response>', headers=XML
    )


async def test_another_webhook_that_says_start():
    async with site(start) as there:
        found = by_check(await check_server(using(), Secrets(), f"http://{there}/voice.xml"))
    assert found["webhook"].status == "wrong"
    assert "<Start><Stream>" in found["webhook"].what


async def test_a_webhook_that_is_not_there():
    async with site(lambda _: Response(404)) as there:
        found = (await check_server(using(), Secrets(), f"http://{there}/voice"))[-1]
    assert (found.check, found.status) == ("webhook", "wrong")
    assert "answers 404" in found.what


def test_addresses_as_they_were_written():
    bare = ServerAddress("https://a.example", "https://a.example/incoming-call")
    assert ServerAddress.of("https://a.example") == ServerAddress.of("https://a.example/") == bare
    assert ServerAddress.of("https://a.example/incoming-call") == bare
    assert (
        ServerAddress.of("https://a.example/phone/incoming-call").base == "https://a.example/phone"
    )
    assert ServerAddress.of("https://a.example/twiml?x=1") == ServerAddress(
        "", "https://a.example/twiml?x=1"
    )


def test_where_a_server_is_on_this_machine():
    assert local_address("0.0.0.0:5000") == "http://127.0.0.1:5000"
    assert local_address("[::]:5000") == "http://[::1]:5000"
    assert local_address("10.1.2.3:80") == "http://10.1.2.3:80"


def test_likely_addresses_never_hold_the_one_that_was_refused():
    url = "https://voice.example.com/incoming-call"
    likely = list(likely_addresses(url, "0.0.0.0:5000"))
    assert url not in likely
    assert len(likely) == len(set(likely))
    assert "http://voice.example.com/incoming-call" in likely
    assert "https://voice.example.com:443/incoming-call" in likely
    assert "http://127.0.0.1:5000/incoming-call" in likely


async def test_the_name_of_a_server():
    async with on_loopback() as world, httpx.AsyncClient() as client:
        answers = [await client.get(f"{world.base_url}/healthz") for _ in range(2)]
    assert {answer.headers[HEADER] for answer in answers} == {instance()}
    assert len(instance()) == 16
