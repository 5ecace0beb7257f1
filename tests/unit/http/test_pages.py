"""The pages as files: who gets them, with which headers, and that they keep their own rules."""

from __future__ import annotations

import re

import httpx
import pytest

from bridge.config.secrets import Secrets
from bridge.http.app import create_app
from bridge.http.pages import assets, load

TOKEN = "api-token-5EC237-0123456789"
PAGES = ["console.html", "softphone.html"]


def client(
    *, token: str = "", peer: str = "127.0.0.1", host: str = "127.0.0.1:5000"
) -> httpx.AsyncClient:
    app = create_app(secrets=Secrets(api_token=token))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(peer, 40000)), base_url=f"http://{host}"
    )


async def test_anybody_gets_the_shell_and_from_any_link() -> None:
    async with client(token=TOKEN, peer="203.0.113.9", host="voice.example.com") as far:
        page = await far.get("/softphone", headers={"Sec-Fetch-Site": "cross-site"})
    assert page.status_code == 200
    assert TOKEN not in page.text


async def test_the_policy_lets_in_nothing_but_the_page_s_own() -> None:
    async with client() as here:
        page = await here.get("/")
    directives = dict(
        directive.split(" ", 1) for directive in page.headers["Content-Security-Policy"].split("; ")
    )
    assert directives == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self' ws://127.0.0.1:5000 wss://127.0.0.1:5000",
        "img-src": "'self' data:",
        "media-src": "'self'",
        "worker-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"


async def test_a_host_cannot_add_to_the_policy() -> None:
    async with client(token=TOKEN) as here:
        page = await here.get("/", headers={"Host": "a.example; script-src *"})
    policy = page.headers.get("Content-Security-Policy", "")
    assert "*" not in policy
    assert re.findall(r"(?:^|; )script-src ([^;]*)", policy) == ["'self'"]


@pytest.mark.parametrize(("path", "allowed"), [("/", "()"), ("/softphone", "(self)")])
async def test_only_the_softphone_may_ask_for_the_microphone(path: str, allowed: str) -> None:
    async with client() as here:
        page = await here.get(path)
    assert f"microphone={allowed}" in page.headers["Permissions-Policy"]


async def test_a_browser_keeps_the_files_and_asks_whether_they_changed() -> None:
    async with client() as here:
        first = await here.get("/assets/session.js")
        again = await here.get(
            "/assets/session.js", headers={"If-None-Match": first.headers["ETag"]}
        )
        other = await here.get("/assets/session.js", headers={"If-None-Match": '"other"'})
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2f__init__.py", "%2e%2e/softphone.html", "__init__.py", ""]
)
async def test_nothing_but_the_assets_is_served(name: str) -> None:
    async with client() as here:
        answer = await here.get(f"/assets/{name}")
    assert answer.status_code == 404


@pytest.mark.parametrize("name", PAGES)
def test_no_script_no_style_and_no_other_host_stands_in_a_page(name: str) -> None:
    text = load(name).body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    used = re.findall(r'<(?:script|link|img)\b[^>]*\b(?:src|href)="([^"]*)"', text)
    assert used
    for address in used:
        assert address.removeprefix("/assets/") in assets(), address


def test_no_asset_names_another_host() -> None:
    for name, asset in assets().items():
        text = re.sub(r"(?m)^\s*(//|\*|/\*).*$", "", asset.body.decode())  # comments cite sources
        hosts = set(re.findall(r"https?://[\w.-]+", text)) - {"http://www.w3.org"}
        assert not hosts, (name, hosts)
