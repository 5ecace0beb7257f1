"""The view of a call that the console and the softphone show. Sans-I/O: only reads the call.

The names are those of the records (`bridge.records.record`), so that a page shows live and ended
calls with the same code. Times are seconds from the call's beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from bridge.call.parts import CallParts
from bridge.call.silence import State
from bridge.call.story import FunctionUse, Line
from bridge.records.from_call import direction_of
from bridge.records.record import FIELD_LIMIT, WORDS_LIMIT

Doing = Literal["connecting", "listening", "thinking", "speaking", "reconnecting", "ending"]

# The lists of a call, by name, in the order in which a page needs them.
LISTS: Final = ("transcript", "turns", "functions")

_CALLER_SPEAKING: Final = frozenset({State.CALLER, State.AGAIN})

_RECORDED: Final[Mapping[str, Any]] = {
    "caller": "",
    "called": "",
    "agent": "",
    "direction": "inbound",
    "setup_seconds": None,
    "barge_ins": 0,
    "reconnects": 0,
    "dropped_bytes": 0,
    "outcome": "",
    "reason": "",
    "transcript": [],
    "turns": [],
    "functions": [],
}


def doing(call: CallParts, now: float) -> Doing:
    """Return what the agent does at `now`, on Trio's clock, as the caller perceives it.

    It is speaking for as long as the phone plays, which is longer than the agent sends.
    """
    report, awaited, running = call.report, call.silence.state, call.conversation.running
    if report.outcome is not None:
        return "ending"
    if awaited is State.AWAY:
        return "connecting" if report.setup_seconds is None else "reconnecting"
    if call.downlink.playback.queued(now) > 0:
        return "speaking"
    if call.silence.reply_due or awaited is State.PRODDED:
        return "thinking"
    if running is not None and running.running:
        return "thinking"
    return "listening"


def facts(call: CallParts, now: float) -> dict[str, Any]:
    """Return the single values that may change: everything but lists, times and audio."""
    report = call.report
    return {
        "agent": report.agent,
        "state": doing(call, now),
        "caller_speaking": call.silence.state in _CALLER_SPEAKING,
        "setup_seconds": report.setup_seconds,
        "barge_ins": call.story.barge_ins,
        "reconnects": report.reconnects,
        "dropped_bytes": call.uplink.bytes_dropped,
        "outcome": str(report.outcome or ""),
        "reason": report.reason[:FIELD_LIMIT],
    }


def audio(call: CallParts, now: float) -> dict[str, int]:
    """Return the buffered audio in milliseconds: the caller's that waits to be sent to the agent,
    and the agent's that the phone still has to play."""
    return {
        "uplink_ms": round(1000 * call.uplink.queued_seconds),
        "playback_ms": round(1000 * call.downlink.playback.queued(now)),
    }


def lists(call: CallParts, first: Mapping[str, int], now: float) -> dict[str, list[bytes]]:
    """Return the lists of a call, each from item `first[name]` on, with every item as JSON."""
    story, running, encode = call.story, call.conversation.running, msgspec.json.encode
    functions = [_shown(one) for one in story.functions[first["functions"] :]]
    if running is not None:
        functions += [
            _shown(FunctionUse(at=story.seconds(began), name=name))
            for name, began in running.running
        ]
    return {
        "transcript": [
            encode(msgspec.structs.asdict(_line(line)))
            for line in story.lines[first["transcript"] :]
        ],
        "turns": [encode(msgspec.structs.asdict(turn)) for turn in story.turns[first["turns"] :]],
        "functions": [encode(one) for one in functions],
    }


def whole(call: CallParts, now: float) -> dict[str, Any]:
    """Return the whole view of a call, JSON-able."""
    info = call.report.info
    seconds = call.seconds_so_far
    items = lists(call, dict.fromkeys(LISTS, 0), now)
    return {
        "call_sid": info.call_sid,
        "caller": info.caller[:FIELD_LIMIT],
        "called": info.called[:FIELD_LIMIT],
        "direction": direction_of(info),
        "started_at": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(),
        "seconds": round(seconds, 3),
        "transfer_targets": call.actions.targets,
        **facts(call, now),
        **audio(call, now),
        **{name: [msgspec.Raw(item) for item in items[name]] for name in LISTS},
    }


def recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an ended call in the shape of `whole`, from its record in the control API."""
    return {
        **_RECORDED,
        **record,
        "state": "ending",
        "caller_speaking": False,
        "uplink_ms": 0,
        "playback_ms": 0,
    }


def ending(call: CallParts) -> dict[str, Any]:
    """Return how a call ended; its sockets are closed."""
    report, seconds = call.report, round(call.report.seconds, 3)
    return {
        "call_sid": report.info.call_sid,
        "at": seconds,
        "outcome": str(report.outcome or ""),
        "reason": report.reason[:FIELD_LIMIT],
        "seconds": seconds,
    }


def _line(line: Line) -> Line:
    if len(line.words) <= WORDS_LIMIT:
        return line
    return msgspec.structs.replace(line, words=line.words[:WORDS_LIMIT])


def _shown(one: FunctionUse) -> dict[str, Any]:
    return {
        "at": round(one.at, 3),
        "name": one.name[:FIELD_LIMIT],
        "seconds": round(one.seconds, 3),
        "result": one.result,
    }
