"""The web application: Twilio's webhooks, the media socket, health.

It holds no logic of a call; it finds the settings, builds a `Call` and lets it run.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, cast

from quart import Response, request, websocket
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.exceptions import BadRequest
from werkzeug.routing import MapAdapter

from bridge.addresses import BadHost, public_address
from bridge.agent.session import OpenStream
from bridge.config import Secrets
from bridge.config_file import SettingsSource
from bridge.control import control_blueprint
from bridge.instance import HEADER, instance
from bridge.operating import Operator
from bridge.outcome import Outcome
from bridge.pages import pages_blueprint
from bridge.server import worker
from bridge.server.media_socket import DirectWebsocketConnection, QuartMediaSocket
from bridge.service import Bridge
from bridge.twilio import twiml
from bridge.twilio.media_stream import MediaStream

# Twilio's form is a few kilobytes, sent at once.
MAX_FORM_BYTES: Final = 64 * 1024
FORM_SECONDS: Final = 5

BUSY: Final = "All our lines are busy. Please call again in a few minutes."

_APOLOGISE_AFTER: Final = {
    Outcome.AGENT_UNREACHABLE,
    Outcome.AGENT_FAILED,
    Outcome.INTERNAL_ERROR,
}


class Application(QuartTrio):
    """Quart-Trio, reading websockets directly, and refusing a nonsensical Host quietly.

    Werkzeug parses the Host before any error handler can be found, so that each scan of the
    internet would be answered 500 and leave a traceback in the log.
    """

    asgi_websocket_class = DirectWebsocketConnection

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """As Quart's; a Host that cannot be one matches nothing and is answered 400."""
        try:
            return super().create_url_adapter(request)
        except BadRequest as error:
            refusal = _Refusing(self.url_map, "", "/", None, "http", "/", "GET")
            refusal.error = error
            return refusal


class _Refusing(MapAdapter):
    """Routes to one error whatever is asked for."""

    error: BadRequest

    def match(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self.error


def create_app(
    config: SettingsSource | None = None,
    secrets: Secrets | None = None,
    open_stream: OpenStream | None = None,
) -> Application:
    """Build the application; the arguments are `Bridge`'s."""
    app = Application("bridge")
    app.config["MAX_CONTENT_LENGTH"] = MAX_FORM_BYTES
    app.config["BODY_TIMEOUT"] = FORM_SECONDS
    bridge = Bridge(config, secrets, open_stream)
    app.extensions["bridge"] = bridge
    app.register_blueprint(control_blueprint(Operator(bridge), live=bridge.live))
    app.register_blueprint(pages_blueprint(lambda: bridge.api_token))

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
        ended = await bridge.recorder.ending_of(form.get("CallSid", ""))
        if ended is not None and ended.outcome == Outcome.TRANSFERRED:
            return _twiml(twiml.dial(ended.transfer_to))
        if ended is not None and ended.outcome in _APOLOGISE_AFTER:
            words, number = settings.call.apology, settings.call.fallback_number
            return _twiml(twiml.dial(number, words=words) if number else twiml.hang_up(words))
        return _twiml(twiml.hang_up())

    @app.get("/healthz")
    async def healthz() -> tuple[str, dict[str, str]]:
        return "ok\n", {HEADER: instance()}

    @app.get("/readyz")
    async def readyz() -> tuple[str, int]:
        if bridge.draining:
            return "draining\n", 503
        return ("full\n", 503) if bridge.full else ("ready\n", 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        body, content_type = await bridge.exposed_metrics(request.headers.get("Accept"))
        return Response(body, content_type=content_type)

    @app.errorhandler(BadHost)
    async def bad_host(error: BadHost) -> tuple[str, int]:
        return f"{error}\n", 400

    return app


def _twiml(document: bytes) -> Response:
    return Response(document, content_type=twiml.CONTENT_TYPE)


# Whoever loads the application, hypercorn's own command line included, gets the server's remedies.
worker.install()

# Named before there are worker processes, which inherit it.
instance()

app = create_app()
