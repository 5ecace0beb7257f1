"""The web application: Twilio's webhooks, the media socket, health.

It holds no logic of a call; it finds the settings, builds a `Call` and lets it run.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, cast

import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio

from bridge import log as logs
from bridge.addresses import BadHost, public_address
from bridge.agent.session import AgentSession, OpenStream, open_session
from bridge.agent.settings import settings_message
from bridge.call import Call, CallFacts, GoodbyeBy
from bridge.config import Secrets, Settings, check_startup, warnings_for
from bridge.config_file import ConfigFile, SettingsSource, config_path
from bridge.outcome import Outcome
from bridge.registry import Registry
from bridge.server import worker
from bridge.server.media_socket import DirectWebsocketConnection, QuartMediaSocket
from bridge.twilio import twiml
from bridge.twilio.media_stream import MediaStream

log = logs.get_logger(__name__)

# Twilio's form is a few kilobytes, sent at once.
MAX_FORM_BYTES: Final = 64 * 1024
FORM_SECONDS: Final = 5

# How many ended calls are remembered for the webhook that follows each within a second or so.
ENDED_CALLS: Final = 10_000

BUSY: Final = "All our lines are busy. Please call again in a few minutes."

_APOLOGISE_AFTER: Final = {
    Outcome.AGENT_UNREACHABLE,
    Outcome.AGENT_FAILED,
    Outcome.INTERNAL_ERROR,
}


class Bridge:
    """What all calls of one application share: where settings come from, and what is remembered.

    `config` None means the file that BRIDGE_CONFIG names, `secrets` None the environment; both are
    looked at by `prepare`, not before, so that importing the application never fails.
    `open_stream` replaces the TCP connection to the agent, for tests without sockets.
    """

    def __init__(
        self,
        config: SettingsSource | None = None,
        secrets: Secrets | None = None,
        open_stream: OpenStream | None = None,
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._open_stream = open_stream
        self._settings = Settings()
        self._prepared = False
        self.calls = Registry()
        self.draining = False
        self._ended: OrderedDict[str, Outcome] = OrderedDict()

    def prepare(self) -> Settings:
        """Read settings and secrets, set up logging; the first time, that is.

        Raises ConfigError with one line that says what to do.
        """
        if self._config is None:
            self._config = ConfigFile(config_path())
        if self._secrets is None:
            self._secrets = Secrets.from_environment()
        settings = self._settings = self._config.load()
        if not self._prepared:
            check_startup(settings, self._secrets)
            logs.configure(settings.logging, secrets=self._secrets)
            for warning in warnings_for(settings):
                log.warning(warning)
            self._prepared = True
        return settings

    async def settings(self) -> Settings:
        """The settings for a call that begins now."""
        assert self._config is not None
        self._settings = await self._config.current()
        return self._settings

    def settings_now(self) -> Settings:
        """The settings last read: for those who cannot wait for a file."""
        return self._settings

    @property
    def full(self) -> bool:
        """Whether there are as many calls as there may be."""
        return len(self.calls) >= self._settings.server.max_calls

    def begin_drain(self) -> None:
        """Take no new calls from now on; live ones go on."""
        self.draining = True

    def wind_down(self) -> None:
        """Let the agent of every live call say goodbye, then end it; each has its own deadline."""
        for call in self.calls:
            call.wind_down(Outcome.SERVER_SHUTDOWN, "the server is stopping")

    def end_calls(self) -> None:
        """End every live call now, cleanly."""
        for call in self.calls:
            call.end(Outcome.SERVER_SHUTDOWN, "the server is stopping")

    async def run_call(self, phone: MediaStream, settings: Settings) -> None:
        """Carry one call from its socket's first message to its last."""
        secrets = self._secrets
        assert secrets is not None

        def open_agent(
            nursery: trio.Nursery, facts: CallFacts, *, close_by: GoodbyeBy
        ) -> AbstractAsyncContextManager[AgentSession]:
            return open_session(
                nursery,
                settings.deepgram.url,
                key=secrets.deepgram_api_key,
                settings=settings_message(settings.agent),
                timeout=settings.deepgram.connect_timeout,
                close_by=close_by,
                open_stream=self._open_stream,
            )

        call = Call(
            phone,
            open_agent,
            frame_ms=settings.call.frame_ms,
            start_timeout=settings.call.start_timeout,
            teardown_seconds=settings.call.teardown_seconds,
        )
        try:
            with self.calls.carrying(call):
                await call.run()
        finally:
            if call.report.facts is not None and call.report.outcome is not None:
                self._remember(call.report.facts.call_sid, call.report.outcome)

    def outcome_of(self, call_sid: str) -> Outcome | None:
        """How a call that was carried here ended, if it did and not too many others since."""
        return self._ended.get(call_sid)

    def _remember(self, call_sid: str, outcome: Outcome) -> None:
        self._ended[call_sid] = outcome
        while len(self._ended) > ENDED_CALLS:
            self._ended.popitem(last=False)


def create_app(
    config: SettingsSource | None = None,
    secrets: Secrets | None = None,
    open_stream: OpenStream | None = None,
) -> QuartTrio:
    """Build the application; the arguments are `Bridge`'s."""
    app = QuartTrio("bridge")
    app.asgi_websocket_class = DirectWebsocketConnection
    app.config["MAX_CONTENT_LENGTH"] = MAX_FORM_BYTES
    app.config["BODY_TIMEOUT"] = FORM_SECONDS
    bridge = Bridge(config, secrets, open_stream)
    app.extensions["bridge"] = bridge

    @app.before_serving
    async def prepare() -> None:
        bridge.prepare()

    @app.post("/incoming-call")
    async def incoming_call() -> Response:
        settings = await bridge.settings()
        form = await request.form
        if bridge.draining or bridge.full:
            overflow = settings.server.overflow_url
            return _twiml(twiml.redirect(overflow) if overflow else twiml.hang_up(BUSY))
        address = public_address(settings.server.public_url, request.headers.get("Host", ""))
        document = twiml.connect_stream(
            f"{address.socket}/media-stream",
            action=f"{address.web}/call-ended",
            parameters={name: form.get(name, "") for name in ("From", "To", "CallSid")},
        )
        return _twiml(document)

    @app.websocket("/media-stream")
    async def media_stream() -> None:
        await websocket.accept()
        # The proxy looks the websocket up in the context at every use; a call uses it a lot.
        socket = QuartMediaSocket(cast("Any", websocket)._get_current_object())
        await bridge.run_call(MediaStream(socket), await bridge.settings())

    @app.post("/call-ended")
    async def call_ended() -> Response:
        settings = await bridge.settings()
        form = await request.form
        failed = bridge.outcome_of(form.get("CallSid", "")) in _APOLOGISE_AFTER
        return _twiml(twiml.hang_up(settings.call.apology if failed else ""))

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok\n"

    @app.get("/readyz")
    async def readyz() -> tuple[str, int]:
        if bridge.draining:
            return "draining\n", 503
        return ("full\n", 503) if bridge.full else ("ready\n", 200)

    @app.errorhandler(BadHost)
    async def bad_host(error: BadHost) -> tuple[str, int]:
        return f"{error}\n", 400

    return app


def _twiml(document: bytes) -> Response:
    return Response(document, content_type=twiml.CONTENT_TYPE)


# Whoever loads the application, hypercorn's own command line included, gets the server's remedies.
worker.install()

app = create_app()
