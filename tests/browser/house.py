"""The real server under real hypercorn on loopback, in a thread of its own.

A browser is driven by blocking calls, so these tests are plain functions; Trio runs beside them.

    with house(using=settings()) as here:
        browser.open(f"{here.address}/softphone")
        call = here.ask(lambda: one_of(here.app.extensions["bridge"].calls))
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from queue import Queue
from typing import Any, TypeVar

import msgspec
import trio

from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.http.app import create_app
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.agent.server import Behaviour, Script, SimulatedAgent, silent
from tests.world import QUIET, SECRETS

T = TypeVar("T")

PATIENCE = 60.0

# Runs the agent for as long as it is entered, and gives its address.
Agent = Callable[[], AbstractAsyncContextManager[str]]


class House:
    """A running server. `address` is where the browser finds it, `app` the application."""

    def __init__(self, app: Any, address: str, token: trio.lowlevel.TrioToken) -> None:
        self.app = app
        self.address = address
        self._token = token

    @property
    def bridge(self) -> Any:
        """What all calls share."""
        return self.app.extensions["bridge"]

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    def ask(self, what: Callable[[], T]) -> T:
        """Do something synchronous in the server's thread, between two of its steps."""
        return trio.from_thread.run_sync(what, trio_token=self._token)

    def do(self, what: Callable[[], Awaitable[T]], seconds: float = PATIENCE) -> T:
        """Do something that waits in the server's thread, and wait for it, but not for ever."""

        async def within() -> T:
            with trio.fail_after(seconds):
                return await what()

        return trio.from_thread.run(within, trio_token=self._token)

    def quiet(self) -> None:
        """Wait until no call is live."""
        self.do(self.bridge.calls.wait_until_empty)


def simulated(script: Script = silent, behaviour: Behaviour = QUIET) -> Agent:
    """The scripted agent of the simulator."""

    @asynccontextmanager
    async def run() -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            agent = SimulatedAgent(script, behaviour)
            port = await nursery.start(agent.serve)
            yield f"ws://127.0.0.1:{port}/v1/agent/converse"
            nursery.cancel_scope.cancel(reason="the test is over")

    return run


@contextmanager
def house(
    agent: Agent | None = None, *, using: Settings, secrets: Secrets = SECRETS
) -> Iterator[House]:
    """Open the house, and close it with everything in it ended."""
    opened: Queue[House | BaseException] = Queue()
    shut = trio.Event()

    async def live() -> None:
        async with (agent or simulated())() as agent_url, trio.open_nursery() as nursery:
            chosen = msgspec.structs.replace(
                using,
                deepgram=msgspec.structs.replace(using.deepgram, url=agent_url),
                server=msgspec.structs.replace(using.server, bind="127.0.0.1:0"),
            )
            app = create_app(FixedConfig(chosen), secrets)
            (address,) = await nursery.start(
                partial(serve, app, hypercorn_config(chosen), shutdown=shut)
            )
            opened.put(House(app, address, trio.lowlevel.current_trio_token()))
            await shut.wait()
            nursery.cancel_scope.deadline = trio.current_time() + 10

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:
            opened.put(error)
            raise

    thread = threading.Thread(target=run, name="house")
    thread.start()
    here = opened.get(timeout=PATIENCE)
    if isinstance(here, BaseException):
        raise here
    try:
        yield here
    finally:
        here.ask(shut.set)
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the house does not close"
