"""The HAProxy configuration: it speaks of what bridge has, and does what it says (A2).

The servers here are stubs that answer as a bridge does that is ready, drains or is full.
`tests/benchmarks/test_rolling.py` runs it with real ones, under load.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h11
import pytest
import trio

from bridge.admission.entrance import LAME_DUCK_SECONDS
from bridge.config.words import Words
from bridge.http.app import create_app
from bridge.http.twilio_hooks import ELSEWHERE
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import Hangup, Reject, Say
from bridge.testing.phone.webhook import WebhookError, request
from tests.haproxy import CONFIG, HAProxy, environment, haproxy, program
from tests.ports import free_port

TEXT = CONFIG.read_text()

# A checker of HAProxy's may take seconds on a busy machine.
PATIENCE = 60.0

BUSY = "<Response><Say>Toutes nos lignes sont occupees.</Say><Hangup/></Response>"
# As if the call was taken: it needs no media socket.
TAKEN = '<Response><Reject reason="busy"/></Response>'


def test_haproxy_takes_it_without_a_warning() -> None:
    proxy = HAProxy("127.0.0.1:5000", "127.0.0.1:8404")
    done = subprocess.run(
        [program(), "-c", "-dW", "-f", str(CONFIG)],
        env=environment(proxy, "127.0.0.1:5001", "127.0.0.1:5002"),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_it_passes_on_what_twilio_asks_for_and_no_more() -> None:
    paths = set(re.findall(r"acl \w+ path (/.*)", TEXT))
    passed = {path for line in paths for path in line.split()}
    routes = {rule.rule for rule in create_app().url_map.iter_rules()}
    assert passed == {
        *("/incoming-call", "/call-ended", "/media-stream"),
        *("/call-status", "/call-status/answered-by"),
    }
    assert passed <= routes
    assert set(re.findall(r"httpchk GET (\S+)", TEXT)) == {"/readyz"}


@pytest.mark.parametrize("name", ["del-header", "set-header"])
def test_it_uses_bridges_own_header(name: str) -> None:
    """Nobody outside may say it, and every webhook says it."""
    assert f"http-request {name} {ELSEWHERE}" in TEXT


def test_it_says_what_bridge_would_say() -> None:
    assert f"<Say>{Words().busy}</Say>" in TEXT


def test_it_knows_who_drains_before_calls_are_refused() -> None:
    inter, fall = map(int, re.findall(r"check inter (\d+)ms fall (\d+)", TEXT)[0])
    assert 2 * fall * inter / 1000 <= LAME_DUCK_SECONDS


# ---- running ------------------------------------------------------------------------------------


@dataclass
class Stub:
    """A server that takes calls or answers that it takes none; `asked` are the paths of requests
    besides checks."""

    address: str = ""
    ready: bool = True
    takes_calls: bool = True
    asked: list[str] = field(default_factory=list)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        host, port = listeners[0].socket.getsockname()
        self.address = f"{host}:{port}"
        await trio.serve_listeners(self._answer, listeners, task_status=task_status)

    async def _answer(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        head = None
        # HAProxy breaks off a check, and an answer that it does not want.
        async with stream:
            with suppress(trio.BrokenResourceError):
                while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                    if isinstance(event, h11.ConnectionClosed):
                        return
                    if isinstance(event, h11.Request):
                        head = event
                    elif event is h11.NEED_DATA:
                        connection.receive_data(bytes(await stream.receive_some()))
                assert head is not None
                status, body = self._response(head)
                fields = f"Content-Type: text/xml\r\nContent-Length: {len(body)}"
                answer = f"HTTP/1.1 {status} \r\n{fields}\r\nConnection: close\r\n\r\n{body}"
                await stream.send_all(answer.encode())

    def _response(self, head: h11.Request) -> tuple[int, str]:
        path = head.target.decode()
        if path == "/readyz":
            return (200 if self.ready else 503), ""
        self.asked.append(path)
        if self.takes_calls or path != "/incoming-call":
            return 200, TAKEN
        elsewhere = ELSEWHERE.lower().encode() in dict(head.headers)
        return (503 if elsewhere else 200), BUSY


@dataclass
class Scene:
    proxy: HAProxy
    a: Stub
    b: Stub

    async def call(self, *, pause: float = 0.0) -> list[object]:
        """Place one call, and return what it was answered."""
        phone = SimulatedPhone(webhook_pause=pause)
        async with phone.place_call(f"http://{self.proxy.front}"):
            await phone.wait_ended()
        return list(phone.verbs)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            stubs = Stub(), Stub()
            for stub in stubs:
                await nursery.start(stub.serve)
            async with haproxy(*(stub.address for stub in stubs)) as proxy:
                yield Scene(proxy, *stubs)
            nursery.cancel_scope.cancel(reason="done")


@pytest.mark.parametrize("pause", [0.0, 0.1])
async def test_a_webhook_that_one_server_refuses_is_answered_by_the_other(pause: float) -> None:
    """HAProxy has not noticed yet that `a` drains. The head and the body come in two segments."""
    async with scene() as it:
        it.a.takes_calls = False
        for _ in range(8):
            assert await it.call(pause=pause) == [Reject("busy")]
        assert it.a.asked
        assert len(it.b.asked) == 8


async def test_when_both_refuse_the_caller_hears_the_busy_words_of_a_server() -> None:
    """In the language of its `words.busy`, and as a success: Twilio reads no other answer."""
    async with scene() as it:
        it.a.takes_calls = it.b.takes_calls = False
        assert await it.call() == [Say("Toutes nos lignes sont occupees."), Hangup()]


async def test_when_no_server_is_there_the_caller_hears_haproxys_own_words() -> None:
    with trio.fail_after(PATIENCE):
        nowhere = (f"127.0.0.1:{free_port()}" for _ in "ab")
        async with haproxy(*nowhere) as proxy:
            phone = SimulatedPhone()
            async with phone.place_call(f"http://{proxy.front}"):
                await phone.wait_ended()
            assert phone.verbs == [Say(Words().busy), Hangup()]
            # Any other webhook fails: these words would be none that fit.
            with pytest.raises(WebhookError, match="503"):
                await request(f"http://{proxy.front}/call-ended", [])


@pytest.mark.parametrize("path", ["/incoming-call", "/media-stream", "/call-status/answered-by"])
async def test_when_no_server_is_ready_any_may_answer(path: str) -> None:
    """The checks may be wrong: a server whose line is free by now takes the call."""
    async with scene() as it:
        it.a.ready = it.b.ready = False
        for server in "ab":
            for backend in ("webhooks", "sockets"):
                await it.proxy.wait_state(server, "DOWN", backend)
        answer = await request(f"http://{it.proxy.front}{path}", [])
        assert answer.body == TAKEN.encode()
        assert it.a.asked + it.b.asked == [path]


async def test_a_server_is_up_for_webhooks_and_sockets_at_once() -> None:
    async with scene() as it:
        it.a.ready = False
        await it.proxy.wait_state("a", "DOWN")
        await it.proxy.wait_state("a", "DOWN", "sockets")
        for _ in range(3):
            await request(f"http://{it.proxy.front}/media-stream", [], method="GET")
        assert (it.a.asked, len(it.b.asked)) == ([], 3)
        it.a.ready = True
        await it.proxy.wait_state("a", "UP")


async def test_what_twilio_does_not_ask_for_is_not_passed_on() -> None:
    async with scene() as it:
        with pytest.raises(WebhookError, match="404"):
            await request(f"http://{it.proxy.front}/calls", [], method="GET")
        assert it.a.asked + it.b.asked == []
