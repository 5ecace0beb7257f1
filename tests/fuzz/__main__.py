"""Fuzz every parser, guided by coverage: `python -m tests.fuzz --seconds 30 [--target NAME]`.

Needs the extra `fuzz` (atheris). Each target runs in a process of its own; what breaks a promise is
printed with its input, which `--replay FILE` plays again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--target", help="one of them alone")
    parser.add_argument("--replay", type=Path, help="an input to play to --target")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return fuzz(options.target, options.seconds)
    from tests.fuzz.targets import TARGETS

    if options.target and options.target not in TARGETS:
        parser.error(f"there is no target {options.target}; there are: {', '.join(TARGETS)}")
    if options.replay:
        TARGETS[options.target](options.replay.read_bytes())
        return 0
    failed = []
    for name in [options.target] if options.target else TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--target", name]
        run = subprocess.run(
            [*command, "--seconds", str(options.seconds)], capture_output=True, text=True
        )
        runs = [line for line in run.stderr.splitlines() if line.startswith(("#", "Done"))]
        print(f"{name:20} {'ok' if run.returncode == 0 else 'FAILED'}  {runs[-1] if runs else ''}")
        if run.returncode:
            failed.append(name)
            print(run.stdout[-4000:], run.stderr[-8000:], file=sys.stderr)
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> int:
    """Fuzz one target in this process; atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=["bridge", "hypercorn", "wsproto", "h11"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    logging.disable(logging.CRITICAL)
    import structlog

    structlog.configure(processors=[drop])
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS[name]):
            Path(folder, str(number)).write_bytes(seed)
        # What broke a promise outlives the fuzzer; it says where it is.
        kept = f"-artifact_prefix={tempfile.gettempdir()}/bridge-fuzz-{name}-"
        limits = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=20",
            "-rss_limit_mb=2048",
        ]
        atheris.Setup(["fuzz", *limits, kept, folder], TARGETS[name])
        atheris.Fuzz()
    return 0


def drop(*_: object) -> dict[str, str]:
    import structlog

    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
