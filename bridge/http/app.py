"""Builds the web application from its blueprints."""

from __future__ import annotations

from typing import Any, Final, NoReturn

from quart import Response
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import BadRequest
from werkzeug.routing import MapAdapter

from bridge.addresses import BadHost
from bridge.config.file import SettingsSource
from bridge.config.secrets import Secrets
from bridge.http.current import current_bridge
from bridge.http.events import events
from bridge.http.health import health
from bridge.http.media_socket import DirectWebsocketConnection
from bridge.http.operator_api import operator_api
from bridge.http.operator_auth import GATE, Gate
from bridge.http.pages import pages
from bridge.http.softphone import softphone
from bridge.http.twilio_auth import NotTwilio, TwilioAuth
from bridge.http.twilio_hooks import TWILIO_AUTH, twilio_hooks
from bridge.service import Bridge
from bridge.transport.websocket_client import OpenStream

# Twilio's form is a few kilobytes, sent at once.
MAX_FORM_BYTES: Final = 64 * 1024
FORM_SECONDS: Final = 5


class PlainResponse(TrioResponse):
    """A response that defaults to text/plain, because some bodies echo untrusted input."""

    default_mimetype = "text/plain"


class Application(QuartTrio):
    """Quart-Trio with direct websockets, which answers 400 to an invalid Host.

    Werkzeug parses the Host before an error handler can be found. Without the override below, each
    scan of the internet would be answered 500 and leave a traceback in the log.
    """

    asgi_websocket_class = DirectWebsocketConnection
    response_class = PlainResponse

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Return Quart's adapter, or for an invalid Host one that answers every path with 400."""
        try:
            return super().create_url_adapter(request)
        except BadRequest as error:
            refusal = _Refusing(self.url_map, "", "/", None, "http", "/", "GET")
            refusal.error = error
            return refusal


class _Refusing(MapAdapter):
    """Routes every path to one error."""

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
    app.extensions["bridge"] = Bridge(config, secrets, open_stream)
    app.extensions[GATE] = Gate()
    app.extensions[TWILIO_AUTH] = TwilioAuth()
    for blueprint in (twilio_hooks, operator_api, events, softphone, pages, health):
        app.register_blueprint(blueprint)
    app.before_serving(prepare)
    app.after_request(secure)
    app.register_error_handler(NotTwilio, not_twilio)
    app.register_error_handler(BadHost, bad_host)
    return app


async def prepare() -> None:
    """Read the configuration before the first request. Raises ConfigError."""
    current_bridge().prepare()


async def secure(response: Response) -> Response:
    """Forbid other sites to frame a response, run it, or guess its type; pages set their own."""
    response.headers.setdefault(
        "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"
    )
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response


async def not_twilio(error: NotTwilio) -> tuple[str, int, dict[str, str]]:
    """Answer a request that is not Twilio's."""
    if error.ask_password:
        return "", 401, {"WWW-Authenticate": 'Basic realm="bridge"'}
    return "", 403, {}


async def bad_host(error: BadHost) -> tuple[str, int]:
    """Answer a request whose Host cannot be part of an address."""
    return f"{error}\n", 400
