"""The checks of `bridge check`: independent, each with a deadline, each returning findings."""

from bridge.check.finding import Finding, ok, skipped, warning, wrong
from bridge.check.run import Checks, run_checks

__all__ = ["Checks", "Finding", "ok", "run_checks", "skipped", "warning", "wrong"]
