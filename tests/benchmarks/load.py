"""The load generator of `relay` and `peers`, in a process of its own.

    python -m tests.benchmarks.load --calls 10 --seconds 5 --server 127.0.0.1:5000
        --server-pid 1234 --agent-fd 7

Each phone sends 160 bytes of µ-law every 20 ms and expects them back; the agents, in this process
too, return each message at once. Without `--agent-fd` the server itself must return the audio. One
call is made before those that are measured. Prints "measuring" when the measured time begins and
one line of JSON at the end; a failure is one line on standard error and exit code 1.
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
from bridge.testing.load.generator import Load, LoadPlan, exact_loop
from bridge.testing.load.wire import WireError
from tests.benchmarks.echo import EchoEnd
from tests.benchmarks.server import AUTH_TOKEN

FIRST_CALL: Final = 0.5
"""Seconds of the call that is not measured, and of the pause after it."""


def main() -> None:
    """Run one load from the command line."""
    parser = argparse.ArgumentParser(prog="load", description="Load for tests.benchmarks.relay.")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, required=True)
    parser.add_argument("--frame-ms", type=int, default=20)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--server-pid", type=int, required=True)
    parser.add_argument("--server-core", type=int)
    parser.add_argument("--agent-fd", type=int)
    options = parser.parse_args()
    agents = None if options.agent_fd is None else socket.socket(fileno=options.agent_fd)
    plan = LoadPlan(
        Target(f"http://{options.server}", AUTH_TOKEN),
        calls=options.calls,
        seconds=options.seconds,
        frame_ms=options.frame_ms,
        agent_socket=agents,
        server_pid=options.server_pid,
        server_core=options.server_core,
        warm_up=options.warm_up,
        agent=EchoEnd,
        echo=True,
    )
    # The first call makes the server allocate memory that is not per call, so it is made before
    # the idle memory is read.
    first = replace(
        plan,
        calls=1,
        seconds=FIRST_CALL,
        warm_up=0.0,
        agent_socket=None if agents is None else agents.dup(),
    )
    # A garbage collection during the run would be measured as the server's delay.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=exact_loop) as runner:
            runner.run(Load(first).run())
            time.sleep(FIRST_CALL)  # the server writes the first call's record
            load = Load(plan, on_measuring=lambda: print("measuring", flush=True))
            result = runner.run(load.run())
    except TimeoutError:
        sys.exit("load: a call was not set up in time")
    except (WireError, OSError) as error:
        sys.exit(f"load: {error}")
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
