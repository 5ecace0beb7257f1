"""The routes that only Twilio uses: webhooks, status callbacks, and the media socket.

The media socket is open to softphones, too; see `bridge.http.twilio_auth`.
"""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import urlencode

from quart import Blueprint, Response, current_app, request, websocket
from werkzeug.datastructures import MultiDict

from bridge.addresses import public_address
from bridge.admission.slots import NotAdmitted
from bridge.call.introduction import TICKET, info_of
from bridge.call_setup import agent_of
from bridge.caller import OUTBOUND
from bridge.http.current import current_bridge, origin_of
from bridge.http.dialling import outbound_parameters, words_for
from bridge.http.media_socket import accepted
from bridge.http.twilio_auth import TwilioAuth
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.twilio import twiml
from bridge.twilio.call_status import TERMINAL, BadStatus, read_status
from bridge.twilio.media_stream import MediaStream
from bridge.twilio.numbers import counted_as, is_call_sid
from bridge.twilio.rest import TwilioError, TwilioRest

log = get_logger(__name__)

# The header of a proxy that tries another server when this one answers 503 (deploy/haproxy.cfg).
ELSEWHERE: Final = "Bridge-Elsewhere"

_APOLOGISE_AFTER: Final = {
    Outcome.AGENT_UNREACHABLE,
    Outcome.AGENT_FAILED,
    Outcome.INTERNAL_ERROR,
}

# The key of the application's TwilioAuth among its extensions.
TWILIO_AUTH: Final = "bridge.twilio_auth"

# Of webhooks: which of the two is a setting of each number.
METHODS: Final = ("GET", "POST")

twilio_hooks = Blueprint("twilio_hooks", __name__)


@twilio_hooks.before_request
async def check_signature() -> None:
    """Refuse webhooks that Twilio has not signed."""
    await _auth().check_webhook(request, await current_bridge().settings())


@twilio_hooks.route("/incoming-call", methods=METHODS)
async def incoming_call() -> Response | tuple[str, int]:
    """Answer Twilio's voice webhook: connect the call to the agent, or refuse it."""
    bridge = current_bridge()
    settings = await bridge.settings()
    form = await _form()
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
    # Twilio's signature covers the address, and with it the parameters of an outbound call.
    outbound = form.get("Direction") == OUTBOUND
    parameters = {name: form.get(name, "") for name in ("From", "To", "CallSid")}
    if outbound:
        parameters = {**outbound_parameters(request.args), **parameters, "direction": OUTBOUND}
    agent = agent_of(settings, info_of(call_sid, parameters))
    own = settings.for_agent(agent)
    if outbound and form.get("AnsweredBy"):
        update = bridge.note_status(read_status(form))
        if (told := words_for(update.answered_by, request.args)) is not None:
            bridge.entrance.slots.release(call_sid)
            log.info(
                "a machine answered", call_sid=call_sid, what=update.answered_by, told=bool(told)
            )
            return _twiml(twiml.hang_up(told, own.words.spoken))
    try:
        await bridge.entrance.reserve(own, call_sid, "" if outbound else counted_as(caller))
    except NotAdmitted as error:
        log.info("caller refused", reason=str(error), call_sid=call_sid, caller=caller)
        if request.headers.get(ELSEWHERE):
            return f"{error}\n", 503
        overflow = settings.server.overflow_url
        busy = twiml.hang_up(own.words.busy, own.words.spoken)
        return _twiml(twiml.redirect(overflow) if overflow else busy)
    address = public_address(settings.server.public_url, origin_of(request).host)
    document = twiml.connect_stream(
        f"{address.socket}/media-stream",
        action=f"{address.web}/call-ended" + (f"?{urlencode({'agent': agent})}" if agent else ""),
        parameters={**parameters, TICKET: bridge.entrance.ticket(call_sid)},
    )
    bridge.prewarm(settings, call_sid, parameters)
    return _twiml(document)


@twilio_hooks.websocket("/media-stream")
async def media_stream() -> None:
    """Carry the call of one media socket."""
    bridge = current_bridge()
    settings = await bridge.settings()
    socket = cast("Any", websocket)._get_current_object()
    purpose = _auth().check_socket(socket, settings)
    with bridge.entrance.socket(settings) as entry:
        async with accepted(socket) as phone:
            await bridge.run_call(MediaStream(phone), settings, entry, purpose)


@twilio_hooks.route("/call-ended", methods=METHODS)
async def call_ended() -> Response:
    """Answer what the caller gets after the agent, by the call's outcome."""
    bridge = current_bridge()
    settings = (await bridge.settings()).for_agent(request.args.get("agent", ""))
    form = await _form()
    ended = await bridge.recorder.ending_of(form.get("CallSid", ""))
    if ended is not None and ended.outcome == Outcome.TRANSFERRED:
        return _twiml(twiml.dial(ended.transfer_to))
    if ended is not None and ended.outcome in _APOLOGISE_AFTER:
        apology, voice = settings.words.apology, settings.words.spoken
        if number := settings.call.fallback_number:
            return _twiml(twiml.dial(number, words=apology, voice=voice))
        return _twiml(twiml.hang_up(apology, voice))
    hung_up = ended is not None and ended.outcome == Outcome.OPERATOR_HUNG_UP
    if settings.call.after_url and not hung_up:
        return _twiml(twiml.redirect(settings.call.after_url))
    return _twiml(twiml.hang_up())


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
        voice = bridge.settings_now().words.spoken
        await _leave_message(bridge.twilio, update.call_sid, words, voice)
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


def _auth() -> TwilioAuth:
    auth: TwilioAuth = current_app.extensions[TWILIO_AUTH]
    return auth


def _twiml(document: bytes) -> Response:
    return Response(document, content_type=twiml.CONTENT_TYPE)
