"""The figures of a load, as data and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

LATE_MS: Final = 5.0
"""A generator later than this sends frames in bunches and partly measures itself."""


def at_share(ordered: Sequence[int], share: float) -> float:
    """Return the quantile `share` of the `ordered` times (ns) in ms; 0 for none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6


@dataclass(frozen=True)
class Spread:
    """Statistics of times, in ms."""

    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, ordered: Sequence[int]) -> Spread | None:
        """Summarise times in ns, in ascending order; None when there are none."""
        if not ordered:
            return None
        return cls(*(round(at_share(ordered, share), 3) for share in (0.5, 0.99, 1.0)))

    def __str__(self) -> str:
        return f"median {self.median:.1f} ms, 99th {self.p99:.1f}, longest {self.longest:.1f}"


@dataclass(frozen=True)
class Summary:
    """The figures of one load. Delays are of 20 ms frames; None is what could not be measured.

    `setup` is from the webhook's request to the agent's SettingsApplied, or to `start` where the
    agent is not ours; `first_audio` from the request to the first audio for the caller.
    `to_agent_beyond` leaves out the wait for the larger frames of `call.frame_ms` to fill.
    """

    calls: int
    admitted: int
    refused: int
    refusals: dict[str, int]
    ended_early: int
    seconds: float
    setup: Spread | None
    first_audio: Spread | None
    to_agent: Spread | None
    to_agent_beyond: Spread | None
    to_phone: Spread | None
    frames_sent: int
    frames_lost: int
    frames_duplicated: int
    frames_reordered: int
    frames_foreign: int
    cpu_ms_per_call_second: float | None
    rss_kb_per_call: float | None
    generator_late_p99_ms: float
    sockets_left_open: int
    unexpected_messages: int

    @property
    def damaged(self) -> int:
        """Frames that did not arrive once, whole and in order."""
        return (
            self.frames_lost + self.frames_duplicated + self.frames_reordered + self.frames_foreign
        )

    @property
    def complaint(self) -> str:
        """Why this load failed, or "". Refused calls are not a failure."""
        if self.damaged:
            return (
                f"audio damaged: {self.frames_lost} frames lost, {self.frames_duplicated} twice, "
                f"{self.frames_reordered} out of order, {self.frames_foreign} of another call"
            )
        if self.ended_early:
            return f"{self.ended_early} of {self.admitted} calls ended before the caller hung up"
        if self.sockets_left_open:
            return f"{self.sockets_left_open} sockets were left open after the callers hung up"
        return ""


def summary(calls: int, raw: Mapping[str, Any]) -> Summary:
    """Summarise what `Load.run` returns."""
    both = [raw["integrity"]["uplink"], raw["integrity"]["downlink"]]
    frames = {f"frames_{name}": sum(one[name] for one in both) for name in both[0]}
    admitted, seconds = raw["admitted"], raw["seconds"]
    cpu, idle, loaded = raw["server_cpu"], raw["idle_kb"], raw["loaded_kb"]
    return Summary(
        calls=calls,
        admitted=admitted,
        refused=len(raw["refusals"]),
        refusals=dict(Counter(raw["refusals"])),
        ended_early=raw["ended_early"],
        seconds=round(seconds, 3),
        setup=Spread.of(raw["setup_ns"]),
        first_audio=Spread.of(raw["first_audio_ns"]),
        to_agent=Spread.of(raw["uplink_total_ns"]),
        to_agent_beyond=Spread.of(raw["uplink_beyond_ns"]),
        to_phone=Spread.of(raw["downlink_total_ns"]),
        cpu_ms_per_call_second=None if cpu is None else round(1000 * cpu / admitted / seconds, 2),
        rss_kb_per_call=None if idle is None else round((loaded - idle) / admitted, 1),
        generator_late_p99_ms=round(at_share(raw["lateness_ns"], 0.99), 3),
        sockets_left_open=raw["unclosed"],
        unexpected_messages=raw["unexpected"],
        **frames,
    )


def lines(found: Summary) -> list[str]:
    """Format the figures for people."""
    told = [
        f"calls      {found.admitted} admitted, {found.refused} refused,"
        f" {found.seconds:.0f} s measured"
    ]
    told += [f"           refused: {why} ({count}x)" for why, count in found.refusals.items()]
    if found.ended_early:
        told.append(f"           {found.ended_early} ended before the caller hung up")
    told.append(f"set-up     {found.setup}")
    if found.to_phone is None:
        first = found.first_audio
        told.append(f"1st audio  {'none came' if first is None else first}")
        told.append("delays     not measured: this command is not the agent (see --agent-port)")
    else:
        told.append(f"to agent   {found.to_agent}")
        told.append(f"           {found.to_agent_beyond} beyond framing")
        told.append(f"to phone   {found.to_phone}")
        told.append(
            f"audio      {found.frames_sent} frames: {found.frames_lost} lost,"
            f" {found.frames_duplicated} twice, {found.frames_reordered} out of order,"
            f" {found.frames_foreign} of another call"
        )
    if found.cpu_ms_per_call_second is not None:
        told.append(
            f"server     {found.cpu_ms_per_call_second:.1f} ms of CPU per call-second,"
            f" {found.rss_kb_per_call:.0f} KB per call"
        )
    if found.generator_late_p99_ms > LATE_MS:
        told.append(
            f"not clean  the load generator was {found.generator_late_p99_ms:.1f} ms late at the"
            " 99th percentile: this machine is busy"
        )
    return told
