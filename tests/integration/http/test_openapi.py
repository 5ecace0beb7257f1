"""schemathesis against the running server, from `GET /openapi.json`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import hypothesis
import pytest
import schemathesis
import trio
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bridge.http.openapi import description
from tests.world import OPERATOR, on_loopback, settings

# bridge's own errors are documented answers; these two are never intended.
UNINTENDED = {500, 501}

CHECKS: list[CheckFunction] = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The real server, in a thread of its own; without Twilio's signatures, which a generator of
    requests cannot make."""
    queue: SimpleQueue[Any] = SimpleQueue()

    async def serve() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        using = settings(twilio={"validate_signatures": False}, server={"max_calls": 5})
        async with on_loopback(using=using) as world:
            queue.put((world.base_url, partial(token.run_sync_soon, stop.set)))
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    url, stop = queue.get(timeout=30)
    yield url
    stop()
    thread.join(30)


api = schemathesis.openapi.from_dict(description())


@api.exclude(path_regex="/events$").parametrize()
@hypothesis.settings(max_examples=20, suppress_health_check=list(hypothesis.HealthCheck))
def test_the_server_does_as_described(case: schemathesis.Case, server: str) -> None:
    """Whatever a client sends, allowed or not: a status, a type and a body from the description,
    and never an unexpected error. The streams of events, which have no end, are left out.
    """
    answer = case.call(base_url=server, headers=OPERATOR, timeout=20)
    assert answer.status_code not in UNINTENDED
    # A header or path that is no HTTP is refused before anybody knows which route it is for.
    if answer.status_code == 400 and not answer.content:
        return
    case.validate_response(answer, checks=CHECKS)
