"""Nobody is an operator by where he comes from: a token, in every way the server is run.

Without BRIDGE_API_TOKEN the server makes one for the run (finding A1 of the attacks). A proxy on
this machine makes every stranger come from 127.0.0.1, and nginx asks for 127.0.0.1, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from bridge.server.kept_token import kept_token
from tests.endtoend.servers import (
    HYPERCORN_0,
    HYPERCORN_2,
    SERVE,
    SERVE_2,
    Mode,
    Server,
    running,
)
from tests.proxies import proxy

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PRINTED = re.compile(r"^console: (http://127\.0\.0\.1:\d+/)#token=(\S+) ")

ROUTES = [
    ("GET", "/calls"),
    ("GET", "/events"),
    ("GET", "/calls/CA" + "0" * 32),
    ("DELETE", "/calls/CA" + "0" * 32),
    ("POST", "/calls"),
    ("POST", "/softphone/call"),
]


def unset(folder: Path) -> dict[str, str]:
    """An environment without a token of the operator's; the server's own is kept in `folder`."""
    return {"BRIDGE_API_TOKEN": "", "XDG_RUNTIME_DIR": str(folder)}


async def ask(url: str, method: str, path: str, token: str = "") -> int:
    """The status that a new connection gets."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = {"to": "+15551234567"} if method == "POST" else None
        return (await client.request(method, path, headers=headers, json=body)).status_code


async def printed(server: Server) -> str:
    """The one token that the server printed."""
    one = await server.wrote(PRINTED)
    assert server.base_url == one[1].rstrip("/")
    return one[2]


@pytest.mark.parametrize("mode", [SERVE, SERVE_2, HYPERCORN_0, HYPERCORN_2], ids=lambda m: m.name)
async def test_one_token_for_the_run_and_for_all_workers(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with running(mode, tmp_path, env=unset(tmp_path)) as server:
        token = await printed(server)
        assert kept_token(server.base_url) == token
        for _ in range(6):  # each connection is any worker's
            assert await ask(server.base_url, "GET", "/calls", token) == 200
            assert await ask(server.base_url, "GET", "/calls") == 401
        server.signal(signal.SIGTERM)
        await server.ended()
        assert [line for line in server.other if token in line][1:] == []
        assert not [line for line in server.lines if token in str(line)]
    assert kept_token(server.base_url) == ""


async def test_a_command_on_this_machine_needs_no_token(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], **unset(tmp_path)}
    async with running(SERVE, tmp_path, env=env) as server:
        await printed(server)
        command = "from bridge.cli import main; main()"
        options = ["dial", "+15551234567", "--from", "+15557654321", "--url", server.base_url]
        done = await trio.run_process(
            [sys.executable, "-c", command, *options], env=env, capture_stderr=True, check=False
        )
    assert b"no Twilio credentials" in done.stderr


@asynccontextmanager
async def nginx(upstream: str, folder: Path, more: str) -> AsyncIterator[str]:
    """nginx by its own recipe for websockets: https://nginx.org/en/docs/http/websocket.html"""
    assert NGINX is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    (folder / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
            uwsgi_temp_path {folder}; scgi_temp_path {folder};
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://{upstream};
                    proxy_http_version 1.1;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection "upgrade";
                    {more}
                }}
            }}
        }}
    """)
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                break
            except OSError:
                await trio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with trio.move_on_after(5, shield=True):
            await process.wait()


async def test_a_stranger_behind_a_proxy_that_adds_nothing_is_none(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    public = {"public_url": "https://voice.example.com"}
    async with running(SERVE, tmp_path, env=unset(tmp_path), **public) as server:
        upstream = server.base_url.removeprefix("http://")
        for host in ("", upstream, "localhost", "127.0.0.1:5000"):
            stranger = await nursery.start(partial(proxy, upstream, host))
            for method, path in ROUTES:
                status = await ask(stranger, method, path)
                assert status in (401, 429), (host, method, path)
        token = await printed(server)
        assert await ask(stranger, "GET", "/calls", token) == 200
    nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize(
    "more", ["", "proxy_set_header Host $host;", "proxy_set_header X-Real-IP 127.0.0.1;"]
)
async def test_a_stranger_behind_nginx_is_none(tmp_path: Path, more: str) -> None:
    public = {"public_url": "https://voice.example.com"}
    async with (
        running(SERVE, tmp_path, env=unset(tmp_path), **public) as server,
        nginx(server.base_url.removeprefix("http://"), tmp_path, more) as stranger,
    ):
        for method, path in ROUTES:
            assert await ask(stranger, method, path) == 401, (method, path)
        assert await ask(stranger, "GET", "/calls", await printed(server)) == 200
