"""Tunnels, with small programs in place of cloudflared and ngrok: they print what those print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

import bridge.server.tunnel as module
from bridge.server.tunnel import TunnelError, open_tunnel

ADDRESS = "https://four-dashed-word-url.trycloudflare.com"
CLOUDFLARED = f"""\
2026-01-29T09:49:15Z INF Thank you for trying Cloudflare Tunnel. https://developers.cloudflare.com/
2026-01-29T09:49:15Z INF Requesting new quick Tunnel on trycloudflare.com...
2026-01-29T09:49:18Z INF +------------------------------------------------------------+
2026-01-29T09:49:18Z INF |  Your quick Tunnel has been created! Visit it at (it may take some time):
2026-01-29T09:49:18Z INF |  {ADDRESS}                    |
"""
REFUSED = (
    'failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": dial tcp: '
    "lookup api.trycloudflare.com: no such host"
)
NGROK = "\n".join(
    json.dumps({"lvl": "info", "t": "2026-09-12T20:25:17+0200", **event})
    for event in (
        {"msg": "no configuration paths supplied"},
        {"msg": "starting web service", "obj": "web", "addr": "127.0.0.1:4040"},
        {"msg": "started tunnel", "addr": "http://127.0.0.1:5000", "url": "http://a1.ngrok.io"},
        {"msg": "started tunnel", "addr": "http://127.0.0.1:5000", "url": "https://a1.ngrok.io"},
    )
)

# Notes what it was started with and every TERM it gets, in files next to itself; prints; stays.
PROGRAM = """\
#!{python} -IS
import json, os, pathlib, signal, sys
here = pathlib.Path(__file__).parent
(here / "started").write_text(json.dumps([sys.argv[1:], dict(os.environ), os.getpid()]))
def terminated(*_):
    (here / "terminated").write_text("yes")
    if not {stubborn}:
        sys.exit(0)
signal.signal(signal.SIGTERM, terminated)
sys.{stream}.write({text!r})
sys.{stream}.flush()
{then}
"""
STAY = "while True: signal.pause()"


class Programs:
    """A folder of programs, and an environment whose PATH is that folder alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Any] = []
        self.environ = {"PATH": str(folder), "HOME": "/", "TWILIO_AUTH_TOKEN": "tw-5EC237"}

    def add(
        self,
        name: str = "cloudflared",
        text: str = CLOUDFLARED,
        *,
        stream: str = "stderr",
        then: str = STAY,
        stubborn: bool = False,
    ) -> None:
        path = self.folder / name
        path.write_text(
            PROGRAM.format(
                python=sys.executable, stream=stream, text=text, then=then, stubborn=stubborn
            )
        )
        path.chmod(0o755)

    def started(self) -> tuple[list[str], dict[str, str], int]:
        arguments, environ, pid = json.loads((self.folder / "started").read_text())
        return arguments, environ, pid

    @property
    def terminated(self) -> bool:
        return (self.folder / "terminated").exists()

    def is_gone(self) -> bool:
        """It ended and has been waited for, and its output is closed."""
        (process,) = self.processes
        return process.returncode is not None and process.stdout.fileno() == -1


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    programs = Programs(tmp_path)
    real = trio.lowlevel.open_process

    async def open_process(*arguments: Any, **options: Any) -> trio.Process:
        process = await real(*arguments, **options)
        programs.processes.append(process)
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    return programs


def read(monkeypatch: pytest.MonkeyPatch, words: str) -> trio.Event:
    """Set when the program's output was read as far as a line with these words."""
    event = trio.Event()
    keep = module._Lines._keep

    def watched(lines: module._Lines, line: bytes) -> str:
        text = keep(lines, line)
        if words in text:
            event.set()
        return text

    monkeypatch.setattr(module._Lines, "_keep", watched)
    return event


async def soon(event: trio.Event) -> None:
    with trio.fail_after(20):
        await event.wait()


async def test_cloudflared(programs: Programs) -> None:
    programs.add()
    with capture_logs() as logs:
        async with open_tunnel(5000, environ=programs.environ) as address:
            assert address == ADDRESS
            assert not programs.terminated
    arguments, environ, _ = programs.started()
    assert arguments == ["tunnel", "--no-autoupdate", "--url", "http://127.0.0.1:5000"]
    assert "TWILIO_AUTH_TOKEN" not in environ
    assert environ["HOME"] == "/"
    assert programs.terminated
    assert programs.is_gone()
    assert [line["event"] for line in logs] == ["tunnel open"]


async def test_ngrok(programs: Programs) -> None:
    programs.add("ngrok", NGROK + "\n", stream="stdout")
    async with open_tunnel(5001, environ=programs.environ) as address:
        assert address == "https://a1.ngrok.io"
    arguments, _, _ = programs.started()
    assert arguments == ["http", "127.0.0.1:5001", "--log", "stdout", "--log-format", "json"]
    assert programs.is_gone()


async def test_cloudflared_comes_first(programs: Programs) -> None:
    programs.add("ngrok", NGROK + "\n", stream="stdout")
    programs.add()
    async with open_tunnel(5000, environ=programs.environ) as address:
        assert address == ADDRESS


async def test_with_neither_there_are_both_hints(programs: Programs) -> None:
    with pytest.raises(TunnelError) as caught:
        async with open_tunnel(5000, environ=programs.environ):
            pass
    text = str(caught.value)
    assert text.isprintable()
    assert "cloudflared: https://developers.cloudflare.com/" in text
    assert "ngrok: https://ngrok.com/download" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (REFUSED + "\n", "no such host"),
        (REFUSED, "no such host"),  # without a line break at the end
        ("", "without output"),
        ("\x1b[31mred\x1b[0m\n\n\n", r"\x1b[31mred\x1b[0m"),
        ("".join(f"line {n}\n" for n in range(9)), "line 4 | line 5 | line 6 | line 7 | line 8"),
    ],
)
async def test_it_ends_before_there_is_an_address(
    programs: Programs, text: str, words: str
) -> None:
    programs.add(text=text, then="sys.exit(1)")
    with pytest.raises(TunnelError) as caught:
        async with open_tunnel(5000, environ=programs.environ):
            pass
    assert str(caught.value).startswith("cloudflared ended without an address")
    assert str(caught.value).endswith(words)
    assert programs.is_gone()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cloudflared", "INF Requesting new quick Tunnel\n"),
        ("cloudflared", "half a line"),
        ("cloudflared", "x" * 200_000 + "\n"),
        ("cloudflared", "https://api.trycloudflare.com https://a.trycloudflare.com.evil.example\n"),
        ("ngrok", "https://a1.ngrok.io\n[1]\n" + "[" * 50_000 + "\n"),
        ("ngrok", '{"msg": "started tunnel"}\n{"msg": "started tunnel", "url": "http://a"}\n'),
        ("ngrok", '{"msg": "join connections", "url": "https://a1.ngrok.io"}\n'),
    ],
)
async def test_no_address_comes(programs: Programs, name: str, text: str) -> None:
    programs.add(name, text)
    with pytest.raises(TunnelError, match=r"gave no address within 0\.5 seconds"):
        async with open_tunnel(5000, deadline=0.5, environ=programs.environ):
            pass
    assert programs.is_gone()


async def test_the_body_s_error_ends_it_too(programs: Programs) -> None:
    programs.add()
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="address in use")):
        async with open_tunnel(5000, environ=programs.environ):
            raise OSError("address in use")
    assert programs.terminated
    assert programs.is_gone()


@pytest.mark.parametrize("text", [CLOUDFLARED, "nothing yet\n"])
async def test_cancelled_it_ends_too(
    programs: Programs, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.add(text=text)
    ready = read(monkeypatch, text.splitlines()[-1])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def tunnel() -> None:
            async with open_tunnel(5000, environ=programs.environ):
                await trio.sleep_forever()

        await soon(ready)
        nursery.cancel_scope.cancel()
    assert programs.terminated
    assert programs.is_gone()


async def test_one_that_ignores_the_signal_is_killed(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TERMINATE_SECONDS", 0.3)
    programs.add(stubborn=True)
    async with open_tunnel(5000, environ=programs.environ):
        pass
    assert programs.terminated
    assert programs.is_gone()


async def test_later_output_does_not_stop_it(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a pipe holds; it gets as far as saying so only if all of it is read."""
    much = 'sys.stderr.write(("x" * 99 + "\\n") * 5000 + "all said\\n")\nsys.stderr.flush()'
    programs.add(then=f"{much}\n{STAY}")
    all_said = read(monkeypatch, "all said")
    async with open_tunnel(5000, environ=programs.environ):
        await soon(all_said)
        assert programs.processes[0].poll() is None
    assert programs.terminated


async def test_one_that_ends_later_is_reported(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    event = trio.Event()

    class Log:
        def info(self, *_: object, **__: object) -> None: ...

        def error(self, words: str, *, why: str) -> None:
            told.append(f"{words}: {why}")
            event.set()

    monkeypatch.setattr(module, "log", Log())
    programs.add(then='print("ERR lost connection", file=sys.stderr)')
    async with open_tunnel(5000, environ=programs.environ):
        await soon(event)
    (line,) = told
    assert line.startswith("tunnel closed; restart for a new one")
    assert line.endswith("ERR lost connection")
    assert programs.is_gone()


async def test_ctrl_c_on_the_terminal_does_not_reach_it(programs: Programs) -> None:
    """The server lets its calls end first; they go through the tunnel."""
    programs.add()
    async with open_tunnel(5000, environ=programs.environ):
        pid = programs.started()[2]
        assert os.getpgid(pid) != os.getpgid(0)
        assert os.getsid(pid) == pid
