"""Admits calls from the softphone: `POST /softphone/call`, for clients of the control API.

For a page this route stands for Twilio's webhook: the same admission, a call SID that this server
makes up, and a ticket that admits the page's browser to the media socket. The page then acts as
Twilio does: it opens the socket, and sends `start` with the call SID and the parameters it got.

    {"call_sid": "CA…", "stream_url": "wss://…/media-stream?ticket=…",
     "parameters": {"From": "softphone", "To": …, "ticket": …, …}, "phrases": [...]}

Busy is 503 with {"error"}; the other refusals are the control API's.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from quart import Blueprint, jsonify, request

from bridge.addresses import public_address
from bridge.admission.slots import NotAdmitted
from bridge.call.introduction import TICKET
from bridge.http.current import client, current_bridge, origin_of
from bridge.http.json_api import Answer, BadRequest, answer_errors_in_json, json_body
from bridge.http.operator_auth import protect
from bridge.log import get_logger

log = get_logger(__name__)

SOFTPHONE: Final = "softphone"


class CallRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of `POST /softphone/call`: which agent to talk to, "" for the default one."""

    agent: str = ""


softphone = Blueprint("softphone", __name__)
protect(softphone, what="softphone")
answer_errors_in_json(softphone)


@softphone.post("/softphone/call")
async def call() -> Answer:
    """Admit a call from a page, and return what the page needs to open its media socket."""
    body = await json_body()
    try:
        asked = msgspec.json.decode(body, type=CallRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("", 'expected {} or {"agent": "a name"}', status=400) from None
    bridge = current_bridge()
    settings = await bridge.settings()
    if asked.agent and asked.agent not in settings.agents:
        known = ", ".join(settings.agents) or "none"
        raise BadRequest("agent", f"there is no such agent; there are: {known}")
    # The page's own host, not server.public_url: the page's policy allows no other socket.
    host = origin_of(request).host
    stream = public_address("", host).socket
    if page := request.headers.get("Origin"):
        stream = f"{'wss' if page.startswith('https:') else 'ws'}://{host}"
    call_sid = "CA" + secrets.token_hex(16)
    try:
        await bridge.entrance.reserve(settings, call_sid, "")
    except NotAdmitted as error:
        log.info("softphone busy", reason=str(error), peer=client())
        return jsonify(error="all lines are busy; try again in a moment"), 503
    log.info("softphone call", call_sid=call_sid, peer=client(), agent=asked.agent)
    parameters = {"From": SOFTPHONE, "To": _number(settings.agents, asked.agent)}
    parameters |= {"direction": SOFTPHONE, "agent": asked.agent}
    # For any parameters: it is read before they come, and its holder is an operator.
    ticket = parameters[TICKET] = bridge.entrance.ticket(call_sid, SOFTPHONE)
    bridge.prewarm(settings, call_sid, parameters)
    return jsonify(
        call_sid=call_sid,
        stream_url=f"{stream}/media-stream?ticket={ticket}",
        parameters=parameters,
        phrases=list(bridge.phrases),
    ), 200


def _number(agents: dict[str, dict[str, Any]], agent: str) -> str:
    """Return the number that this agent answers, as if it had been called."""
    numbers = agents.get(agent, {}).get("numbers", ())
    return str(numbers[0]) if numbers else ""
