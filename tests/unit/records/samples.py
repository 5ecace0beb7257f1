"""Records for the tests: a small one with something in every field, and any record at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import strategies as st

from bridge.call.story import FunctionUse, Line, Turn
from bridge.records.record import CallRecord, Ending, Leg

SID = "CA" + "0123456789abcdef" * 2
# So far ahead that no retention deletes it.
NOON = datetime(2126, 3, 1, 12, 0, tzinfo=UTC)

# What has broken databases, logs and file names before.
NASTY = (
    "",
    "'; DROP TABLE calls; --",
    '" OR ""="',
    "CA' OR '1'='1",
    "%s %(x)s :name ? ?1 $1 {} \\",
    "a\x00b",
    "\ud800 half a pair \udfff",
    "line\nbreak\r\n\x1b[31m\u202e",
    "../../etc/passwd",
    "\U0001f4de ☎ ünïcödé \uffff",
    '{"json": [1, "\\u0000"]}',
)


def sid(number: int) -> str:
    return f"CA{number:032x}"


def record(call_sid: str = SID, **changes: Any) -> CallRecord:
    """A call that began at noon."""
    return CallRecord(**({"call_sid": call_sid, "started_at": NOON} | changes))


def whole_record(call_sid: str = SID, **changes: Any) -> CallRecord:
    """A finished call with something in every field."""
    fields: dict[str, Any] = {
        "stream_sid": "MZ1",
        "caller": "+15550100001",
        "called": "+15550100002",
        "direction": "outbound-api",
        "agent": "sales",
        "ended_at": NOON + timedelta(seconds=30.5),
        "seconds": 30.5,
        "agent_seconds": 29.0,
        "setup_seconds": 0.4,
        "teardown_seconds": 0.01,
        "outcome": "transferred",
        "reason": "asked for a person",
        "transfer_to": "+15551112222",
        "transfer_name": "reception",
        "transfer_status": "completed",
        "transfer_seconds": 61.0,
        "status": "completed",
        "status_sequence": 3,
        "answered_by": "human",
        "cost": 0.25,
        "dropped_bytes": 160,
        "reconnects": 1,
        "barge_ins": 2,
        "recording": f"{SID}.wav",
        "turns": [
            Turn(
                speech_ended_at=1.5,
                confirmed_at=2.0,
                first_audio_received_at=2.6,
                first_audio_sent_at=2.61,
                heard_at=5.5,
                reply_seconds=1.11,
                latencies={"ttt_latency": 0.35, "total_latency": 0.55},
            ),
            Turn(
                typed_at=7.0,
                confirmed_at=7.1,
                first_audio_received_at=7.4,
                first_audio_sent_at=7.4,
                typed_reply_seconds=0.4,
            ),
            Turn(confirmed_at=9.0, first_audio_sent_at=9.5),
        ],
        "transcript": [
            Line(at=0.5, role="agent", words="Hello!", heard="heard"),
            Line(at=2.0, role="caller", words="Sales, please.", languages=["en", "es"]),
            Line(at=2.6, role="agent", words="One moment.", heard="cut", heard_seconds=0.5),
            Line(at=6.0, role="agent", words="Never said.", heard="unheard"),
            Line(at=7.0, role="keypad", words="42#"),
        ],
        "functions": [
            FunctionUse(
                at=3.0,
                name="look_up",
                seconds=0.2,
                result="ok",
                arguments='{"name":"x"}',
                answer='"y"',
            )
        ],
        "legs": [
            Leg(seconds=9.0, stream_sid="MZ0", outcome="handed_over", transfer_status="busy"),
            Leg(at=20.0, seconds=10.5, stream_sid="MZ1", outcome="transferred"),
        ],
        "request_ids": ["5f3a7c1e-0000-4000-8000-000000000001"],
    }
    return record(call_sid, **(fields | changes))


# How that one ended.
ENDING = Ending("transferred", "+15551112222", "reception", 2)


def _fields(struct: type[msgspec.Struct], **special: Any) -> st.SearchStrategy[Any]:
    kinds = {
        "str": st.text(st.characters(), max_size=30) | st.sampled_from(NASTY),
        "float": st.floats(),
        "float | None": st.none() | st.floats(),
        "int": st.integers(-(2**70), 2**70),
        "bool": st.booleans(),
        "dict[str, float]": st.dictionaries(st.text(max_size=5), st.floats(), max_size=3),
        "Role": st.sampled_from(["caller", "agent", "keypad"]),
        "Heard": st.sampled_from(["heard", "cut", "unheard", ""]),
        "Direction": st.sampled_from(["inbound", "outbound-api"]),
        "list[str]": st.lists(st.text(st.characters(), max_size=30) | st.sampled_from(NASTY)),
        "datetime": _moments,
        "datetime | None": st.none() | _moments,
    }
    annotations = struct.__annotations__
    chosen = {name: special.get(name, kinds.get(kind)) for name, kind in annotations.items()}
    return st.builds(struct, **chosen)


_moments = st.datetimes(
    datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC) | st.timezones()
)

any_record = _fields(
    CallRecord,
    call_sid=st.sampled_from(NASTY[1:]) | st.text(min_size=1, max_size=40),
    turns=st.lists(_fields(Turn), max_size=3),
    transcript=st.lists(_fields(Line), max_size=4),
    functions=st.lists(_fields(FunctionUse), max_size=2),
    legs=st.lists(_fields(Leg), max_size=3),
)
