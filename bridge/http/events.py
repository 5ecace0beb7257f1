"""What is going on, as server-sent events: `GET /events` for everything, `GET /calls/{sid}/events`
for one call from its beginning to its end. What the events say is in `bridge.live.hub`.

Both begin with a `snapshot`. A stream ends when its call does, and when the server stops; a client
that still wants to know connects again. One call's stream ends with one of

    ended       it is over: this one, carried here, or one that is in the records
    elsewhere   another worker process carries it, or did when it died
    unknown     BEGIN_SECONDS have gone by and there is no such call

A viewer that reads slowly is sent a new snapshot instead of what it missed; one that does not read
at all is dropped after the server's WRITE_TIMEOUT (`bridge.server.hypercorn.connection`).

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import trio
from quart import Blueprint, Response, jsonify, request

from bridge.http.operator_host import ControlHost, Records
from bridge.live import view
from bridge.live.hub import MAX_VIEWERS, Live, Stopped, TooManyViewers
from bridge.live.viewer import event
from bridge.twilio.rest import is_call_sid

# A proxy drops a response that is silent for a minute or so, and a viewer that has vanished is
# found out by writing to it.
HEARTBEAT_SECONDS: Final = 10.0
HEARTBEAT: Final = b": still here\n\n"

# How long a browser waits before it connects again, in ms.
BEGINNING: Final = b"retry: 2000\n\n"

# How long a call may be waited for. A page asks for its events and for its media socket at once.
BEGIN_SECONDS: Final = 15.0
# How often the records are asked meanwhile whether another process has it.
RECORD_SECONDS: Final = 2.0


def add_event_routes(control: Blueprint, host: ControlHost, live: Live) -> None:
    """Add both routes to the control API's blueprint."""

    @control.get("/events")
    async def events() -> Response:
        return _refusal(live) or _streaming(_everything(live))

    @control.get("/calls/<call_sid>/events")
    async def call_events(call_sid: str) -> Response:
        if not is_call_sid(call_sid):
            return _error("a call's SID is CA and 32 hexadecimal digits", 404)
        return _refusal(live) or _streaming(_one_call(live, host.records, call_sid))


def carried_elsewhere(record: Mapping[str, Any]) -> bool:
    """Whether a record that is not of a call carried here is of a call carried somewhere: by
    another worker process or server with these records, or by one that died with it.

    A record without a revision is a note of Twilio's reports: nobody carries the call yet.
    """
    return bool(record.get("revision")) and not record.get("outcome")


async def _everything(live: Live) -> AsyncGenerator[bytes, None]:
    yield BEGINNING
    try:
        with live.watching() as viewer:
            while True:
                yield await viewer.next(HEARTBEAT_SECONDS) or HEARTBEAT
    except (trio.EndOfChannel, Stopped, TooManyViewers):
        return  # the last two: since the request was let in


async def _one_call(live: Live, records: Records, call_sid: str) -> AsyncGenerator[bytes, None]:
    yield BEGINNING
    try:
        with live.watching(call_sid) as viewer:
            wait_until = trio.current_time() + BEGIN_SECONDS
            while not viewer.has_begun:
                known = _known(await records.get(call_sid), call_sid)
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
    """What the records know of a call that is not carried here, as the stream's last events."""
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
    # Who asks for the head alone would be kept waiting for the end of the rest.
    shown = body if request.method == "GET" else b""
    response = Response(shown, content_type="text/event-stream")
    response.timeout = None  # it lasts as long as somebody watches
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep events until it has a bufferful
    return response


def _refusal(live: Live) -> Response | None:
    if live.closed:
        return _error("the server is stopping", 503)
    if len(live) >= MAX_VIEWERS:
        words = f"{MAX_VIEWERS} are watching already; close one of the pages that do"
        return _error(words, 503)
    return None


def _error(words: str, status: int) -> Response:
    response = jsonify(error=words)
    response.status_code = status
    return response
