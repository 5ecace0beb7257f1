"""A whole world to make calls in: simulated phones, the real application, a simulated agent.

`in_memory` joins them with streams in memory under hypercorn's own connection class, for the
virtual clock: everything of the stack but the kernel's sockets. `on_loopback` runs the real server
on real sockets.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import SplitResult

import msgspec
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio
from structlog.testing import capture_logs
from trio_websocket import wrap_client_stream

from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.http.app import create_app
from bridge.records.record import CallRecord
from bridge.server.hypercorn.connection import GuardedTCPServer
from bridge.server.hypercorn.install import install
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.agent.server import AgentSession, Behaviour, Script, SimulatedAgent, silent
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.webhook import sign

install()

# What Twilio and the server have in common: phones sign with it, and everything is checked.
AUTH_TOKEN = "twilio-auth-token-0123456789"
# What operators send.
API_TOKEN = "api-token-of-the-tests-0123456789"
OPERATOR = {"Authorization": f"Bearer {API_TOKEN}"}
SECRETS = Secrets(
    deepgram_api_key="dg-test-key-0123456789",
    twilio_auth_tokens=(AUTH_TOKEN,),
    api_token=API_TOKEN,
)
AGENT_URL = "ws://127.0.0.1:9000/v1/agent/converse"

# An agent that neither greets nor hears anything by itself: the test's script decides.
QUIET = Behaviour(greeting="", hears=False, latency_every=0, idle_timeout=0)


def settings(**tables: dict[str, Any]) -> Settings:
    """Settings with some keys of some tables changed, checked like those of a file."""
    # One cause, one effect: unless a test asks for it, a silent agent is called once, and a lost
    # one not again.
    deepgram = {"url": AGENT_URL, "max_reconnects": 0, **tables.get("deepgram", {})}
    deepgram.setdefault("connect_budget", deepgram.get("connect_timeout", 5.0) + 0.1)
    # No database unless a test asks for one: its threads and the virtual clock do not mix.
    given = {"records": {"url": ""}, **tables, "deepgram": deepgram}
    base = Settings()
    # A greeting that is configured and never comes is a stall; the agent of most tests is QUIET.
    base.agent.pop("greeting")
    return msgspec.structs.replace(
        base,
        **{
            name: {**getattr(base, name), **keys}
            if name in ("agent", "agents")
            else msgspec.structs.replace(getattr(base, name), **keys)
            for name, keys in given.items()
        },
    )


def signed(host: str, path: str = "/media-stream") -> list[tuple[bytes, bytes]]:
    """The headers of an upgrade that comes from Twilio."""
    signature = sign(f"wss://{host}{path}", (), AUTH_TOKEN)
    return [(b"X-Twilio-Signature", signature.encode())]


async def open_media_socket(
    nursery: trio.Nursery, stream: Any, host: str = "127.0.0.1:5000", **options: Any
) -> Any:
    """Open a media socket as Twilio does, without a phone: what is said on it is up to the test."""
    return await wrap_client_stream(
        nursery, stream, host, "/media-stream", extra_headers=signed(host), **options
    )


def start_message(app: QuartTrio, call_sid: str = "CA1", **parameters: str) -> str:
    """The `start` of a call that the webhook was told of: with a ticket, used up by one socket."""
    ticket = app.extensions["bridge"].entrance.ticket(call_sid)
    facts = {
        "accountSid": "AC1",
        "streamSid": "MZ1",
        "callSid": call_sid,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {**parameters, "ticket": ticket},
    }
    message = {"event": "start", "sequenceNumber": "1", "start": facts, "streamSid": "MZ1"}
    return json.dumps(message)


def injected(session: AgentSession) -> list[str]:
    """The words that bridge gave the agent to say, in order."""
    return [m["message"] for _, m in session.messages if m["type"] == "InjectAgentMessage"]


class World:
    """What a test sees. `base_url` is where phones call; `agent` has the sessions."""

    def __init__(self, app: QuartTrio, agent: SimulatedAgent, base_url: str) -> None:
        self.app = app
        self.agent = agent
        self.base_url = base_url
        self.phone_options: dict[str, Any] = {"auth_token": AUTH_TOKEN}
        self.logs: Sequence[Mapping[str, Any]] = []

    @property
    def ending(self) -> dict[str, Any]:
        """The one line that says how the one call ended."""
        (line,) = [dict(entry) for entry in self.logs if entry["event"] == "call ended"]
        return line

    @property
    def live_call(self) -> Any:
        """The one call that is live, as the server has it."""
        (call,) = self.app.extensions["bridge"].calls
        return call

    def record_of(self, phone: SimulatedPhone) -> CallRecord:
        """The record of the phone's call, with all its legs so far."""
        known = self.app.extensions["bridge"].recorder.known(phone.call_sid)
        assert known is not None
        record: CallRecord = known.record
        return record

    async def quiet(self) -> None:
        """Wait until every call is over on all three sides."""
        await self.app.extensions["bridge"].calls.wait_until_empty()
        await self.agent.wait_until_idle()
        # Their sockets are given back after that.
        await trio.testing.wait_all_tasks_blocked()

    def phone(self, **options: Any) -> SimulatedPhone:
        """A strict phone: what Twilio would warn about fails the test."""
        return SimulatedPhone(**{"strict": True, **self.phone_options, **options})

    def call(self, **options: Any) -> AbstractAsyncContextManager[SimulatedPhone]:
        """Place a call; see SimulatedPhone.place_call."""
        return self.phone(**options).place_call(self.base_url)


@asynccontextmanager
async def in_memory(
    script: Script = silent,
    behaviour: Behaviour = QUIET,
    using: Settings | None = None,
) -> AsyncIterator[World]:
    """The world without a kernel, for `autojump_clock`."""
    # A phone streams for ever, so that a test which waits in vain would never end.
    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            agent = SimulatedAgent(script, behaviour)
            config = hypercorn_config(using or settings())

            async def to_agent(target: SplitResult) -> trio.abc.Stream:
                ours, theirs = trio.testing.memory_stream_pair()
                nursery.start_soon(agent.serve_stream, theirs)
                return ours

            async def to_server(host: str, port: int, tls: bool) -> trio.abc.Stream:
                ours, theirs = trio.testing.memory_stream_pair()
                nursery.start_soon(serve_connection, app, config, theirs)
                return ours

            app = create_app(FixedConfig(using or settings()), SECRETS, open_stream=to_agent)
            await app.startup()
            world = World(app, agent, "http://127.0.0.1:5000")
            world.phone_options["open_stream"] = to_server
            with capture_logs() as world.logs:
                yield world
                # A peer hears our Close before the call is over and its line is logged.
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the test is over")


async def serve_connection(app: QuartTrio, config: Config, stream: Any) -> None:
    """What hypercorn does with an accepted connection, on any stream."""
    stream.socket = _NoSocket()
    server = GuardedTCPServer(
        wrap_app(app, 0, "asgi"), config, WorkerContext(None), ConnectionState({}), stream
    )
    await server.run()


class _NoSocket:
    family = 2

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 5000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 50000


@asynccontextmanager
async def on_loopback(
    script: Script = silent,
    behaviour: Behaviour = QUIET,
    using: Settings | None = None,
) -> AsyncIterator[World]:
    """The real server under real hypercorn, and an agent, on real sockets."""
    async with trio.open_nursery() as nursery:
        agent = SimulatedAgent(script, behaviour)
        port = await nursery.start(agent.serve)
        table = {"url": f"ws://127.0.0.1:{port}/v1/agent/converse"}
        base = using or settings()
        chosen = msgspec.structs.replace(
            base,
            deepgram=msgspec.structs.replace(base.deepgram, **table),
            server=msgspec.structs.replace(base.server, bind="127.0.0.1:0"),
        )
        app = create_app(FixedConfig(chosen), SECRETS)
        stop = trio.Event()
        addresses = await nursery.start(
            partial(serve, app, hypercorn_config(chosen), shutdown=stop)
        )
        try:
            yield World(app, agent, addresses[0])
        finally:
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + 10
        nursery.cancel_scope.cancel(reason="the test is over")
