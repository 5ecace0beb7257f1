"""The routes of the control API, as a Blueprint.

`POST /calls` dials, `GET /calls` lists, `GET /calls/{sid}` shows, `DELETE /calls/{sid}` hangs up,
`POST /calls/{sid}/say` says something in the caller's place; who may is `access`'s to say. `live`
is true of the calls that this process carries; `elsewhere` of those that, by the records, another
one carries, or carried when it died. `events` tells what goes on in them as it happens.
`POST /call-status` and `POST /call-status/answered-by` are Twilio's: they take no token, and
whoever registers the blueprint checks Twilio's signature on them (`TWILIO_ENDPOINTS`) as on its
other webhooks.

Every answer is JSON. An error is `{"error": one line with the remedy}`, with `"field"` where one
field of the request is at fault, and `"twilio"` with Twilio's code and words where it refused:

    400  not JSON, or a callback that Twilio would not send
    401, 403, 429  not let in
    404  no such call
    409  the call is on, but this process can neither reach it nor ask Twilio to end it
    408, 413, 415  too slow, too large, not application/json
    422  a field is wrong, by our judgement or by Twilio's
    502  Twilio refused for another reason, or did not answer
    503  not now: draining, full, no credentials, no public address; or Twilio's own "too many"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import trio
from quart import Blueprint, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from bridge.addresses import BadHost, PublicAddress, is_loopback, public_address
from bridge.http.call_status import BadStatus, Progress, StatusUpdate, read_status
from bridge.http.dialling import (
    AnswerWith,
    BadRequest,
    OutboundCall,
    check_request,
    message_address,
    read_request,
    with_twiml,
)
from bridge.http.events import add_event_routes, carried_elsewhere
from bridge.http.operator_auth import Gate, Seen
from bridge.http.operator_door import client, keep_the_door
from bridge.http.operator_host import NO_CREDENTIALS, ControlHost, DialRefused, LiveCall
from bridge.http.saying import read_words
from bridge.live.hub import Live
from bridge.log import get_logger
from bridge.twilio import twiml
from bridge.twilio.rest import PlacedCall, TwilioError, TwilioRest, TwilioUnreachable, is_call_sid

log = get_logger(__name__)

# Twenty variables of 500 characters, each six bytes in JSON's longest spelling, fit.
MAX_BODY: Final = 64 * 1024
BODY_SECONDS: Final = 5

DEFAULT_LIST: Final = 50
MAX_LIST: Final = 500

# The routes that Twilio asks, by endpoint: for signature checks.
TWILIO_ENDPOINTS: Final = frozenset({"control.call_status", "control.answered_by"})

Answer = tuple[Response, int] | tuple[Response, int, dict[str, str]]


def control_blueprint(
    host: ControlHost,
    *,
    answer: AnswerWith = with_twiml,
    reserved: Iterable[str] = (),
    gate: Gate | None = None,
    live: Live | None = None,
) -> Blueprint:
    """The control API of `host`.

    `answer` decides what a placed call does when somebody answers: `with_twiml` or `with_webhook`.
    `reserved` are further parameter names that no variable may take. `gate` is shared with other
    pages that the same token protects. With `live`, there are event streams of it.
    """
    control = Blueprint("control", __name__)
    door = gate or Gate(trio.current_time)
    progress = Progress()
    names = tuple(reserved)

    keep_the_door(
        control, door, lambda: host.api_token, what="control API", open_to_all=TWILIO_ENDPOINTS
    )

    if live is not None:
        add_event_routes(control, host, live)

    @control.post("/calls")
    async def dial() -> Answer:
        asked = read_request(await _json_body())
        policy = host.policy
        call = check_request(asked, await policy.agents(), names)
        rest = host.twilio
        if rest is None:
            raise DialRefused(NO_CREDENTIALS)
        address = _reachable(await policy.public_url())
        ring, talk = await policy.limits()
        options = await answer(call, address)
        callback = message_address(address, call.message) if call.machine_detection else None
        line = await policy.admit(call)
        result = "failed"
        try:
            with line as got:
                placed = await rest.create_call(
                    call.to,
                    call.from_,
                    **options,
                    status_callback=f"{address.web}/call-status",
                    machine_detection=call.machine_detection,
                    async_amd_status_callback=callback,
                    timeout=ring,
                    time_limit=talk,
                )
                result = placed.call_sid
                got(placed.call_sid)
        except TwilioError as error:
            result = str(error)  # which says so if the phone may ring anyway
            raise
        finally:
            _audit("dialled", result, to=call.to, from_=call.from_, agent=call.agent)
        update = _placed(placed, call)
        known = progress.fold(update)
        await host.call_status(update)
        headers = {"Location": f"/calls/{placed.call_sid}"}
        return jsonify(call_sid=placed.call_sid, status=known.status), 201, headers

    @control.get("/calls")
    async def list_calls() -> Answer:
        limit = _limit()
        live = {call.call_sid: call for call in host.live if call.call_sid}
        recent: dict[str, dict[str, Any]] = {}
        for known in progress.latest():
            if known.call_sid not in live:
                recent[known.call_sid] = _shown(known.call_sid, None, known, None)
        for record in await host.records.list(limit):
            sid = str(record.get("call_sid", ""))
            if sid not in live:
                recent.pop(sid, None)  # a record knows more; and the order is the records'
                recent[sid] = _shown(sid, None, progress.get(sid), record)
        return jsonify(
            live=[_shown(sid, call, progress.get(sid), None) for sid, call in live.items()],
            recent=list(recent.values())[:limit],
        ), 200

    @control.get("/calls/<call_sid>")
    async def show(call_sid: str) -> Answer:
        _check_sid(call_sid)
        live, known = _live(host, call_sid), progress.get(call_sid)
        record = await host.records.get(call_sid)
        if live is None and known is None and record is None:
            raise _NoSuchCall
        return jsonify(_shown(call_sid, live, known, record)), 200

    @control.delete("/calls/<call_sid>")
    async def hang_up(call_sid: str) -> Answer:
        _check_sid(call_sid)
        live, rest = _live(host, call_sid), host.twilio
        result = "failed"
        try:
            if live is not None:
                # Before Twilio is told: its `stop` would look as if the caller had hung up.
                live.hang_up("an operator hung up")
                result = "ended"
            if rest is not None:
                result = await _end_at_twilio(rest, call_sid, carried=live is not None)
        finally:
            _audit("hung up", result, call_sid=call_sid)
        if result == "failed":
            result = await _end_elsewhere(host, progress, call_sid)
        if result == "unknown":
            known = progress.get(call_sid) or await host.records.get(call_sid)
            if known is None:
                raise _NoSuchCall
        return jsonify(call_sid=call_sid, status="completed"), 200

    @control.post("/calls/<call_sid>/say")
    async def say(call_sid: str) -> Answer:
        _check_sid(call_sid)
        words = read_words(await _json_body())
        live = _live(host, call_sid)
        if live is None:
            if progress.get(call_sid) is None and await host.records.get(call_sid) is None:
                raise _NoSuchCall
            raise DialRefused("this process does not carry the call, or no longer", status=409)
        if why := live.say(words):
            raise DialRefused(why, status=409)
        # Not the words: what is said in calls is no business of the log's.
        _audit("wrote to a call", "taken", call_sid=call_sid)
        return jsonify(call_sid=call_sid), 202

    @control.post("/call-status")
    async def call_status() -> Answer | tuple[str, int]:
        update = read_status(await request.form)
        progress.fold(update)
        await host.call_status(update)
        return "", 204

    @control.post("/call-status/answered-by")
    async def answered_by() -> Answer | tuple[str, int]:
        update = read_status(await request.form)
        progress.fold(update)
        message = request.args.get("message", "")
        rest = host.twilio
        if message and rest is not None and update.answered_by.startswith("machine_end_"):
            await _leave(rest, update.call_sid, message)
        await host.call_status(update)
        return "", 204

    @control.errorhandler(BadRequest)
    async def bad_request(error: BadRequest) -> Answer:
        field = {"field": error.field} if error.field else {}
        return jsonify(error=str(error), **field), error.status

    @control.errorhandler(DialRefused)
    async def dial_refused(error: DialRefused) -> Answer:
        return jsonify(error=str(error)), error.status

    @control.errorhandler(BadHost)
    @control.errorhandler(BadStatus)
    async def bad_peer(error: Exception) -> Answer:
        return jsonify(error=str(error)), 400

    @control.errorhandler(_NoSuchCall)
    async def no_such_call(_: Exception) -> Answer:
        return jsonify(error="there is no such call; GET /calls lists them"), 404

    @control.errorhandler(TwilioError)
    async def twilio_refused(error: TwilioError) -> Answer:
        return _twilio_answer(error)

    @control.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Answer:
        return jsonify(error=error.description or error.name), error.code or 500

    return control


class _NoSuchCall(Exception):
    pass


async def _json_body() -> bytes:
    # A web page can send any other type to another site without asking it first.
    if request.mimetype != "application/json":
        raise BadRequest("", "send the header Content-Type: application/json", status=415)
    body = bytearray()
    try:
        with trio.fail_after(BODY_SECONDS):
            async for part in request.body:
                body += part
                if len(body) > MAX_BODY:
                    raise BadRequest("", f"the body has at most {MAX_BODY} bytes", status=413)
    except trio.TooSlowError:
        raise BadRequest(
            "", f"the body took more than {BODY_SECONDS} seconds", status=408
        ) from None
    return bytes(body)


def _reachable(public_url: str) -> PublicAddress:
    seen: Seen | None = g.get("seen")
    host = seen.hosts[0] if seen is not None else request.headers.get("Host", "")
    address = public_address(public_url, host)
    if is_loopback(address.web.partition("://")[2].partition("/")[0]) and not public_url:
        raise DialRefused(
            "Twilio cannot reach this server by the address you used; set server.public_url, or "
            "start it with --tunnel"
        )
    return address


def _placed(placed: PlacedCall, call: OutboundCall) -> StatusUpdate:
    return StatusUpdate(
        call_sid=placed.call_sid, status=placed.status, caller=call.from_, called=call.to
    )


def _limit() -> int:
    text = request.args.get("limit", str(DEFAULT_LIST))
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_LIST):
        raise BadRequest("limit", f"expected a number from 1 to {MAX_LIST}")
    return int(text)


def _check_sid(call_sid: str) -> None:
    if not is_call_sid(call_sid):
        raise _NoSuchCall


def _live(host: ControlHost, call_sid: str) -> LiveCall | None:
    return next((call for call in host.live if call.call_sid == call_sid), None)


def _shown(
    call_sid: str,
    live: LiveCall | None,
    known: StatusUpdate | None,
    record: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A call as the API shows it: its record if there is one, and what is known besides."""
    shown: dict[str, Any] = {"call_sid": call_sid, "live": live is not None, "status": ""}
    if known is not None:
        for name in ("status", "caller", "called", "seconds", "sip_code", "answered_by"):
            if (value := getattr(known, name)) not in ("", None):
                shown[name] = value
    if live is not None:
        shown |= {"status": "in-progress", "seconds": round(live.seconds, 3)}
        shown |= {"caller": live.caller, "called": live.called}
    if record is not None:
        if live is None and carried_elsewhere(record):
            shown["elsewhere"] = True
        status = shown["status"]
        shown |= record
        if status and not shown.get("status"):
            shown["status"] = status
        if not shown.get("status") and record.get("outcome"):
            shown["status"] = "completed"
    return {**shown, "live": live is not None}


async def _end_at_twilio(rest: TwilioRest, call_sid: str, *, carried: bool) -> str:
    try:
        ended = await rest.hang_up(call_sid)
    except TwilioError as error:
        if not carried:
            raise
        # The call ends all the same: closing its socket is the other way to do it.
        log.warning("hang-up at Twilio failed", call_sid=call_sid, reason=str(error))
        return "ended"
    return "ended" if ended or carried else "unknown"


async def _end_elsewhere(host: ControlHost, progress: Progress, call_sid: str) -> str:
    """Without credentials, a call that is not carried here can only be over, or out of reach."""
    known, record = progress.get(call_sid), await host.records.get(call_sid)
    if known is None and record is None:
        raise _NoSuchCall
    if (known is not None and known.is_terminal) or (record is not None and record.get("outcome")):
        return "ended"
    raise DialRefused(
        "another worker process carries this call; set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN "
        "to end it from here",
        status=409,
    )


async def _leave(rest: TwilioRest, call_sid: str, message: str) -> None:
    """Speak to the answering machine in the agent's place. Too late is no error."""
    result = "left"
    try:
        await rest.update_call(call_sid, twiml=twiml.hang_up(message))
    except TwilioError as error:
        result = str(error)
    except ValueError:
        result = "the message is too long"  # by an address that was not ours
    log.info("message for an answering machine", call_sid=call_sid, result=result)


def _audit(what: str, result: str, **facts: str) -> None:
    """The line that tells afterwards who had a call placed or ended, whatever came of it."""
    log.info(f"operator {what}", result=result, peer=client(), **facts)


def _twilio_answer(error: TwilioError) -> Answer:
    words = {
        "code": error.code,
        "message": error.message,
        "status": error.status,
        "more_info": error.more_info,
    }
    if isinstance(error, TwilioUnreachable):
        return jsonify(error=str(error)), 502
    if error.status == 429:
        return jsonify(error=str(error), twilio=words), 503, {"Retry-After": "1"}
    return jsonify(error=str(error), twilio=words), 422 if error.status == 400 else 502
