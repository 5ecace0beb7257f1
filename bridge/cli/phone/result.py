"""The result of a call of `bridge phone`, as text and as JSON."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from bridge.cli.phone.live_call import LiveCall
from bridge.cli.phone.view import CallView
from bridge.testing.activity import SpeechTurn
from bridge.testing.phone.phone import SimulatedPhone


def summary(caller: SimulatedPhone, view: CallView, save: Path | None) -> str:
    """Return the result in a few lines of text."""
    spoken = sum((turn.end or turn.start) - turn.start for turn in view.caller.turns)
    lines = [
        f"call      {caller.call_sid}: {caller.elapsed:.1f} s, {caller.ending}",
        f"caller    spoke {spoken:.1f} s",
        f"agent     heard {caller.heard_seconds:.1f} s in {len(view.agent.turns)} turns,"
        f" interruptions {view.interruptions}",
    ]
    for name, where in (("replies", view), ("at bridge", view.live)):
        if where and (times := _times(where.reply_seconds, where.typed_reply_seconds)):
            lines.append(f"{name:<9} {times}")
    lines.append(f"errors    {len(caller.faults) or 'none'}")
    lines += [f"          {fault}" for fault in caller.faults]
    if save is not None:
        lines.append(f"saved     {save}")
    return "\n".join(lines)


def as_json(caller: SimulatedPhone, view: CallView) -> str:
    """Return the result as JSON, indented on a terminal."""
    turns: list[tuple[SpeechTurn, str]] = [(turn, "caller") for turn in view.caller.turns]
    turns += [(turn, "agent") for turn in view.agent.turns]
    turns.sort(key=lambda entry: entry[0].start)
    result = {
        "call_sid": caller.call_sid,
        "stream_sid": caller.stream_sid,
        "ending": caller.ending,
        "seconds": round(caller.elapsed, 3),
        "sent_bytes": len(caller.sent_audio),
        "received_bytes": len(caller.received_audio),
        "heard_seconds": round(caller.heard_seconds, 3),
        "interruptions": view.interruptions,
        **_rounded(view),
        "turns": [
            {"who": who, "start": round(turn.start, 3), "end": round(turn.end or turn.start, 3)}
            for turn, who in turns
        ],
        "transcript": [
            {
                "at": round(line["at"], 3) if isinstance(line.get("at"), int | float) else None,
                **{name: line.get(name) for name in ("role", "words", "heard")},
            }
            for line in (view.live.transcript if view.live else ())
        ],
        "at_bridge": _rounded(view.live or LiveCall()),
        "after": [event.text for event in caller.events if event.kind == "twiml"],
        "faults": [{"code": f.code, "detail": f.detail, "at": f.at} for f in caller.faults],
    }
    return json.dumps(result, indent=2 if sys.stdout.isatty() else None)


def _times(spoken: list[float], typed: list[float]) -> str:
    """Return the reply times in words, those of typed turns apart; "" if there are none."""
    return "; ".join(
        f"{kind}median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s"
        for kind, seconds in (("", spoken), ("typed: ", typed))
        if seconds
    )


def _rounded(where: CallView | LiveCall) -> dict[str, list[float]]:
    return {
        "reply_seconds": [round(seconds, 3) for seconds in where.reply_seconds],
        "typed_reply_seconds": [round(seconds, 3) for seconds in where.typed_reply_seconds],
    }
