"""The control API: dial, list, show and hang up calls, and take part in a live one.

`POST /calls` dials, `GET /calls` lists, `GET /calls/{sid}` shows, `DELETE /calls/{sid}` hangs up,
`POST /calls/{sid}/say` says something in the caller's place, `/say-as-agent` in the agent's, and
`/transfer` connects the caller to somebody else; `operator_auth` authorises them.
`live` is true of the calls that this process carries; `elsewhere` of those that, by their records,
another process carries, or carried when it died.

Every answer is JSON. An error is `{"error": one line with the remedy}`, with `"field"` where one
field of the request is at fault, and `"twilio"` with Twilio's code and message where it refused:

    400  not JSON
    401, 403, 429  not authorised
    404  no such call
    409  the call is live, but this process can neither reach it nor ask Twilio to end it
    408, 413, 415  too slow, too large, not application/json
    422  a field is wrong, by this server's judgement or by Twilio's
    502  Twilio refused for another reason, or did not answer
    503  not now: draining, full, no credentials, no public address; or Twilio's "too many requests"
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from quart import Blueprint, jsonify, request

from bridge.addresses import PublicAddress, is_loopback, public_address
from bridge.admission.slots import NotAdmitted
from bridge.call.call import Call
from bridge.config.settings import Settings
from bridge.functions.errors import NotTaken
from bridge.http.call_records import is_over, latest_records, record_of, shown_call
from bridge.http.current import client, current_bridge, origin_of
from bridge.http.dialling import (
    check_request,
    read_request,
    verdict_address,
    webhook_address,
)
from bridge.http.json_api import (
    Answer,
    ApiError,
    BadRequest,
    answer_errors_in_json,
    json_body,
    read_transfer,
    read_words,
)
from bridge.http.operator_auth import protect
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.service import NO_CREDENTIALS, Bridge
from bridge.twilio.call_status import StatusUpdate
from bridge.twilio.numbers import is_call_sid
from bridge.twilio.rest import TwilioError, TwilioRest, TwilioUnreachable

log = get_logger(__name__)

DEFAULT_LIST: Final = 50
MAX_LIST: Final = 500

# How much longer a slot is reserved for a call than it may ring, in seconds: Twilio places one call
# a second at most, and may add five seconds to the ringing.
SLOW_SECONDS: Final = 30

# The longest call that Twilio allows an account by default, in seconds.
# https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource (TimeLimit)
TWILIO_TIME_LIMIT: Final = 14_400

# Twilio's limit is this much later, in seconds, than the end of the call by `call.max_minutes`,
# which comes with a warning and a goodbye.
TIME_LIMIT_SLACK: Final = 60

operator_api = Blueprint("operator_api", __name__)
protect(operator_api, what="control API")
answer_errors_in_json(operator_api)


class NoSuchCall(ApiError):
    """There is no call with this SID."""

    def __init__(self) -> None:
        super().__init__("there is no such call; GET /calls lists them", 404)


# ---- the routes ---------------------------------------------------------------------------------


@operator_api.post("/calls")
async def dial() -> Answer:
    """Place a call."""
    bridge, asked = current_bridge(), read_request(await json_body())
    settings = await bridge.settings()
    agents = {name: agent.get("numbers", ()) for name, agent in settings.agents.items()}
    call = check_request(asked, agents)
    if bridge.twilio is None:
        raise ApiError(NO_CREDENTIALS, 503)
    address = _reachable(settings.server.public_url)
    url = webhook_address(address, call)
    callback = verdict_address(address, call) if call.async_amd else None
    async with _line(bridge, settings, call.seconds_to_answer + SLOW_SECONDS) as placed_as:
        result = "failed"
        try:
            placed = await bridge.twilio.create_call(
                call.to,
                call.from_,
                url=url,
                status_callback=f"{address.web}/call-status",
                machine_detection=call.machine_detection,
                machine_detection_timeout=call.machine_detection_timeout,
                async_amd=call.async_amd,
                async_amd_status_callback=callback,
                timeout=call.timeout,
                time_limit=_time_limit(settings),
                send_digits=call.send_digits or None,
                call_reason=call.call_reason or None,
                record=call.record,
                fallback_url=call.fallback_url or None,
            )
            result = placed.call_sid
            placed_as(placed.call_sid)
        except TwilioError as error:
            result = str(error)  # which says so if the phone may ring anyway
            raise
        finally:
            _audit("dialled", result, to=call.to, from_=call.from_, agent=call.agent)
    update = StatusUpdate(
        call_sid=placed.call_sid, status=placed.status, caller=call.from_, called=call.to
    )
    known = bridge.note_status(update)
    headers = {"Location": f"/calls/{placed.call_sid}"}
    return jsonify(call_sid=placed.call_sid, status=known.status), 201, headers


@operator_api.get("/calls")
async def list_calls() -> Answer:
    """List the live calls, and the latest others."""
    bridge, limit = current_bridge(), _limit()
    progress, live = bridge.progress, _live_calls(bridge)
    recent: dict[str, dict[str, Any]] = {}
    for known in progress.latest():
        if known.call_sid not in live:
            recent[known.call_sid] = shown_call(known.call_sid, None, known, None)
    records, trouble = await latest_records(bridge, limit)
    for record in records:
        sid = str(record.get("call_sid", ""))
        if sid not in live:
            recent.pop(sid, None)  # a record knows more; and the order is the records'
            recent[sid] = shown_call(sid, None, progress.get(sid), record)
    return jsonify(
        live=[shown_call(sid, call, progress.get(sid), None) for sid, call in live.items()],
        recent=list(recent.values())[:limit],
        records_error=trouble,
    ), 200


@operator_api.get("/calls/<call_sid>")
async def show(call_sid: str) -> Answer:
    """Show one call, live or not."""
    _check_sid(call_sid)
    bridge = current_bridge()
    live, known = _live_calls(bridge).get(call_sid), bridge.progress.get(call_sid)
    record = await record_of(bridge, call_sid)
    if live is None and known is None and record is None:
        raise NoSuchCall
    return jsonify(shown_call(call_sid, live, known, record)), 200


@operator_api.delete("/calls/<call_sid>")
async def hang_up(call_sid: str) -> Answer:
    """End a call, here and at Twilio."""
    _check_sid(call_sid)
    bridge = current_bridge()
    live, rest = _live_calls(bridge).get(call_sid), bridge.twilio
    result = "failed"
    try:
        if live is not None:
            # Before Twilio is told: its `stop` would look as if the caller had hung up.
            live.end(Outcome.OPERATOR_HUNG_UP, "an operator hung up")
            result = "ended"
        if rest is not None:
            result = await _end_at_twilio(rest, call_sid, carried=live is not None)
    finally:
        _audit("hung up", result, call_sid=call_sid)
    if result == "failed":
        await _check_is_over(bridge, call_sid)
    if result == "unknown":
        known = bridge.progress.get(call_sid) or await record_of(bridge, call_sid)
        if known is None:
            raise NoSuchCall
    return jsonify(call_sid=call_sid, status="completed"), 200


@operator_api.post("/calls/<call_sid>/say")
async def say(call_sid: str) -> Answer:
    """Send text to the agent as if the caller had spoken it."""
    words = read_words(await json_body())
    async with _acting_on(call_sid, "wrote to a call") as call:
        call.say(words)
    return jsonify(call_sid=call_sid), 202


@operator_api.post("/calls/<call_sid>/say-as-agent")
async def say_as_agent(call_sid: str) -> Answer:
    """Have the agent say something, when neither side speaks."""
    words = read_words(await json_body())
    async with _acting_on(call_sid, "spoke in a call") as call:
        call.actions.say(words)
    return jsonify(call_sid=call_sid), 202


@operator_api.post("/calls/<call_sid>/transfer")
async def transfer(call_sid: str) -> Answer:
    """Connect the caller to somebody else, after a word of the agent's."""
    target = read_transfer(await json_body())
    async with _acting_on(call_sid, "transferred a call", to=target) as call:
        try:
            call.actions.transfer_now(target, call.words.one_moment)
        except ValueError as error:
            raise BadRequest("to", str(error)) from None
    return jsonify(call_sid=call_sid), 202


# ---- errors -------------------------------------------------------------------------------------


@operator_api.errorhandler(TwilioError)
async def twilio_refused(error: TwilioError) -> Answer:
    """Answer with Twilio's code and message, where it refused."""
    if isinstance(error, TwilioUnreachable):
        return jsonify(error=str(error)), 502
    words = {
        "code": error.code,
        "message": error.message,
        "status": error.status,
        "more_info": error.more_info,
    }
    if error.status == 429:
        return jsonify(error=str(error), twilio=words), 503, {"Retry-After": "1"}
    return jsonify(error=str(error), twilio=words), 422 if error.status == 400 else 502


# ---- helpers ------------------------------------------------------------------------------------


def _live_calls(bridge: Bridge) -> dict[str, Call]:
    """Return the calls that this process carries, by SID."""
    return {call.report.info.call_sid: call for call in bridge.calls}


@asynccontextmanager
async def _acting_on(call_sid: str, what: str, **facts: str) -> AsyncIterator[Call]:
    """Let the body act on a call that this process carries. Raises ApiError if it does not, or if
    the call does not take it. The log says who acted; it holds nothing that is said in calls."""
    _check_sid(call_sid)
    bridge = current_bridge()
    call = _live_calls(bridge).get(call_sid)
    if call is None:
        if bridge.progress.get(call_sid) is None and await record_of(bridge, call_sid) is None:
            raise NoSuchCall
        raise ApiError("this process does not carry the call, or no longer", 409)
    try:
        yield call
    except NotTaken as error:
        raise ApiError(str(error), 409) from None
    _audit(what, "taken", call_sid=call_sid, **facts)


@asynccontextmanager
async def _line(
    bridge: Bridge, settings: Settings, seconds: float
) -> AsyncIterator[Callable[[str], None]]:
    """Reserve a slot for `seconds` while Twilio is asked to place a call; it is freed if the body
    fails.

    The body calls what it is given with the call's SID, which keeps the slot. Raises ApiError.
    """
    slots, name = bridge.entrance.slots, f"dialled {secrets.token_hex(8)}"
    try:
        await bridge.entrance.reserve(settings, name, "", seconds=seconds)
    except NotAdmitted as error:
        raise ApiError(f"no call may be placed now: {error}", 503) from None
    try:
        yield lambda call_sid: slots.rename(name, call_sid, seconds=seconds)
    finally:
        slots.release(name)


def _time_limit(settings: Settings) -> int | None:
    """Return Twilio's limit for one call, in seconds; None for its default."""
    longest = round(settings.call.max_minutes * 60) + TIME_LIMIT_SLACK
    return longest if longest <= TWILIO_TIME_LIMIT else None


def _reachable(public_url: str) -> PublicAddress:
    """Return the address that Twilio is given. Raises ApiError if Twilio cannot reach it."""
    address = public_address(public_url, origin_of(request).host)
    if is_loopback(address.host) and not public_url:
        raise ApiError(
            "Twilio cannot reach this server by the address you used; set server.public_url, or "
            "start it with --tunnel",
            503,
        )
    return address


def _limit() -> int:
    text = request.args.get("limit", str(DEFAULT_LIST))
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_LIST):
        raise BadRequest("limit", f"expected a number from 1 to {MAX_LIST}")
    return int(text)


def _check_sid(call_sid: str) -> None:
    if not is_call_sid(call_sid):
        raise NoSuchCall


async def _end_at_twilio(rest: TwilioRest, call_sid: str, *, carried: bool) -> str:
    try:
        ended = await rest.hang_up(call_sid)
    except TwilioError as error:
        if not carried:
            raise
        # Closing the media socket ends the call, too.
        log.warning("hang-up at Twilio failed", call_sid=call_sid, reason=str(error))
        return "ended"
    return "ended" if ended or carried else "unknown"


async def _check_is_over(bridge: Bridge, call_sid: str) -> None:
    """Return if a call that is not live here has ended. Raises ApiError, or NoSuchCall."""
    known, record = bridge.progress.get(call_sid), await record_of(bridge, call_sid)
    if known is None and record is None:
        raise NoSuchCall
    if (known is not None and known.is_terminal) or (record is not None and is_over(record)):
        return
    raise ApiError(
        "another worker process carries this call; set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN "
        "to end it from here",
        409,
    )


def _audit(what: str, result: str, **facts: str) -> None:
    """Log which client placed or ended a call, with the result."""
    log.info(f"operator {what}", result=result, peer=client(), **facts)
