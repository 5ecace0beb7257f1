"""The context hook: what it is asked, what it may answer, and that it never harms a call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from structlog.typing import EventDict

from bridge.caller import CallInfo
from bridge.deepgram.context_hook import MAX_ANSWER_BYTES, fetch_context

INFO = CallInfo(
    call_sid="CA1",
    stream_sid="MZ1",
    caller="+15551234567",
    called="+15557654321",
    parameters={"campaign": "spring"},
)
URL = "https://hooks.example.com/context"

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def lines() -> Iterator[list[EventDict]]:
    with capture_logs() as captured:
        yield captured


async def fetch(answer: httpx.Response | Handler, url: str = URL) -> dict[str, str]:
    handler = (lambda _request: answer) if isinstance(answer, httpx.Response) else answer
    return await fetch_context(url, INFO, 2.0, httpx.MockTransport(handler))


def only_reason(lines: list[EventDict]) -> str:
    (line,) = lines
    assert line["log_level"] == "warning"
    assert line["event"].startswith("call.context_url: ")
    reason = line["reason"]
    assert isinstance(reason, str)
    return reason


# ---- asked and answered ---------------------------------------------------------------------


async def test_it_is_told_the_facts_of_the_call() -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={})

    assert await fetch(handler) == {}
    (request,) = asked
    assert request.method == "POST"
    assert request.url == URL
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert msgspec.json.decode(request.content) == {
        "call_sid": "CA1",
        "caller": "+15551234567",
        "called": "+15557654321",
        "parameters": {"campaign": "spring"},
    }


async def test_texts_numbers_and_truth_values_are_variables(lines: list[EventDict]) -> None:
    body = rb"""{"name": "Ada \u00e9\n", "n": -3, "price": 12.50, "big": 1e400,
                 "vip": true, "x": false}"""
    assert await fetch(httpx.Response(200, content=body)) == {
        "name": "Ada é\n",
        "n": "-3",
        "price": "12.50",
        "big": "1e400",
        "vip": "true",
        "x": "false",
    }
    assert lines == []


async def test_all_else_is_ignored_and_named(lines: list[EventDict]) -> None:
    answer = httpx.Response(200, json={"a": "b", "list": ["secret"], "table": {}, "none": None})
    assert await fetch(answer) == {"a": "b"}
    (line,) = lines
    assert line["keys"] == ["list", "table", "none"]
    assert "secret" not in str(line)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",))),
        st.text(st.characters(exclude_categories=("Cs",))) | st.integers() | st.booleans(),
    )
)
async def test_the_hooks_variables_arrive(said: dict[str, Any]) -> None:
    expected = {
        key: value if isinstance(value, str) else str(value).lower() for key, value in said.items()
    }
    assert await fetch(httpx.Response(200, content=msgspec.json.encode(said))) == expected


async def test_any_2xx_will_do() -> None:
    assert await fetch(httpx.Response(201, json={"a": "b"})) == {"a": "b"}


async def test_an_answer_as_large_as_may_be() -> None:
    body = b'{"a": "' + b"x" * (MAX_ANSWER_BYTES - 9) + b'"}'
    assert len(body) == MAX_ANSWER_BYTES
    assert len((await fetch(httpx.Response(200, content=body)))["a"]) == MAX_ANSWER_BYTES - 9


# ---- whatever goes wrong, the call goes on --------------------------------------------------


def refuse(_request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no") from ConnectionRefusedError(111, "hooks.example.com: no")


def explode(_request: httpx.Request) -> httpx.Response:
    raise ZeroDivisionError("secret")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refuse, "cannot connect: ConnectionRefusedError"),
        (explode, "ZeroDivisionError"),
        (httpx.Response(500, json={"a": "b"}), "answered with status 500"),
        (httpx.Response(404), "answered with status 404"),
        (httpx.Response(302, headers={"location": "/else"}), "answered with status 302"),
        (httpx.Response(200, content=b""), "did not answer with a JSON object"),
        (httpx.Response(200, content=b"<html>"), "did not answer with a JSON object"),
        (httpx.Response(200, content=b'["a"]'), "did not answer with a JSON object"),
        (httpx.Response(200, content=b'{"a": "b"} x'), "did not answer with a JSON object"),
        (httpx.Response(200, content=b'{"a": "\xff"}'), "did not answer with a JSON object"),
        (httpx.Response(200, content=b'{"a": NaN}'), "did not answer with a JSON object"),
        (httpx.Response(200, content=b'{"a": ' + b"[" * 50_000), "did not answer with a JSON"),
        (httpx.Response(200, content=b" " * (MAX_ANSWER_BYTES + 1)), "more than 65536 bytes"),
    ],
)
async def test_a_hook_of_no_use_gives_no_variables_and_one_warning(
    answer: httpx.Response | Handler, reason: str, lines: list[EventDict]
) -> None:
    assert await fetch(answer) == {}
    assert reason in only_reason(lines)


@given(st.binary())
async def test_no_body_is_too_strange(body: bytes) -> None:
    context = await fetch(httpx.Response(200, content=body))
    assert all(isinstance(value, str) for value in context.values())


@pytest.mark.parametrize(
    "url", ["", "hooks.example.com", "ftp://example.com/", "http://[::1", "http://u:p@h:99x/"]
)
async def test_an_address_of_no_use(url: str, lines: list[EventDict]) -> None:
    assert await fetch_context(url, INFO, 2.0) == {}
    assert only_reason(lines) == "the URL does not begin with http:// or https://"


async def test_a_bomb_is_not_unpacked(lines: list[EventDict]) -> None:
    def handler(_request: httpx.Request) -> httpx.Response:
        packed = httpx.ByteStream(b"not even gzip")
        return httpx.Response(200, stream=packed, headers={"content-encoding": "gzip"})

    assert await fetch(handler) == {}
    assert only_reason(lines) == (
        "answered with a compressed body, although only identity was accepted"
    )


class Endless(httpx.AsyncByteStream):
    """A body that never ends; counts what was taken of it."""

    def __init__(self, pause: float = 0.0) -> None:
        self.taken = 0
        self.closed = False
        self._pause = pause

    async def __aiter__(self) -> Any:
        while True:
            await trio.sleep(self._pause)
            self.taken += 1024
            yield b" " * 1024

    async def aclose(self) -> None:
        self.closed = True


async def test_no_more_is_read_than_may_be(lines: list[EventDict]) -> None:
    body = Endless()
    assert await fetch(httpx.Response(200, stream=body)) == {}
    assert body.taken == MAX_ANSWER_BYTES + 1024
    assert body.closed
    assert "more than" in only_reason(lines)


async def test_a_body_that_drips_is_no_way_around_the_deadline(
    autojump_clock: trio.testing.MockClock, lines: list[EventDict]
) -> None:
    body = Endless(pause=0.3)
    began = trio.current_time()
    assert await fetch(httpx.Response(200, stream=body)) == {}
    assert trio.current_time() - began == pytest.approx(2.0)
    assert body.closed
    assert only_reason(lines) == "no complete answer within 2 seconds"


async def test_being_cancelled_is_no_failure_of_the_hook(
    autojump_clock: trio.testing.MockClock, lines: list[EventDict]
) -> None:
    body = Endless(pause=0.3)
    with trio.move_on_after(1.0) as scope:
        await fetch(httpx.Response(200, stream=body))
        pytest.fail("it was cancelled")
    assert scope.cancelled_caught
    assert body.closed
    assert lines == []


# ---- what must not get out ------------------------------------------------------------------


async def test_credentials_are_sent_and_never_logged(
    lines: list[EventDict], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(500)

    assert await fetch(handler, "https://ada:s3cret@hooks.example.com/context") == {}
    (request,) = asked
    assert request.url == URL
    assert request.headers["authorization"] == "Basic YWRhOnMzY3JldA=="
    assert only_reason(lines) == "answered with status 500"
    assert "s3cret" not in caplog.text


async def test_nothing_goes_to_where_a_redirect_points() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(307, headers={"location": "https://elsewhere.example.com/"})

    await fetch(handler)
    assert asked == [URL]
