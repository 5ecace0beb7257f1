"""What `bridge check` looks at: each check alone and bounded, answering in findings of a line."""

from bridge.check.finding import Finding, ok, skipped, warning, wrong
from bridge.check.run import Checks, run_checks

__all__ = ["Checks", "Finding", "ok", "run_checks", "skipped", "warning", "wrong"]
