"""The softphone's way in: `POST /softphone/call`, for those who may use the control API.

A page cannot be announced by Twilio's webhook, so this stands for it: the same admission, a call
SID of our own making, and a ticket, by which the media socket lets the page's browser in. The page
then does what Twilio would do: it opens the socket, and sends `start` with the call SID and the
parameters that it was given.

    {"call_sid": "CA…", "stream_url": "wss://…/media-stream?ticket=…",
     "parameters": {"From": "softphone", "To": …, "ticket": …, …}, "phrases": [...]}

Busy is 503 with {"error"}; the other refusals are the control API's.
"""

from __future__ import annotations

import secrets
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from quart import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from bridge.addresses import BadHost, is_loopback, public_address
from bridge.call.introduction import TICKET
from bridge.config.settings import Settings
from bridge.http.operator_auth import Gate
from bridge.http.operator_door import client, keep_the_door
from bridge.http.twilio_auth import asked_for
from bridge.local_agent import phrases
from bridge.log import get_logger
from bridge.service import Bridge

log = get_logger(__name__)

SOFTPHONE: Final = "softphone"

Answer = tuple[Response, int] | tuple[Response, int, dict[str, str]]


class CallRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of `POST /softphone/call`: which agent to talk to, "" for the default one."""

    agent: str = ""


def softphone_blueprint(bridge: Bridge, gate: Gate) -> Blueprint:
    """The softphone's route. `gate` is the control API's."""
    softphone = Blueprint("softphone", __name__)

    keep_the_door(softphone, gate, lambda: bridge.api_token, what="softphone")

    @softphone.post("/softphone/call")
    async def call() -> Answer:
        # A web page can send any other type to another site without asking it first.
        if request.mimetype != "application/json":
            return jsonify(error="send the header Content-Type: application/json"), 415
        try:
            asked = msgspec.json.decode(await request.get_data(), type=CallRequest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return jsonify(error='expected {} or {"agent": "a name"}'), 400
        settings = await bridge.settings()
        if asked.agent and asked.agent not in settings.agents:
            known = ", ".join(settings.agents) or "none"
            return jsonify(error=f"there is no such agent; there are: {known}", field="agent"), 422
        here = asked_for(request, settings)
        # The page's own host, whatever Twilio's is: its policy lets it open no other socket.
        stream = public_address("", here.host).socket
        if origin := request.headers.get("Origin"):
            secure = origin.startswith("https:")
            stream = f"{'wss' if secure else 'ws'}://{here.host}"
        call_sid = "CA" + secrets.token_hex(16)
        if why := await bridge.reserve(settings, call_sid, ""):
            log.info("softphone busy", reason=why, peer=client())
            return jsonify(error="all lines are busy; try again in a moment"), 503
        log.info("softphone call", call_sid=call_sid, peer=client(), agent=asked.agent)
        ticket = bridge.ticket(call_sid, SOFTPHONE)
        parameters = {"From": SOFTPHONE, "To": _number(settings.agents, asked.agent)}
        parameters |= {"direction": SOFTPHONE, "agent": asked.agent, TICKET: ticket}
        bridge.prewarm(settings, call_sid, parameters)
        return jsonify(
            call_sid=call_sid,
            stream_url=f"{stream}/media-stream?ticket={ticket}",
            parameters=parameters,
            phrases=_phrases(bridge, settings),
        ), 200

    @softphone.errorhandler(BadHost)
    async def bad_host(error: BadHost) -> Answer:
        return jsonify(error=str(error)), 400

    @softphone.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Answer:
        return jsonify(error=error.description or error.name), error.code or 500

    return softphone


def _phrases(bridge: Bridge, settings: Settings) -> list[str]:
    """What the agent understands, where that is known.

    An agent on this machine is taken to be the one that comes with bridge, unless somebody who
    knows better has said so.
    """
    if bridge.phrases is not None:
        return list(bridge.phrases)
    return list(_bundled_phrases()) if is_loopback(urlsplit(settings.deepgram.url).netloc) else []


@cache
def _bundled_phrases() -> tuple[str, ...]:
    # Read from a small file, on the loop, once: a few milliseconds.
    return tuple(phrases())


def _number(agents: dict[str, dict[str, Any]], agent: str) -> str:
    """The number that this agent answers, as if it had been called."""
    numbers = agents.get(agent, {}).get("numbers", ())
    return str(numbers[0]) if numbers else ""
