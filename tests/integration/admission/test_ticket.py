"""Tickets in worker processes."""

from __future__ import annotations

import os
import subprocess
import sys

SID = "CA" + "0f" * 16

CHILD = """
import sys
from bridge.config.secrets import Secrets
from bridge.admission.entrance import tickets_from
tickets = tickets_from(Secrets.from_environment())
tickets.use(sys.argv[1], sys.argv[2], 1e9)
print("holds")
"""

PARENT = f"""
import subprocess, sys
import bridge.asgi
from bridge.config.secrets import Secrets
from bridge.admission.entrance import tickets_from
tickets = tickets_from(Secrets.from_environment())
ticket = tickets.issue("{SID}", 1e9, lifetime=60)
subprocess.run([sys.executable, "-c", {CHILD!r}, ticket, "{SID}"], check=True)
"""


def test_without_any_secret_worker_processes_have_the_same_key() -> None:
    names = ("BRIDGE_", "TWILIO_", "DEEPGRAM_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    child = subprocess.run(
        [sys.executable, "-c", PARENT], env=env, capture_output=True, text=True, check=True
    )
    assert child.stdout == "holds\n"
