"""A process that carries calls under the account's limit, as one of many; see test_account_limit.

    racer.py URL LEASE LIMIT race CALLS   told to, come and go until so many were admitted; prints
                                          `+|- SID TIME` for each
    racer.py URL LEASE LIMIT hold CALLS   takes so many, prints how many it got, holds them

TIME is CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import random
import sys
import time
from itertools import count

import structlog
import trio

from bridge.admission import account_limit
from bridge.admission.account_limit import AccountLimit


async def race(limit: AccountLimit, calls: int, wanted: int) -> None:
    print("ready", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    admitted = 0
    name = random.getrandbits(64)
    numbers = count()

    async def caller() -> None:
        nonlocal admitted
        while admitted < wanted:
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
    # A busy machine is no database that is away.
    account_limit.RESERVE_SECONDS = account_limit.CLOSE_SECONDS = 20  # type: ignore[misc]
    url, lease, calls, what, amount = sys.argv[1:]
    limit = AccountLimit(url, lease_seconds=float(lease))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit.run)
        if what == "race":
            await race(limit, int(calls), int(amount))
        else:
            account_limit.RENEWALS_PER_LEASE = 600  # type: ignore[misc]
            await hold(limit, int(calls), int(amount))
        nursery.cancel_scope.cancel(reason="done")


structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
trio.run(main)
