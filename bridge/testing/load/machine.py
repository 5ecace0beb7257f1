"""Describes the machine, measures a process, and pins processes to cores."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

# Linux's number for the CPU clock of another process: clock_getcpuclockid(3).
_PROCESS_CLOCK = 2


def cores() -> tuple[int | None, int | None]:
    """Return a core for the server and another for the load generator; None if unavailable."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        return None, None
    # Interrupts are handled by the lowest core by default: do not measure there.
    return available[-1], available[0]


def pin(pid: int, core: int | None) -> None:
    """Pin a process (0: this one) to a core; None does nothing."""
    if core is not None:
        os.sched_setaffinity(pid, {core})


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of the process, ended threads included."""
    try:
        # In nanoseconds; /proc has hundredths of a second, too coarse for one call.
        return time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_kb(pid: int) -> float:
    """Return the resident memory of the process, in KB (1024 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def core_busy_seconds(core: int | None) -> float | None:
    """Return the busy and stolen time of a core; None if unknown."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            busy = user + nice + system + irq + softirq + steal
            return busy / os.sysconf("SC_CLK_TCK")
    return None


def facts() -> dict[str, str]:
    """Describe the machine, for comparing figures."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": str(os.cpu_count()),
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "trio": version("trio"),
        "hypercorn": version("hypercorn"),
        "bridge": version("bridge"),
        "load_before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
