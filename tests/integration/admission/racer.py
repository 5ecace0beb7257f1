"""A process that carries calls under the account's limit, as one of many; see test_account_limit.

    racer.py URL LEASE LIMIT race SECONDS   told to, come and go; prints `+|- SID TIME` for each
    racer.py URL LEASE LIMIT hold CALLS     takes so many, prints how many it got, holds them

TIME is CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import random
import sys
import time
from itertools import count

import trio

from bridge.admission import account_limit
from bridge.admission.account_limit import AccountLimit


async def race(limit: AccountLimit, calls: int, seconds: float) -> None:
    print("ready", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    until = trio.current_time() + seconds
    admitted = 0
    name = random.getrandbits(64)
    numbers = count()

    async def caller() -> None:
        nonlocal admitted
        # On a busy machine it may take longer until each process has had a call.
        while (now := trio.current_time()) < until or (not admitted and now < until + 20):
            sid = f"CA{name:x}-{next(numbers)}"
            uncounted = limit.uncounted
            if await limit.reserve(sid, calls):
                counted = limit.uncounted == uncounted
                if counted:
                    admitted += 1
                    print("+", sid, time.monotonic())
                await trio.sleep(random.uniform(0, 0.1))
                if counted:
                    print("-", sid, time.monotonic())
                limit.release(sid)
            else:
                await trio.sleep(random.uniform(0, 0.005))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(caller)


async def hold(limit: AccountLimit, calls: int, wanted: int) -> None:
    got = 0
    for number in range(wanted):
        if await limit.reserve(sid := f"CAhold-{number}", calls):
            limit.hold(sid, calls)
            got += 1
    print(got, flush=True)
    await trio.sleep_forever()


async def main() -> None:
    account_limit.RESERVE_SECONDS = 20  # type: ignore[misc]  # a busy machine is none that is away
    url, lease, calls, what, amount = sys.argv[1:]
    limit = AccountLimit(url, lease_seconds=float(lease))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit.run)
        if what == "race":
            await race(limit, int(calls), float(amount))
        else:
            await hold(limit, int(calls), int(amount))
        nursery.cancel_scope.cancel(reason="done")


trio.run(main)
