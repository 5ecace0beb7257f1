"""The control API, the console and the softphone against other sites' pages, and behind proxies.

The whole application; what the Gate alone decides is in control/test_access.py.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from quart_trio import QuartTrio
from structlog.testing import capture_logs

from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.http.app import create_app
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, OWN_NUMBER, TwilioStandIn
from tests.twilio_standin import AUTH_TOKEN as STANDIN_TOKEN
from tests.world import AUTH_TOKEN, settings

TOKEN = "api-token-5EC237-0123456789"
SECRETS = Secrets(
    deepgram_api_key="dg-key-5EC237-0123456789",
    twilio_account_sid="AC" + "5" * 32,
    twilio_auth_tokens=(AUTH_TOKEN,),
    api_token=TOKEN,
)
HOST = "voice.example.com"
PAGES = ["/", "/softphone", "/assets/base.css", "/assets/session.js"]
GUARDED = [
    ("GET", "/calls"),
    ("POST", "/calls"),
    ("GET", "/calls/CA" + "5" * 32),
    ("DELETE", "/calls/CA" + "5" * 32),
    *(
        ("POST", "/calls/CA" + "5" * 32 + action)
        for action in ("/say", "/say-as-agent", "/transfer")
    ),
    ("GET", "/events"),
    ("GET", "/calls/CA" + "5" * 32 + "/events"),
    ("POST", "/softphone/call"),
]
OPEN = [("GET", path) for path in [*PAGES, "/healthz", "/readyz", "/metrics"]]


def application(secrets: Secrets = SECRETS, **tables: dict[str, Any]) -> QuartTrio:
    app = create_app(FixedConfig(settings(**tables)), secrets)
    app.extensions["bridge"].prepare()
    return app


async def ask(
    app: QuartTrio,
    method: str,
    path: str,
    *,
    peer: str = "203.0.113.9",
    host: str = HOST,
    token: str = "",
    **headers: str,
) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        given["Authorization"] = f"Bearer {token}"
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(peer, 40000)), base_url=f"https://{host}"
    ) as client:
        return await client.request(
            method, path, headers=given, json={} if method == "POST" else None
        )


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_what_costs_or_tells_needs_the_token(method: str, path: str) -> None:
    app = application()
    assert (await ask(app, method, path)).status_code == 401
    assert (await ask(app, method, path, token=TOKEN[:-1])).status_code == 401
    assert (await ask(app, method, path, token=TOKEN + "0")).status_code == 401


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_without_one_the_server_makes_one_and_this_machine_needs_it_too(
    method: str, path: str
) -> None:
    """However local a client looks: a proxy here looks the same."""
    app = application(Secrets(twilio_auth_tokens=(AUTH_TOKEN,)))
    assert app.extensions["bridge"].api_token
    here: dict[str, Any] = {"peer": "127.0.0.1", "host": "127.0.0.1:5000"}
    for strange in ({}, here, {**here, "X_Forwarded_For": "127.0.0.1"}, {**here, "peer": ""}):
        assert (await ask(app, method, path, **strange)).status_code == 401
    for strange in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert (await ask(app, method, path, **here, **strange)).status_code == 403


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_another_sites_page_may_not_use_the_token_either(method: str, path: str) -> None:
    app = application()
    for strange in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "same-site"}):
        response = await ask(app, method, path, token=TOKEN, **strange)
        assert response.status_code == 403


@pytest.mark.parametrize(("method", "path"), [*GUARDED, *OPEN])
async def test_no_answer_is_for_another_site(method: str, path: str) -> None:
    """No CORS, not even for a preflight; no frames; no guessing of types."""
    app = application()
    origin = {"Origin": "https://evil.example"}
    for response in (
        await ask(app, method, path),
        await ask(app, method, path, **origin),
        await ask(app, "OPTIONS", path, **origin, Access_Control_Request_Method=method),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", PAGES)
async def test_nothing_secret_and_nothing_of_a_call_is_in_a_page(path: str) -> None:
    app = application(agent={"greeting": "greeting-5EC237"})
    response = await ask(app, "GET", path)
    assert response.status_code == 200
    for value in (*SECRETS.values(), "5EC237"):
        assert value not in response.text
    if path in ("/", "/softphone"):
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["Referrer-Policy"] == "no-referrer"


async def test_the_name_a_trusted_proxy_was_asked_by_is_ours() -> None:
    """A page there sends that name as its Origin, and the proxy another one as Host."""
    origin = {"Origin": f"https://{HOST}"}
    forwarded = {**origin, "X_Forwarded_Host": HOST, "X_Forwarded_For": "203.0.113.9"}
    behind = {"peer": "10.0.0.7", "host": "inside:5000", "token": TOKEN}
    app = application(server={"trusted_proxies": ("10.0.0.7",)})
    assert (await ask(app, "GET", "/calls", **behind, **forwarded)).status_code == 200
    assert (await ask(application(), "GET", "/calls", **behind, **forwarded)).status_code == 403
    app = application(server={"public_url": f"https://{HOST}"})
    assert (await ask(app, "GET", "/calls", **behind, **origin)).status_code == 200


async def test_twilio_is_sent_to_the_name_the_proxy_was_asked_by() -> None:
    twilio = TwilioStandIn()
    app = application(server={"trusted_proxies": ("10.0.0.7",)})
    rest = TwilioRest(ACCOUNT_SID, STANDIN_TOKEN, transport=twilio.transport())
    app.extensions["bridge"].twilio = rest
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-Host": HOST}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=("10.0.0.7", 40000)), base_url="http://inside"
    ) as client:
        numbers = {"to": "+15551234567", "from": OWN_NUMBER}
        response = await client.post("/calls", json=numbers, headers=headers)
        page = await client.get("/softphone", headers=headers)
    assert response.status_code == 201
    (call,) = twilio.calls.values()
    assert call.asked("Url") == f"https://{HOST}/incoming-call"
    assert f"wss://{HOST}" in page.headers["Content-Security-Policy"]
    await rest.aclose()


async def test_a_guessing_client_is_told_from_others_behind_the_same_proxy() -> None:
    app = application(server={"trusted_proxies": ("10.0.0.7",)})
    for _ in range(11):
        guess = await ask(app, "GET", "/calls", peer="10.0.0.7", X_Forwarded_For="203.0.113.9")
    assert guess.status_code == 429
    other = await ask(app, "GET", "/calls", peer="10.0.0.7", X_Forwarded_For="198.51.100.1")
    assert other.status_code == 401


async def test_the_log_says_who_dialled_or_hung_up_or_was_refused() -> None:
    app = application(
        Secrets(twilio_auth_tokens=(AUTH_TOKEN,), api_token=TOKEN),
        server={"trusted_proxies": ("10.0.0.7",)},
    )
    sid = "CA" + "5" * 32
    with capture_logs() as lines:
        await ask(app, "DELETE", f"/calls/{sid}", token=TOKEN)
        through: dict[str, Any] = {"peer": "10.0.0.7", "X_Forwarded_For": "198.51.100.1"}
        await ask(app, "DELETE", f"/calls/{sid}", token=TOKEN, **through)
        await ask(app, "POST", "/softphone/call", token=TOKEN, **through)
        await ask(app, "GET", "/calls", **through)
    told = [(line["event"], line["peer"]) for line in lines if "peer" in line]
    assert told == [
        ("operator hung up", "203.0.113.9"),
        ("operator hung up", "198.51.100.1"),
        ("softphone call", "198.51.100.1"),
        ("control API refused", "198.51.100.1"),
    ]
    assert TOKEN not in repr(lines)
