"""Calls whose process is gone: their records are ended, as `server_lost`, by a process that lives.

Each process that keeps records has a *lease* in their database, a row that it renews RENEWALS times
before it expires. A process that dies, or is cut off from the database, renews nothing. The others,
on however many machines, look at each renewal for records of calls that no living process carries,
and end them. All times are the database's, because machines' clocks differ, and a lock makes sure
that each record is ended, and counted, once.

When the database was away, all leases have expired, and the first process that finds it again must
not take the others for dead. So a process ends no records before its own lease has held for as long
as a lease lasts, which is the time that the others have to return. The same holds after a leap of
the database's clock, and for a process that has just started.

A process that was taken for dead and is not goes on writing: its next writing replaces the end.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
import trio
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from bridge.log import get_logger
from bridge.one_thread import OneThread
from bridge.outcome import Outcome
from bridge.records.schema import calls, carried, database_time, processes
from bridge.records.store import Store, StoreError, StoreUnavailable
from bridge.supervised import supervised

log = get_logger(__name__)

# After a process has died, its records are ended within a lease and one renewal.
LEASE_SECONDS: Final = 30.0
RENEWALS: Final = 3

# Above the store's own limits for a connection, a lock and a statement; less than a lease.
ASK_SECONDS: Final = 12.0

# Records ended in one transaction.
AT_ONCE: Final = 500

REASON: Final = "the process that carried the call is gone"

# Any number that no other program uses for a lock: "bridge3".
_LOCK: Final = 0x62726964676533


def process_name() -> str:
    """Return a name for this process that no other has, on any machine."""
    return f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"


class LostCall(NamedTuple):
    """A call whose process is gone, and how many seconds of it are recorded."""

    call_sid: str
    seconds: float


class Lease:
    """This process's lease. `lost` is called with each call whose record it has ended."""

    def __init__(self, store: Store, lost: Callable[[LostCall], None]) -> None:
        self.process = process_name()
        self._store = store
        self._lost = lost
        self._thread = OneThread()
        self._prepared = False
        # When the lease will have held for as long as it lasts.
        self._settled_at = float("inf")

    async def run(self) -> None:
        """Renew the lease, and end what dead processes have left, until cancelled.

        The lease is left to expire: the process may still be writing its last records. Errors of
        the database are logged by those who write records.
        """
        await supervised("lease", self._keep)

    async def _keep(self) -> None:
        while True:
            now = trio.current_time()
            renew = partial(self._renew, end_lost=now >= self._settled_at)
            try:
                held, lost = await self._thread.run(renew, within=ASK_SECONDS)
            except (StoreUnavailable, StoreError, trio.TooSlowError):
                # The table may be gone, with the database that had it.
                self._prepared = False
            else:
                settled_at = now + LEASE_SECONDS
                self._settled_at = min(self._settled_at, settled_at) if held else settled_at
                for call in lost:
                    self._lost(call)
            await trio.sleep(LEASE_SECONDS / RENEWALS)

    # ---- in the thread --------------------------------------------------------------------------

    def _renew(self, *, end_lost: bool) -> tuple[bool, Sequence[LostCall]]:
        """Renew the lease. Returns whether it had not expired, and the calls that were ended."""
        if not self._prepared:
            self._store.prepare()
            self._prepared = True
        with self._store.exclusive(_LOCK) as connection:
            now = database_time(connection)
            connection.execute(sa.delete(processes).where(processes.c.expires_at <= now))
            mine = sa.select(processes.c.name).where(processes.c.name == self.process)
            held = connection.execute(mine).one_or_none() is not None
            row = {"name": self.process, "expires_at": now + LEASE_SECONDS}
            connection.execute(_upsert(connection.dialect.name, row))
            return held, _end_lost(connection) if held and end_lost else ()


def _upsert(dialect: str, row: dict[str, Any]) -> Any:
    make: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    insert = make(processes).values(row)
    set_ = {"expires_at": insert.excluded.expires_at}
    return insert.on_conflict_do_update(index_elements=[processes.c.name], set_=set_)


_ALIVE: Final = sa.select(processes.c.name)
_COLUMNS: Final = tuple(
    calls.c[n] for n in ("call_sid", "process", "started_at", "seconds", "legs")
)
_LOST: Final = sa.select(*_COLUMNS).where(carried, calls.c.process.not_in(_ALIVE)).limit(AT_ONCE)


def _end_lost(connection: Connection) -> Sequence[LostCall]:
    ended = []
    for row in connection.execute(_LOST).all():
        how = {"outcome": Outcome.SERVER_LOST.value, "reason": REASON}
        values = {
            **how,
            "process": "",
            "ended_at": row.started_at + timedelta(seconds=row.seconds),
            "legs": [*row.legs[:-1], *({**leg, **how} for leg in row.legs[-1:])],
            # What the process wrote last, and comes late, changes nothing.
            "revision": calls.c.revision + 1,
        }
        # Unless the process has written an end meanwhile.
        still = sa.and_(calls.c.call_sid == row.call_sid, calls.c.process == row.process)
        if connection.execute(sa.update(calls).where(still).values(values)).rowcount:
            ended.append(LostCall(row.call_sid, row.seconds))
    return ended
