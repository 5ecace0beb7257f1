"""schemathesis against the running server, from `GET /openapi.json`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings

from bridge.http.openapi import description
from tests.world import OPERATOR, on_loopback
from tests.world import settings as settings_of

# bridge's own errors are documented answers; these two are never intended.
UNINTENDED = {500, 501}


def cases() -> Iterator[tuple[str, str, str]]:
    """Each operation with requests that are allowed, and if it takes anything, with others. The
    streams of events, which have no end, are left out."""
    for path, item in description()["paths"].items():
        for method in item.keys() - {"parameters"}:
            if not path.endswith("/events"):
                yield method, path, "positive"
                if {"parameters", "requestBody"} & (item.keys() | item[method].keys()):
                    yield method, path, "negative"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The real server, in a thread of its own; without Twilio's signatures, which a generator of
    requests cannot make."""
    queue: SimpleQueue[Any] = SimpleQueue()

    async def serve() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        using = settings_of(twilio={"validate_signatures": False}, server={"max_calls": 5})
        async with on_loopback(using=using) as world:
            queue.put((world.base_url, partial(token.run_sync_soon, stop.set)))
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    url, stop = queue.get(timeout=30)
    yield url
    stop()
    thread.join(30)


@pytest.mark.parametrize(("method", "path", "mode"), sorted(cases()))
def test_the_server_does_as_described(method: str, path: str, mode: str, server: str) -> None:
    """Whatever a client sends: a status, a type and a body from the description, and never an
    unexpected error.
    """
    # Here, because importing it takes seconds, which all processes would need.
    import schemathesis
    from schemathesis.specs.openapi import checks

    wanted = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    operation = schemathesis.openapi.from_dict(description())[path][method]

    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def does(case: schemathesis.Case) -> None:
        answer = case.call(base_url=server, headers=OPERATOR, timeout=60)
        assert answer.status_code not in UNINTENDED
        # A header or path that is no HTTP is refused before anybody knows which route it is for.
        if answer.status_code != 400 or answer.content:
            case.validate_response(answer, checks=wanted)

    does()
