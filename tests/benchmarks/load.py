"""The load generator in a process of its own, as `relay` starts it.

    python -m tests.benchmarks.load --calls 25 --seconds 10 --server 127.0.0.1:5000
        --server-pid 1234 --agent-fd 7

One call comes before those that are measured. It prints "measuring" when the measured time begins
and one line of JSON at the end; a failure is one line on standard error and exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import sys
import time
from dataclasses import replace
from typing import Final

import msgspec

from bridge.testing.load.ends import Target
from bridge.testing.load.generator import (
    SET_UP_EACH,
    SETTLE,
    TEAR_DOWN,
    WARM_UP,
    Load,
    LoadPlan,
    exact_loop,
)
from bridge.testing.load.wire import WireError
from tests.benchmarks.server import AUTH_TOKEN

FIRST_CALL: Final = 0.5
"""Seconds of the call that is not measured, and after it."""

__all__ = ["FIRST_CALL", "SETTLE", "SET_UP_EACH", "TEAR_DOWN", "WARM_UP"]


def main() -> None:
    """Run one load from the command line."""
    parser = argparse.ArgumentParser(prog="load", description="Load for tests.benchmarks.relay.")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--frame-ms", type=int, default=60)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--server-pid", type=int, required=True)
    parser.add_argument("--server-core", type=int)
    parser.add_argument("--agent-fd", type=int, required=True)
    options = parser.parse_args()
    agents = socket.socket(fileno=options.agent_fd)
    plan = LoadPlan(
        Target(f"http://{options.server}", AUTH_TOKEN),
        calls=options.calls,
        seconds=options.seconds,
        frame_ms=options.frame_ms,
        agent_socket=agents,
        server_pid=options.server_pid,
        server_core=options.server_core,
    )
    # What a server allocates once, with its first call, is no memory of each: one call goes before.
    first = replace(plan, calls=1, seconds=FIRST_CALL, warm_up=0.0, agent_socket=agents.dup())
    # A collection in the middle would be taken for the server's delay.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=exact_loop) as runner:
            runner.run(Load(first).run())
            time.sleep(FIRST_CALL)  # its record is being written
            load = Load(plan, on_measuring=lambda: print("measuring", flush=True))
            result = runner.run(load.run())
    except TimeoutError:
        sys.exit("load: a call was not set up in time")
    except (WireError, OSError) as error:
        sys.exit(f"load: {error}")
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
