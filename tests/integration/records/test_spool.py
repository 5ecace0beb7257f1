"""The spool of a process that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

from bridge.records.spool import Spool
from tests.unit.records.draining import drain


def test_a_killed_process_leaves_every_line_it_was_told_is_safe(tmp_path):
    """SIGKILL in the middle of appending."""
    program = (
        "import sys; from pathlib import Path; from bridge.records.spool import *\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "for number in range(100000):\n"
        "    spool.append([SpoolLine(b'%d \\n' % number, True)])\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        safe = [int(child.stdout.readline()) for _ in range(50)]
        child.send_signal(signal.SIGKILL)
        safe += [int(rest) for rest in child.stdout.read().split()]
    spool = Spool(tmp_path)
    assert spool.adopt() == 1
    found = drain(spool, 1000)
    assert found[: len(safe)] == safe
    assert found == list(range(len(found)))
    spool.close()
