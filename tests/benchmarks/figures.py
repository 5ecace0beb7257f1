"""Figures of one run of the load generator, and the table that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bridge.testing.load.summary import at_share

GENERATOR_LATE_MS: Final = 5.0
"""Frames sent later than this leave in groups, which are cheaper to serve than single frames."""

GENERATOR_BUSY_PERCENT: Final = 80.0
"""Above this, the delays are partly the load generator's own."""

OTHERS_BUSY_PERCENT: Final = 10.0
"""The kernel's work for the server takes a few percent of its core; more is another process."""

SATURATED_PERCENT: Final = 95.0
"""Above this, the delays are those of a growing queue."""

MEMORY_CALLS: Final = 40
"""Below this number of calls, a page more or less decides the memory per call."""


@dataclass(frozen=True)
class Figures:
    """One run: times in ms, memory in KB of 1024 bytes, CPU in ms per call-second.

    The round trip is the time of each 160-byte frame from the phone through the server and the
    echoing agent back to the phone. `memory_kb_per_call` is None below MEMORY_CALLS calls.
    """

    server: str
    calls: int
    seconds: float
    cpu_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    memory_kb_per_call: float | None
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

    @property
    def faults(self) -> int:
        """Frames that did not return exactly once, whole and in order."""
        return (
            self.frames_lost + self.frames_duplicated + self.frames_reordered + self.frames_foreign
        )


def figures(server: str, calls: int, raw: dict[str, Any], complaints: Sequence[str]) -> Figures:
    """Turn the load generator's output into figures; `complaints` are the lines the server logged.

    Raises ValueError when no audio returned in the measured time.
    """
    trips = raw["round_trip_ns"]
    if not trips:
        raise ValueError(f"{server}: no audio returned in the measured time")
    seconds = raw["seconds"]
    used, busy = raw["server_cpu"], raw["server_core_busy"]
    count = raw["integrity"]["round_trip"]
    result = Figures(
        server=server,
        calls=calls,
        seconds=round(seconds, 3),
        cpu_ms=1000 * used / calls / seconds,
        p50_ms=at_share(trips, 0.5),
        p95_ms=at_share(trips, 0.95),
        p99_ms=at_share(trips, 0.99),
        memory_kb_per_call=(
            (raw["loaded_kb"] - raw["idle_kb"]) / calls if calls >= MEMORY_CALLS else None
        ),
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


def _doubts(run: Figures) -> Iterable[str]:
    """Reasons to distrust a run."""
    if run.generator_late_p99_ms > GENERATOR_LATE_MS:
        late = f"{run.generator_late_p99_ms:.1f} ms late at the 99th percentile"
        yield f"not clean: the load generator was {late}"
    if run.generator_core_percent > GENERATOR_BUSY_PERCENT:
        yield (
            f"not clean: the load generator used {run.generator_core_percent:.0f} % of its core, "
            "so it is the bottleneck"
        )
    if run.others_on_core_percent is None:
        yield "unknown: what else ran on the server's core"
    elif run.others_on_core_percent > OTHERS_BUSY_PERCENT:
        share = f"{run.others_on_core_percent:.0f} %"
        yield f"not clean: other processes took {share} of the server's core"
    if run.server_core_percent > SATURATED_PERCENT:
        yield "the server's core is full: the delays are those of a growing queue"
    if run.faults:
        yield (
            f"audio damaged: {run.frames_lost} frames lost, {run.frames_duplicated} duplicated, "
            f"{run.frames_reordered} out of order, {run.frames_foreign} of another call"
        )


_COLUMNS: Final = (
    ("calls", "calls", "d"),
    ("CPU ms/call-s", "cpu_ms", ".2f"),
    ("trip p50", "p50_ms", ".2f"),
    ("p95", "p95_ms", ".2f"),
    ("p99", "p99_ms", ".2f"),
    ("KB/call", "memory_kb_per_call", ".0f"),
    ("core %", "server_core_percent", ".0f"),
    ("others %", "others_on_core_percent", ".0f"),
    ("load %", "generator_core_percent", ".0f"),
    ("late p99", "generator_late_p99_ms", ".2f"),
)
_NAME_WIDTH: Final = 28


def header() -> str:
    """The head of the table."""
    return "server".ljust(_NAME_WIDTH) + "  ".join(
        title.rjust(max(7, len(title))) for title, _, _ in _COLUMNS
    )


def row(run: Figures) -> str:
    """One run as a line of the table, with its notes below it."""
    line = run.server.ljust(_NAME_WIDTH) + "  ".join(
        _cell(getattr(run, name), form).rjust(max(7, len(title))) for title, name, form in _COLUMNS
    )
    return "\n".join([line, *(f"    {note}" for note in run.notes)])


LEGEND: Final = """\
CPU: of the server process, counted by the kernel. Trip: from the phone through the server and the
agent, which echoes, back to the phone, in ms, for each 160-byte frame. KB/call: (memory under load
- idle after a first call) / calls. Others: work of other processes and of the kernel on the
server's core. Load: CPU of the load generator, phones and agents both, on its own core. Late: how
late the load generator sent its frames, in ms."""


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
