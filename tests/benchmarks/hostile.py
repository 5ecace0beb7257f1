"""The cost of hostile peers: `python -m tests.benchmarks.hostile [--seconds 4] [--only WORDS]`.

One server process is attacked by one peer at a time, as fast as the peer can. Where it matters, the
peer signs as Twilio does, because an unsigned one only gets 403. For each, this prints the server's
CPU time per second, its growth in memory, and the slowest request of another client meanwhile. The
first line is an ordinary call, to compare with.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from tests.conformance.cases import Role
from tests.endtoend.servers import SERVE, Server, running
from tests.unit.server.wire import UPGRADE
from tests.world import signed

CLIENT = Role(masks=True)
# Connections that attacks have opened since the last measurement.
made = 0

TICKS = os.sysconf("SC_CLK_TCK")

Attack = Callable[[Server], Awaitable[None]]


def usage(pid: int) -> tuple[float, float]:
    """Return CPU seconds used, and resident memory in KiB."""
    facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    return (int(facts[11]) + int(facts[12])) / TICKS, resident


def address(it: Server) -> tuple[str, int]:
    host, _, port = it.base_url.removeprefix("http://").partition(":")
    return host, int(port)


async def connect(it: Server) -> trio.SocketStream:
    global made
    made += 1
    return await trio.open_tcp_stream(*address(it))


async def media_socket(it: Server) -> trio.SocketStream:
    """Open a media socket that the server accepts, and send no `start`."""
    host, port = address(it)
    stream = await connect(it)
    head = UPGRADE.replace(b"/ws", b"/media-stream").replace(
        b"Host: x", f"Host: {host}:{port}".encode()
    )
    for name, value in signed(f"{host}:{port}"):
        head += name + b": " + value + b"\r\n"
    await stream.send_all(head + b"\r\n")
    assert b" 101 " in bytes(await stream.receive_some())
    return stream


async def pour(it: Server, data: bytes, begin: bytes = b"") -> None:
    """Send `data` as fast as the server accepts it, on one socket after another."""

    async def push(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(begin)
            while True:
                await stream.send_all(data)

    while True:
        async with await media_socket(it) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            nursery.start_soon(push, stream)


async def drain(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for _ in stream:
            pass
    await stream.aclose()


async def call(it: Server) -> None:
    async with it.call(strict=False) as (phone, _):
        while True:
            await phone.say(bytes(8000))


def flood(data: bytes, begin: bytes = b"") -> Attack:
    async def attack(it: Server) -> None:
        await pour(it, data, begin)

    return attack


async def slow_heads(it: Server) -> None:
    """Open two hundred connections that send one byte a second."""

    async def one() -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                async with await connect(it) as stream:
                    for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 100:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(one)


async def idle_sockets(it: Server) -> None:
    """Open five hundred connections that send nothing."""
    async with trio.open_nursery() as nursery:
        for _ in range(500):
            stream = await trio.open_tcp_stream(*address(it))
            nursery.start_soon(drain, stream)


async def bodies_that_never_come(it: Server) -> None:
    """Announce five hundred bodies under a made-up signature, again when closed (finding A3)."""
    head = (
        b"POST /incoming-call HTTP/1.1\r\nHost: x\r\nX-Twilio-Signature: x\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\n"
    )
    await many(it, 500, head)


def pipelining(target: bytes) -> Attack:
    """Ask for `target` on four hundred connections without reading an answer (finding B5)."""

    async def attack(it: Server) -> None:
        await many(it, 400, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n", reads=False)

    return attack


async def many(it: Server, connections: int, data: bytes, *, reads: bool = True) -> None:
    """Keep so many connections open, each of which sends `data` and reads what comes; or reads
    nothing and sends it again and again."""

    async def one() -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                async with await connect(it) as stream:
                    await stream.send_all(data)
                    while reads and await stream.receive_some():
                        pass
                    while not reads:
                        await stream.send_all(data * 100)

    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(one)


def requests(data: bytes) -> Attack:
    """Open one connection after another, each of which sends only `data`."""

    async def attack(it: Server) -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                async with await connect(it) as stream:
                    await stream.send_all(data)
                    while await stream.receive_some():
                        pass

    return attack


PEERS: dict[str, Attack] = {
    "a call (the good peer)": call,
    "pings": flood(CLIENT.frame(9) * 1000),
    "pongs": flood(CLIENT.frame(10) * 1000),
    "empty messages": flood(CLIENT.frame(1) * 1000),
    "fragments of nothing": flood(CLIENT.frame(0, fin=False) * 1000, CLIENT.frame(1, fin=False)),
    "nonsense": flood(CLIENT.frame(1, b"nonsense") * 1000),
    "messages of 64 KiB": flood(CLIENT.frame(1, b"[" * 65_000)),
    "a message too big": flood(CLIENT.frame(1, b"x" * 65_536, fin=False)),
    "unsigned upgrades": requests(UPGRADE.replace(b"/ws", b"/media-stream") + b"\r\n"),
    "headers without end": requests(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5000),
    "junk": requests(bytes(range(256)) * 100),
    "200 slow heads": slow_heads,
    "500 silent connections": idle_sockets,
    "500 bodies that never come": bodies_that_never_come,
    "400 pipelining /metrics": pipelining(b"/metrics"),
    "400 pipelining /healthz": pipelining(b"/healthz"),
}


async def measure(it: Server, attack: Attack, seconds: float) -> tuple[float, float, float, float]:
    """Return CPU in ms per second, the largest growth in KiB, the slowest request in ms, and
    connections opened per second."""
    global made
    slowest, grown, made = 0.0, 0.0, 0
    async with trio.open_nursery() as nursery:
        cpu, memory = usage(it.process.pid)
        began = trio.current_time()
        nursery.start_soon(attack, it)
        while trio.current_time() - began < seconds:
            asked = trio.current_time()
            await it.get("/healthz")
            slowest = max(slowest, trio.current_time() - asked)
            grown = max(grown, usage(it.process.pid)[1] - memory)
            await trio.sleep(0.1)
        used = usage(it.process.pid)[0] - cpu
        took = trio.current_time() - began
        nursery.cancel_scope.cancel(reason="measured")
    return 1000 * used / took, grown, 1000 * slowest, made / took


async def main(seconds: float, only: str) -> None:
    peers = [(name, attack) for name, attack in PEERS.items() if only in name]
    with tempfile.TemporaryDirectory() as folder:
        async with running(SERVE, Path(folder), patience=len(PEERS) * (seconds + 20)) as it:
            for warm_up in (True, False):
                for name, attack in list(PEERS.items())[:2] if warm_up else peers:
                    cpu, grown, slowest, rate = await measure(it, attack, 1 if warm_up else seconds)
                    if not warm_up:
                        print(
                            f"{name:26} {cpu:6.0f} ms CPU a second  {grown:7.0f} KiB grown  "
                            f"{slowest:6.0f} ms slowest request  {rate:6.1f} connections a second",
                            flush=True,
                        )
                    await trio.sleep(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="for each peer")
    parser.add_argument("--only", default="", help="only peers with these words in their name")
    options = parser.parse_args()
    trio.run(main, options.seconds, options.only)
