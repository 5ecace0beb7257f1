"""What one run measured becomes figures, several runs become one, and both become a table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bridge.testing.load.summary import at_share

GENERATOR_LATE_MS: Final = 5.0
"""Frames sent later than this were sent in bunches: no load of even spacing."""

GENERATOR_BUSY_PERCENT: Final = 80.0
"""Above this the load generator measures itself."""

OTHERS_BUSY_PERCENT: Final = 10.0
"""Kernel work for the server is a few percent of its core; more than this is somebody else."""

ROUNDS_DIFFER: Final = 1.25
"""The same work at more than this ratio of CPU time: a virtual machine's cores change their speed
without telling anybody.
"""

SATURATED_PERCENT: Final = 95.0
"""Above this delays are those of a queue that grows."""


@dataclass(frozen=True)
class Figures:
    """One number of calls. Delays in ms, memory in KB of 1024 bytes, CPU in ms per call-second.

    `uplink_beyond` is the delay of the last 160 bytes of each message the agent receives,
    `uplink_total` that of all, the wait for their frame included, which is a frame's length at most
    (`call.frame_ms`); so is that of the agent's audio in the middle of a reply.
    """

    calls: int
    seconds: float
    uplink_beyond_median_ms: float
    uplink_beyond_p99_ms: float
    uplink_total_median_ms: float
    uplink_total_p99_ms: float
    downlink_median_ms: float
    downlink_p99_ms: float
    downlink_max_ms: float
    cpu_ms_per_call_second: float
    rss_kb_per_call: float
    server_core_percent: float
    others_on_core_percent: float | None
    generator_core_percent: float
    generator_late_p99_ms: float
    frames_sent: int
    frames_lost: int
    frames_duplicated: int
    frames_reordered: int
    frames_foreign: int
    notes: list[str] = field(default_factory=list)

    def added_p99_ms(self, frame_ms: int) -> float:
        """The 99th percentile of what delays are longer than a frame, in the worse direction."""
        return max(0.0, max(self.uplink_total_p99_ms, self.downlink_p99_ms) - frame_ms)

    @property
    def faults(self) -> int:
        """Frames that did not arrive once, whole and in order."""
        return (
            self.frames_lost + self.frames_duplicated + self.frames_reordered + self.frames_foreign
        )


def figures(calls: int, raw: dict[str, Any], complaints: Sequence[str]) -> Figures:
    """One run of the load generator; `complaints` are the lines the server logged.

    Raises ValueError when nothing was measured at all.
    """
    if not raw["uplink_beyond_ns"] or not raw["downlink_total_ns"]:
        raise ValueError("no audio arrived in the measured time")
    seconds = raw["seconds"]
    used, busy = raw["server_cpu"], raw["server_core_busy"]
    both = [raw["integrity"]["uplink"], raw["integrity"]["downlink"]]
    count = {name: sum(one[name] for one in both) for name in both[0]}
    result = Figures(
        calls=calls,
        seconds=round(seconds, 3),
        uplink_beyond_median_ms=at_share(raw["uplink_beyond_ns"], 0.5),
        uplink_beyond_p99_ms=at_share(raw["uplink_beyond_ns"], 0.99),
        uplink_total_median_ms=at_share(raw["uplink_total_ns"], 0.5),
        uplink_total_p99_ms=at_share(raw["uplink_total_ns"], 0.99),
        downlink_median_ms=at_share(raw["downlink_total_ns"], 0.5),
        downlink_p99_ms=at_share(raw["downlink_total_ns"], 0.99),
        downlink_max_ms=at_share(raw["downlink_total_ns"], 1.0),
        cpu_ms_per_call_second=1000 * used / calls / seconds,
        rss_kb_per_call=(raw["loaded_kb"] - raw["idle_kb"]) / calls,
        server_core_percent=100 * used / seconds,
        others_on_core_percent=None if busy is None else max(0.0, 100 * (busy - used) / seconds),
        generator_core_percent=100 * raw["generator_cpu"] / seconds,
        generator_late_p99_ms=at_share(raw["lateness_ns"], 0.99),
        frames_sent=count["sent"],
        frames_lost=count["lost"],
        frames_duplicated=count["duplicated"],
        frames_reordered=count["reordered"],
        frames_foreign=count["foreign"],
    )
    result.notes.extend(_doubts(result))
    if raw["unexpected"]:
        result.notes.append(f"{raw['unexpected']} messages the phone did not expect")
    if raw["unclosed"]:
        result.notes.append(f"{raw['unclosed']} sockets still open after the callers hung up")
    if complaints:
        result.notes.append(f"the server logged {len(complaints)} lines: {complaints[0][:160]}")
    return result


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure over runs with the same number of calls; faults and frames are
    summed, notes are kept once.
    """
    values: dict[str, Any] = {}
    for name in Figures.__dataclass_fields__:
        each = [getattr(run, name) for run in runs]
        if name == "notes":
            values[name] = list(dict.fromkeys(note for notes in each for note in notes))
        elif name.startswith("frames_"):
            values[name] = sum(each)
        elif name == "calls":
            values[name] = each[0]
        else:
            known = [value for value in each if value is not None]
            values[name] = statistics.median(known) if known else None
    costs = [run.cpu_ms_per_call_second for run in runs]
    if max(costs) > ROUNDS_DIFFER * min(costs):
        values["notes"].append(
            f"not clean: rounds differ, from {min(costs):.1f} to {max(costs):.1f} CPU ms/call-s"
        )
    return Figures(**values)


def _doubts(run: Figures) -> Iterable[str]:
    """Why a figure is worth less than it looks."""
    if run.generator_late_p99_ms > GENERATOR_LATE_MS:
        late = f"{run.generator_late_p99_ms:.1f} ms late at the 99th percentile"
        yield f"not clean: the load generator was {late}"
    if run.generator_core_percent > GENERATOR_BUSY_PERCENT:
        yield f"not clean: the load generator used {run.generator_core_percent:.0f} % of its core"
    if run.others_on_core_percent is None:
        yield "not known: what else ran on the server's core"
    elif run.others_on_core_percent > OTHERS_BUSY_PERCENT:
        share = f"{run.others_on_core_percent:.0f} %"
        yield f"not clean: other work took {share} of the server's core"
    if run.server_core_percent > SATURATED_PERCENT:
        yield "the server's core is full: delays are those of a queue"
    if run.faults:
        yield (
            f"audio damaged: {run.frames_lost} lost, {run.frames_duplicated} twice, "
            f"{run.frames_reordered} out of order, {run.frames_foreign} foreign"
        )


_COLUMNS: Final = (
    ("calls", "calls", "d"),
    ("up beyond p50", "uplink_beyond_median_ms", ".2f"),
    ("p99", "uplink_beyond_p99_ms", ".2f"),
    ("up total p50", "uplink_total_median_ms", ".2f"),
    ("p99", "uplink_total_p99_ms", ".2f"),
    ("down p50", "downlink_median_ms", ".2f"),
    ("p99", "downlink_p99_ms", ".2f"),
    ("max", "downlink_max_ms", ".1f"),
    ("CPU ms/call-s", "cpu_ms_per_call_second", ".2f"),
    ("RSS KB/call", "rss_kb_per_call", ".0f"),
    ("core %", "server_core_percent", ".1f"),
    ("others %", "others_on_core_percent", ".1f"),
    ("late p99", "generator_late_p99_ms", ".2f"),
    ("frames", "frames_sent", "d"),
    ("lost", "frames_lost", "d"),
    ("dup", "frames_duplicated", "d"),
    ("reord", "frames_reordered", "d"),
)


def table(rows: Sequence[Figures], frame_ms: int) -> str:
    """The figures for people, and what is to be known about them."""
    lines = ["  ".join(title.rjust(8) for title, _, _ in _COLUMNS)]
    for row in rows:
        cells = (
            _cell(getattr(row, name), form).rjust(max(8, len(title)))
            for title, name, form in _COLUMNS
        )
        lines.append("  ".join(cells))
    lines += [
        "",
        "Delays in ms, per 160-byte piece. Total and down have the wait for a frame in them, at",
        f"most its {frame_ms} ms; beyond is the delay of the last piece of each. RSS per call is",
        "(under load - idle after a first call) / calls.",
        "Others: work on the server's core that is not the server's process, the kernel's for its",
        "sockets included. Late: how much after its time the load generator sent a frame.",
        "Every other job on the machine shows in these figures: compare ratios, run it twice.",
    ]
    for row in rows:
        lines += [f"{row.calls} calls: {note}" for note in row.notes]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)
