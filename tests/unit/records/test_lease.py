"""When a process may take others for dead: never before they could have renewed their leases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from bridge.records.lease import LEASE_SECONDS, RENEWALS, Lease, LostCall
from bridge.records.store import Store, StoreUnavailable

GONE = LostCall("CA1", 3.0)
RENEWAL = LEASE_SECONDS / RENEWALS


class Inline:
    """A thread that is none."""

    async def run(self, work: Callable[[], Any], *, within: float) -> Any:
        await trio.lowlevel.checkpoint()
        return work()


class Scripted(Lease):
    """A lease in a database that is away, or leaps, when the test says so."""

    def __init__(self, store: Store) -> None:
        self.lost: list[float] = []
        self.renewals = 0
        self.expires_at = float("-inf")
        self.away = False
        super().__init__(store, lambda call: self.lost.append(trio.current_time()))
        self._thread: Any = Inline()

    def _renew(self, *, end_lost: bool) -> tuple[bool, Sequence[LostCall]]:
        if self.away:
            raise StoreUnavailable("away")
        self.renewals += 1
        held = trio.current_time() < self.expires_at
        self.expires_at = trio.current_time() + LEASE_SECONDS
        return held, [GONE] if held and end_lost else []


async def test_a_new_process_waits_for_a_lease_and_then_looks_at_each_renewal() -> None:
    lease = Scripted(Store("sqlite:///unused.db"))
    with trio.move_on_after(LEASE_SECONDS + 3.5 * RENEWAL):
        await lease.run()
    began = lease.lost[0] - LEASE_SECONDS
    assert [round((when - began) / RENEWAL) for when in lease.lost] == [3, 4, 5, 6]


async def test_after_an_outage_the_others_have_a_lease_to_come_back() -> None:
    lease = Scripted(Store("sqlite:///unused.db"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        await trio.sleep(2 * LEASE_SECONDS)
        assert lease.lost
        lease.away = True
        await trio.sleep(2 * LEASE_SECONDS)
        lease.away = False
        back = trio.current_time()
        lease.lost.clear()
        await trio.sleep(3 * LEASE_SECONDS)
        assert min(lease.lost) >= back + LEASE_SECONDS
        nursery.cancel_scope.cancel(reason="done")


async def test_a_renewal_that_fails_delays_nothing() -> None:
    lease = Scripted(Store("sqlite:///unused.db"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        await trio.sleep(2 * LEASE_SECONDS)
        lease.away = True
        await trio.sleep(RENEWAL)
        lease.away = False
        lease.lost.clear()
        await trio.sleep(1.1 * RENEWAL)
        assert lease.lost
        nursery.cancel_scope.cancel(reason="done")
