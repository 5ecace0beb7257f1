"""The web application: Twilio's webhooks, the media socket, health.

It holds no logic of a call; it finds the settings, builds a `Call` and lets it run.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, cast

import trio
from quart import Response, g, request, websocket
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import BadRequest
from werkzeug.routing import MapAdapter

from bridge.addresses import BadHost, public_address
from bridge.admission.slots import Limits
from bridge.call.introduction import TICKET
from bridge.config.file import SettingsSource
from bridge.config.settings import Secrets
from bridge.http.dialling import DIRECTION, outbound_parameters, with_webhook
from bridge.http.media_socket import DirectWebsocketConnection, accepted
from bridge.http.openapi import description
from bridge.http.operator import Operator
from bridge.http.operator_api import TWILIO_ENDPOINTS, control_blueprint
from bridge.http.operator_auth import Gate, Seen
from bridge.http.pages import pages_blueprint
from bridge.http.softphone import softphone_blueprint
from bridge.http.twilio_auth import Doors, Refused, asked_for
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.server.instance import HEADER, instance
from bridge.service import Bridge
from bridge.transport.websocket_client import OpenStream
from bridge.twilio import twiml
from bridge.twilio.media_stream import MediaStream
from bridge.twilio.rest import is_call_sid

log = get_logger(__name__)

# Twilio's form is a few kilobytes, sent at once.
MAX_FORM_BYTES: Final = 64 * 1024
FORM_SECONDS: Final = 5

# The routes that Twilio asks, by endpoint: none of them answers anybody else.
SIGNED: Final = TWILIO_ENDPOINTS | {"incoming_call", "call_ended"}

# Set by a proxy that asks another server when this one answers 503 (deploy/haproxy.cfg).
ELSEWHERE: Final = "Bridge-Elsewhere"

BUSY: Final = "All our lines are busy. Please call again in a few minutes."

_APOLOGISE_AFTER: Final = {
    Outcome.AGENT_UNREACHABLE,
    Outcome.AGENT_FAILED,
    Outcome.INTERNAL_ERROR,
}


class PlainResponse(TrioResponse):
    """Text unless it says that it is something else: some of it repeats what a stranger sent."""

    default_mimetype = "text/plain"


class Application(QuartTrio):
    """Quart-Trio, reading websockets directly, and refusing a nonsensical Host quietly.

    Werkzeug parses the Host before any error handler can be found, so that each scan of the
    internet would be answered 500 and leave a traceback in the log.
    """

    asgi_websocket_class = DirectWebsocketConnection
    response_class = PlainResponse

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
    doors = Doors()
    gate = Gate(trio.current_time)
    app.register_blueprint(
        control_blueprint(Operator(bridge), answer=with_webhook, gate=gate, live=bridge.live)
    )
    app.register_blueprint(softphone_blueprint(bridge, gate))
    app.register_blueprint(pages_blueprint(lambda: bridge.api_token))

    @app.before_serving
    async def prepare() -> None:
        bridge.prepare()

    @app.before_request
    async def look() -> None:
        settings = bridge.settings_now()
        public = settings.server.public_url.partition("://")[2].partition("/")[0]
        here = asked_for(request, settings)
        g.seen = Seen(here.client, (here.host, public) if public else (here.host,))

    @app.after_request
    async def keep_to_itself(response: Response) -> Response:
        # Nothing here is for other pages to frame, run or guess the type of. The pages of our own
        # say more, and what they say stays.
        response.headers.setdefault(
            "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"
        )
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    @app.before_request
    async def only_twilio() -> None:
        if request.endpoint in SIGNED:
            await doors.check_webhook(request, await bridge.settings(), bridge.auth_tokens)

    @app.post("/incoming-call")
    async def incoming_call() -> Response | tuple[str, int]:
        settings = await bridge.settings()
        form = await request.form
        call_sid, caller = form.get("CallSid", ""), form.get("From", "")
        if not is_call_sid(call_sid):
            return "CallSid: expected CA and 32 hexadecimal digits\n", 400
        # It travelled with the address that Twilio was told to ask, which its signature covers.
        outbound = form.get("Direction") == DIRECTION
        # Who withholds the number is one caller with all others who do, or there were no limit.
        counted = "" if outbound else caller or "withheld"
        if why := await bridge.reserve(settings, call_sid, counted):
            log.info("caller refused", reason=why, call_sid=call_sid, caller=caller)
            if request.headers.get(ELSEWHERE):
                return f"{why}\n", 503
            overflow = settings.server.overflow_url
            return _twiml(twiml.redirect(overflow) if overflow else twiml.hang_up(BUSY))
        here = asked_for(request, settings)
        address = public_address(settings.server.public_url, here.host)
        parameters = {name: form.get(name, "") for name in ("From", "To", "CallSid")}
        if outbound:
            parameters = {**outbound_parameters(request.args), **parameters}
            parameters["direction"] = DIRECTION
        document = twiml.connect_stream(
            f"{address.socket}/media-stream",
            action=f"{address.web}/call-ended",
            parameters={**parameters, TICKET: bridge.ticket(call_sid)},
        )
        bridge.prewarm(settings, call_sid, parameters)
        return _twiml(document)

    @app.websocket("/media-stream")
    async def media_stream() -> tuple[str, int] | None:
        settings = await bridge.settings()
        socket = cast("Any", websocket)._get_current_object()
        purpose = doors.check_socket(socket, settings, bridge.auth_tokens, bridge.read_ticket)
        with bridge.admission.socket(Limits.of(settings)) as entry:
            if entry is None:
                return "too many sockets are waiting to start\n", 503
            async with accepted(socket) as phone:
                await bridge.run_call(MediaStream(phone), settings, entry, purpose)
        return None

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

    @app.get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        return description()

    @app.errorhandler(Refused)
    async def refused(error: Refused) -> tuple[str, int]:
        return "", 403

    @app.errorhandler(BadHost)
    async def bad_host(error: BadHost) -> tuple[str, int]:
        return f"{error}\n", 400

    return app


def _twiml(document: bytes) -> Response:
    return Response(document, content_type=twiml.CONTENT_TYPE)
