"""A call as those see it who watch it: the console, the softphone. Pure: reads a `Call`, changes
nothing, waits for nothing.

The names are those of the records (`bridge.records.record`), so that a page shows a call that is
on and one that is over by the same code. Times are seconds from the call's beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from bridge.call.call import Call
from bridge.call.silence import State
from bridge.call.transcript import Line
from bridge.call.turns import Turn
from bridge.records.from_call import direction_of
from bridge.records.record import FIELD_LIMIT, WORDS_LIMIT

Doing = Literal["connecting", "listening", "thinking", "speaking", "reconnecting", "ending"]

# The lists of a call, by name, in the order in which a page needs them.
LISTS: Final = ("transcript", "turns", "functions")

_OWES_A_WORD: Final = frozenset({State.OWING, State.TOLD, State.FILLED, State.PRODDED})
_CALLER_SPEAKS: Final = frozenset({State.CALLER, State.AGAIN})

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


def doing(call: Call, now: float) -> Doing:
    """What the agent does at `now`, on Trio's clock: what its caller would say it does.

    It speaks for as long as the phone plays, which is longer than it sends.
    """
    conversation, report = call.conversation, call.report
    if report.outcome is not None:
        return "ending"
    if conversation.awaited is State.AWAY:
        return "connecting" if report.setup_seconds is None else "reconnecting"
    if conversation.playback.queued(now) > 0:
        return "speaking"
    if conversation.awaited in _OWES_A_WORD:
        return "thinking"
    if conversation.running is not None and conversation.running.running:
        return "thinking"
    return "listening"


def facts(call: Call, now: float) -> dict[str, Any]:
    """What is one value and may change: everything but lists, times and audio."""
    report, conversation = call.report, call.conversation
    return {
        "agent": report.agent,
        "state": doing(call, now),
        "caller_speaking": conversation.awaited in _CALLER_SPEAKS,
        "setup_seconds": report.setup_seconds,
        "barge_ins": conversation.barge_ins,
        "reconnects": report.reconnects,
        "dropped_bytes": call.uplink.bytes_dropped,
        "outcome": str(report.outcome or ""),
        "reason": report.reason[:FIELD_LIMIT],
    }


def audio(call: Call, now: float) -> dict[str, int]:
    """How much audio is on its way, in milliseconds: the caller's that waits for the agent, and
    the agent's that the phone has still to play."""
    return {
        "uplink_ms": round(1000 * call.uplink.queued_seconds),
        "playback_ms": round(1000 * call.conversation.playback.queued(now)),
    }


def lists(call: Call, first: Mapping[str, int], now: float) -> dict[str, list[bytes]]:
    """The lists of a call, each from its item `first[name]` on, every item as JSON."""
    conversation, encode = call.conversation, msgspec.json.encode
    functions = [
        _function(one.name, one.at, one.seconds, one.result)
        for one in conversation.functions[first["functions"] :]
    ]
    if conversation.running is not None:
        began_at = now - call.seconds_so_far
        for name, began in conversation.running.running:
            functions.append(_function(name, began - began_at, 0.0, ""))
    return {
        "transcript": [
            encode(_line(line)) for line in conversation.transcript.lines[first["transcript"] :]
        ],
        "turns": [encode(_turn(turn)) for turn in conversation.turns.all[first["turns"] :]],
        "functions": [encode(one) for one in functions],
    }


def whole(call: Call, now: float) -> dict[str, Any]:
    """All of a call that has been introduced, JSON-able."""
    info = call.report.info
    assert info is not None
    seconds = call.seconds_so_far
    items = lists(call, dict.fromkeys(LISTS, 0), now)
    return {
        "call_sid": info.call_sid,
        "caller": info.caller[:FIELD_LIMIT],
        "called": info.called[:FIELD_LIMIT],
        "direction": direction_of(info),
        "started_at": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(),
        "seconds": round(seconds, 3),
        **facts(call, now),
        **audio(call, now),
        **{name: [msgspec.Raw(item) for item in items[name]] for name in LISTS},
    }


def recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A call that is over, from its record as the control API has it, in the shape of `whole`."""
    return {
        **_RECORDED,
        **record,
        "state": "ending",
        "caller_speaking": False,
        "uplink_ms": 0,
        "playback_ms": 0,
    }


def ending(call: Call) -> dict[str, Any]:
    """How a call ended; its sockets are closed."""
    report, seconds = call.report, round(call.report.seconds, 3)
    return {
        "call_sid": report.info.call_sid if report.info is not None else "",
        "at": seconds,
        "outcome": str(report.outcome or ""),
        "reason": report.reason[:FIELD_LIMIT],
        "seconds": seconds,
    }


def _line(line: Line) -> Line:
    if len(line.words) <= WORDS_LIMIT:
        return line
    return msgspec.structs.replace(line, words=line.words[:WORDS_LIMIT])


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "caller_stopped_at": turn.caller_said_at,
        "first_audio_received_at": turn.audio_received_at,
        "first_audio_sent_at": turn.audio_sent_at,
        "heard_at": turn.heard_at,
        "latencies": turn.latencies,
    }


def _function(name: str, at: float, seconds: float, result: str) -> dict[str, Any]:
    """`result` is "" while it runs."""
    return {
        "at": round(at, 3),
        "name": name[:FIELD_LIMIT],
        "seconds": round(seconds, 3),
        "result": result,
    }
