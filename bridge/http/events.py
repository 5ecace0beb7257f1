"""Server-sent events: `GET /events` for all calls, `GET /calls/{sid}/events` for one call from its
beginning to its end. `bridge.live.hub` describes the events.

Both streams begin with a `snapshot`. A stream ends when its call ends, and when the server stops;
the client may connect again. One call's stream ends with one of

    ended       the call is over, here or by its record
    elsewhere   another worker process carries the call, or did when it died
    unknown     there is no such call after BEGIN_SECONDS

A viewer that reads too slowly gets a new snapshot in place of the events it missed. A viewer that
does not read at all is dropped after WRITE_TIMEOUT of `bridge.server.hypercorn.connection`.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import trio
from quart import Blueprint, Response, request

from bridge.http.call_records import carried_elsewhere, record_of
from bridge.http.current import current_bridge
from bridge.http.json_api import ApiError, answer_errors_in_json
from bridge.http.operator_auth import protect
from bridge.live import view
from bridge.live.hub import MAX_VIEWERS, Live, Stopped, TooManyViewers
from bridge.live.viewer import event
from bridge.service import Bridge
from bridge.twilio.numbers import is_call_sid

# In seconds. Proxies drop a response that is silent for about a minute, and only a write finds out
# that a viewer has disconnected.
HEARTBEAT_SECONDS: Final = 10.0
HEARTBEAT: Final = b": still here\n\n"

# How long a browser waits before it connects again, in milliseconds.
BEGINNING: Final = b"retry: 2000\n\n"

# How long a stream waits for its call to begin, in seconds: a page opens the stream and the media
# socket at the same time.
BEGIN_SECONDS: Final = 15.0
# How often, meanwhile, the records are asked whether another process carries the call, in seconds.
RECORD_SECONDS: Final = 2.0

events = Blueprint("events", __name__)
protect(events, what="control API")
answer_errors_in_json(events)


@events.get("/events")
async def all_events() -> Response:
    """Stream the events of all calls that this process carries."""
    live = current_bridge().live
    _check_room(live)
    return _streaming(_everything(live))


@events.get("/calls/<call_sid>/events")
async def call_events(call_sid: str) -> Response:
    """Stream the events of one call."""
    if not is_call_sid(call_sid):
        raise ApiError("a call's SID is CA and 32 hexadecimal digits", 404)
    bridge = current_bridge()
    _check_room(bridge.live)
    return _streaming(_one_call(bridge, call_sid))


async def _everything(live: Live) -> AsyncGenerator[bytes, None]:
    yield BEGINNING
    try:
        with live.watching() as viewer:
            while True:
                yield await viewer.next(HEARTBEAT_SECONDS) or HEARTBEAT
    except (trio.EndOfChannel, Stopped, TooManyViewers):
        return  # the latter two, if they happened after the request was accepted


async def _one_call(bridge: Bridge, call_sid: str) -> AsyncGenerator[bytes, None]:
    yield BEGINNING
    try:
        with bridge.live.watching(call_sid) as viewer:
            wait_until = trio.current_time() + BEGIN_SECONDS
            while not viewer.has_begun:
                known = _known(await record_of(bridge, call_sid), call_sid)
                if viewer.has_begun:
                    break
                if not known and trio.current_time() >= wait_until:
                    known = event("unknown", call_sid=call_sid, message="there is no such call")
                if known:
                    yield known
                    return
                yield await viewer.next(RECORD_SECONDS) or HEARTBEAT
            while True:
                yield await viewer.next(HEARTBEAT_SECONDS) or HEARTBEAT
    except (trio.EndOfChannel, Stopped, TooManyViewers):
        return


def _known(record: Mapping[str, Any] | None, call_sid: str) -> bytes:
    """Return what the record of a call that is not live here says, as the last events."""
    if record is None:
        return b""
    if record.get("outcome"):
        shown = view.recorded(record)
        over = {name: shown.get(name, "") for name in ("call_sid", "outcome", "reason", "seconds")}
        return event("snapshot", call=shown) + event("ended", at=over["seconds"], **over)
    if carried_elsewhere(record):
        words = "another worker process carries this call; what was said is shown when it is over"
        return event("elsewhere", call_sid=call_sid, message=words)
    return b""


def _streaming(body: AsyncGenerator[bytes, None]) -> Response:
    # A HEAD request must not wait for the stream to end.
    shown = body if request.method == "GET" else b""
    response = Response(shown, content_type="text/event-stream")
    response.timeout = None  # it lasts as long as the viewer is connected
    response.headers["X-Accel-Buffering"] = "no"  # nginx would buffer the events
    return response


def _check_room(live: Live) -> None:
    """Raise ApiError if no more viewers may watch."""
    if live.closed:
        raise ApiError("the server is stopping", 503)
    if len(live) >= MAX_VIEWERS:
        words = f"{MAX_VIEWERS} are watching already; close one of the pages that do"
        raise ApiError(words, 503)
