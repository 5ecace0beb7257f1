"""The routes that only Twilio uses: webhooks, status callbacks, and the media socket.

The media socket is open to softphones, too; see `bridge.http.twilio_auth`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, cast

from quart import Blueprint, Response, current_app, request, websocket
from werkzeug.datastructures import MultiDict

from bridge.addresses import BadHost, public_address
from bridge.admission.slots import NotAdmitted
from bridge.http.current import current_bridge, origin_of
from bridge.http.dialling import words_for
from bridge.http.media_socket import accepted
from bridge.http.twilio_auth import TwilioAuth
from bridge.http.webhook import Webhook
from bridge.log import get_logger
from bridge.twilio import twiml
from bridge.twilio.call_status import TERMINAL, BadStatus, read_status
from bridge.twilio.dialled import read_dial_result
from bridge.twilio.media_stream import MediaStream
from bridge.twilio.numbers import is_call_sid
from bridge.twilio.rest import TwilioError, TwilioRest

log = get_logger(__name__)

# The header of a proxy that tries another server when this one answers 503 (deploy/haproxy.cfg).
ELSEWHERE: Final = "Bridge-Elsewhere"

# The key of the application's TwilioAuth among its extensions.
TWILIO_AUTH: Final = "bridge.twilio_auth"

# Of webhooks: which of the two is a setting of each number.
METHODS: Final = ("GET", "POST")

twilio_hooks = Blueprint("twilio_hooks", __name__)


@twilio_hooks.before_request
async def check_signature() -> None:
    """Refuse webhooks that Twilio has not signed."""
    bridge = current_bridge()
    await _auth().check_webhook(request, await bridge.settings())
    if request.headers.get(ELSEWHERE):
        # The proxy may send the call's socket to another server, too.
        bridge.entrance.alone = False


@twilio_hooks.route("/incoming-call", methods=METHODS)
async def incoming_call() -> Response | tuple[str, int]:
    """Answer Twilio's voice webhook: connect the call to the agent, or refuse it."""
    bridge, form = current_bridge(), await _form()
    call_sid, caller = form.get("CallSid", ""), form.get("From", "")
    if not is_call_sid(call_sid):
        return "CallSid: expected CA and 32 hexadecimal digits\n", 400
    if (status := form.get("CallStatus", "")) in TERMINAL:
        log.warning(
            "the voice webhook was told of a call's end; no line is taken",
            call_sid=call_sid,
            call_status=status,
            remedy="set the number's status callback to /call-status, as `bridge number` does",
        )
        bridge.note_status(read_status(form))
        return _twiml(twiml.nothing())
    webhook = await _webhook()
    if webhook.outbound and form.get("AnsweredBy"):
        update = bridge.note_status(read_status(form))
        if (told := words_for(update.answered_by, request.args)) is not None:
            bridge.entrance.slots.release(call_sid)
            log.info(
                "a machine answered", call_sid=call_sid, what=update.answered_by, told=bool(told)
            )
            return _twiml(twiml.hang_up(told, webhook.settings.words.spoken))
    try:
        await webhook.reserve()
    except NotAdmitted as error:
        log.info("caller refused", reason=str(error), call_sid=call_sid, caller=caller)
        # A proxy that finds no other server passes these words on as 200.
        return _twiml(webhook.busy(), 503 if request.headers.get(ELSEWHERE) else 200)
    return _twiml(await webhook.begin())


@twilio_hooks.websocket("/media-stream")
async def media_stream() -> None:
    """Carry the call of one media socket."""
    bridge = current_bridge()
    settings = await bridge.settings()
    socket = cast("Any", websocket)._get_current_object()
    purpose = _auth().check_socket(socket, settings)
    with bridge.entrance.socket(settings) as entry:
        async with accepted(socket) as phone:
            web = ""
            with suppress(BadHost):
                web = public_address(settings.server.public_url, origin_of(socket).host).web
            await bridge.run_call(MediaStream(phone), settings, entry, purpose, web)


@twilio_hooks.route("/call-ended", methods=METHODS)
async def call_ended() -> Response:
    """Answer what the caller gets after the agent, by the call's outcome, and after `<Dial>`."""
    webhook = await _webhook(request.args.get("agent", ""))
    result = read_dial_result(webhook.form)
    return _twiml(await (webhook.after_agent() if result is None else webhook.after_dial(result)))


@twilio_hooks.route("/call-status", methods=METHODS)
async def call_status() -> tuple[str, int]:
    """Note a step of an outbound call, or the end of an inbound one."""
    current_bridge().note_status(read_status(await _form()))
    return "", 204


@twilio_hooks.route("/call-status/answered-by", methods=METHODS)
async def answered_by() -> tuple[str, int]:
    """Note whether a person or a machine answered, and end the call with a machine."""
    bridge, update = current_bridge(), read_status(await _form())
    bridge.note_status(update)
    words = words_for(update.answered_by, request.args)
    if words is not None and bridge.twilio is not None:
        own = bridge.settings_now().for_agent(request.args.get("agent", ""))
        await _leave_message(bridge.twilio, update.call_sid, words, own.words.spoken)
    return "", 204


@twilio_hooks.errorhandler(BadStatus)
async def bad_status(error: BadStatus) -> tuple[str, int]:
    """Answer a status callback that Twilio would not send."""
    return f"{error}\n", 400


@twilio_hooks.errorhandler(NotAdmitted)
async def too_many_sockets(error: NotAdmitted) -> tuple[str, int]:
    """Refuse the upgrade of a media socket."""
    return f"{error}\n", 503


async def _leave_message(rest: TwilioRest, call_sid: str, message: str, voice: twiml.Voice) -> None:
    """Speak to the answering machine instead of the agent, or hang up on it if there is no message.
    A call that is over is no error."""
    result = "left" if message else "hung up"
    try:
        await rest.update_call(call_sid, twiml=twiml.hang_up(message, voice))
    except TwilioError as error:
        result = str(error)
    except ValueError:
        result = "the message is too long"  # the address was not made by this server
    log.info("message for an answering machine", call_sid=call_sid, result=result)


async def _form() -> MultiDict[str, str]:
    """Return Twilio's fields: in the body, or for GET in the query. Both are signed."""
    return await request.form if request.method == "POST" else request.args


async def _webhook(agent: str | None = None) -> Webhook:
    bridge = current_bridge()
    settings = await bridge.settings()
    return Webhook(bridge, settings, await _form(), request.args, origin_of(request).host, agent)


def _auth() -> TwilioAuth:
    auth: TwilioAuth = current_app.extensions[TWILIO_AUTH]
    return auth


def _twiml(document: bytes, status: int = 200) -> Response:
    return Response(document, status, content_type=twiml.CONTENT_TYPE)
