"""One limit on calls for a whole account, on however many machines (`limits.account_calls`).

Deepgram limits the sessions that a project has open at once; whoever asks for one more is refused,
and their caller would hear an apology. So the servers count together, in the database of records.

There is a row for each call in progress, a *lease*: who carries the call, and until when the row
counts. A process takes a short one before it says yes to a call, and renews those of the calls it
carries again and again, until they are over. A machine that dies renews nothing: its rows stop
counting LEASE_SECONDS later. Taking one happens under a lock that only one process in the world has
at a time, so that no race admits one call too many. All times are the database's, for machines'
clocks differ.

A webhook may be answered by one process and the call's socket reach another: whoever carries the
call `hold`s it, which takes the lease over.

**While the database is away, calls are admitted without being counted.** It is the database of
records, and nothing else in bridge refuses a caller for that. What can happen is what would happen
without the limit, a refusal from Deepgram that the caller hears as an apology; closing would turn
an outage of a database into one of the telephone. `server.max_calls` still holds. What is carried
is counted again as soon as the database is back, even beyond the limit, and then nobody is admitted
until it has fallen below.

The database is only ever asked in a thread, one at a time, with deadlines: a webhook waits for an
answer RESERVE_SECONDS at most, and not at all when the last one did not come.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from bridge.config.settings import ConfigError, Settings
from bridge.log import get_logger
from bridge.one_thread import OneThread
from bridge.records.store import Store, StoreError, StoreUnavailable
from bridge.supervised import supervised

log = get_logger(__name__)

# How long a dead machine's calls go on counting; and what a process that is stopped, or cut off
# from the database, may take to come back before others get its slots.
LEASE_SECONDS: Final = 60.0

# Three times in the life of a lease: one may fail.
RENEWALS_PER_LEASE: Final = 4

# From the webhook to the call's socket: as admission has it, and the time that `start` may take.
RESERVED_SECONDS: Final = 30.0

# What a caller waits for the answer, in silence, at most.
RESERVE_SECONDS: Final = 1.0

# What no caller waits for: above the store's own limits for a connection, a lock and a statement.
ASK_SECONDS: Final = 12.0

# After a failure the database is left alone so long.
RETRY_SECONDS: Final = 5.0

# At the end, for giving everything back; what is not given back in time expires.
CLOSE_SECONDS: Final = 1.0

T = TypeVar("T")

_metadata = sa.MetaData()
leases = sa.Table(
    "account_calls",
    _metadata,
    sa.Column("call_sid", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    # Seconds since 1970, by the database's clock.
    sa.Column("expires_at", sa.Double, nullable=False),
)

# Any number nobody else uses for a lock: "bridge2".
_LOCK: Final = 0x62726964676532

# The time of the statement, not of the transaction, which may have waited for the lock.
_NOW: Final = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
}


class AccountLimit:
    """This process's part in the limit. `url` is `records.url`; without one nothing is counted.

    Raises StoreError, a ConfigError, for an address that can never work.
    """

    def __init__(self, url: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._store = Store(url) if url else None
        self._lease_seconds = lease_seconds
        self._holder = f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"
        # What is to be counted for this process, which the database is made to agree with.
        self._held: set[str] = set()
        # Leases that are asked for, and may be there before we know of it; and those that wait for
        # their call, until when.
        self._asked: set[str] = set()
        self._reserved: dict[str, float] = {}
        self._gone: set[str] = set()
        self._new: set[str] = set()
        self._changed = trio.Event()
        # One statement at a time, so that each finds what the one before has left.
        self._thread = OneThread()
        self._in_use = False
        self._prepared = False
        self._away_until = float("-inf")
        self._trouble = ""
        self.uncounted = 0

    @property
    def held(self) -> int:
        """How many calls count for this process."""
        return len(self._held)

    @property
    def trouble(self) -> str:
        """Why the database cannot be asked, in one line; "" while it can."""
        return self._trouble

    # ---- calls ----------------------------------------------------------------------------------

    async def reserve(self, call_sid: str, limit: int) -> bool:
        """Whether this call may come, being one of at most `limit` on all machines (0: no limit).

        True also when nobody could be asked, which `uncounted` counts. It counts for a while, until
        `hold` or `release`. Cancelled, it has reserved nothing.
        """
        if limit == 0 or self._store is None:
            await trio.lowlevel.checkpoint()
            return True
        self._begin()
        self._gone.discard(call_sid)
        self._asked.add(call_sid)
        granted: bool | None = None
        try:
            if trio.current_time() < self._away_until:
                await trio.lowlevel.checkpoint()
            else:
                take = partial(self._take, call_sid, limit)
                granted = await self._ask(take, within=RESERVE_SECONDS)
        except trio.Cancelled:
            # The thread may have got it all the same.
            self.release(call_sid)
            raise
        finally:
            self._asked.discard(call_sid)
        if granted:
            self._reserved[call_sid] = trio.current_time() + RESERVED_SECONDS
        if granted is None:
            self.uncounted += 1
        return granted is not False

    def hold(self, call_sid: str, limit: int) -> None:
        """The call is carried here, wherever it was reserved: it counts for this process now."""
        if limit and self._store is not None:
            self._begin()
        self._reserved.pop(call_sid, None)
        if call_sid not in self._held:
            self._held.add(call_sid)
            self._new.add(call_sid)
            self._changed.set()

    def release(self, call_sid: str) -> None:
        """The call is over, or will not come. Idempotent."""
        self._held.discard(call_sid)
        self._reserved.pop(call_sid, None)
        self._new.discard(call_sid)
        if self._in_use and not self._trouble:
            self._gone.add(call_sid)
            self._changed.set()

    def _begin(self) -> None:
        """There is a limit; if it is new, calls are on that are as yet uncounted."""
        if not self._in_use:
            self._in_use = True
            self._new |= self._held
            self._changed.set()

    # ---- the database ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the database informed, until cancelled; then give back what is held.

        Never raises for the database. Giving back takes CLOSE_SECONDS at most.
        """
        if self._store is None:
            return
        try:
            await supervised("account limit", self._keep)
        finally:
            if self._in_use:
                self._held.clear()
                with trio.CancelScope(shield=True):  # bounded by CLOSE_SECONDS
                    await self._ask(partial(self._tell_all, (), ()), within=CLOSE_SECONDS)
            if not self._thread.is_stuck:
                self._store.close()

    async def _keep(self) -> None:
        renew_at = trio.current_time()
        while True:
            # Renewed by the clock, told at once.
            with trio.move_on_at(self._away_until if self._trouble else renew_at):
                await self._changed.wait()
            self._changed = trio.Event()
            now = trio.current_time()
            if not self._in_use:
                renew_at = now + self._lease_seconds / RENEWALS_PER_LEASE
                continue
            if now < self._away_until:
                continue
            gone, new = list(self._gone), list(self._new)
            if now >= renew_at or self._trouble:
                self._reserved = {sid: at for sid, at in self._reserved.items() if at > now}
                kept = [*self._asked, *self._reserved]
                tell_all = partial(self._tell_all, list(self._held), kept)
                done = await self._ask(tell_all)
                renew_at = now + self._lease_seconds / RENEWALS_PER_LEASE
            else:
                done = await self._ask(partial(self._tell, gone, new))
            if done is not None:
                # What has changed meanwhile is told the next time.
                self._gone.difference_update(gone)
                self._new.difference_update(new)

    async def _ask(self, work: Callable[[], T], *, within: float = ASK_SECONDS) -> T | None:
        """Do something in the database's thread, in `within` seconds. None if it failed."""
        try:
            result = await self._thread.run(work, within=within)
        except trio.TooSlowError:
            self._failed("no answer in time")
            return None
        except Exception as error:
            if not isinstance(error, (StoreUnavailable, StoreError)):
                log.exception("counting the account's calls failed")
            self._failed(str(error) or type(error).__name__)
            # The table may be gone, with the database that had it.
            self._prepared = False
            return None
        if self._trouble:
            log.info("the account's calls are counted again", after=self._trouble)
        self._trouble, self._away_until = "", float("-inf")
        return result

    def _failed(self, trouble: str) -> None:
        if not self._trouble:
            log.error("the account's calls are not counted; calls go on", error=trouble)
        self._trouble = trouble
        self._away_until = trio.current_time() + RETRY_SECONDS
        # When it is back it is told everything.
        self._gone.clear()
        self._new.clear()
        self._changed.set()

    # ---- in the thread --------------------------------------------------------------------------

    def _take(self, call_sid: str, limit: int) -> bool:
        with self._exclusive() as connection:
            now = _now(connection)
            connection.execute(sa.delete(leases).where(leases.c.expires_at <= now))
            others = sa.select(sa.func.count()).where(leases.c.call_sid != call_sid)
            if connection.execute(others.select_from(leases)).scalar_one() >= limit:
                return False
            self._put(connection, [call_sid], min(self._lease_seconds, RESERVED_SECONDS))
            return True

    def _tell(self, gone: Sequence[str], new: Sequence[str]) -> bool:
        with self._exclusive() as connection:
            if gone:
                ours = sa.and_(leases.c.holder == self._holder, leases.c.call_sid.in_(gone))
                connection.execute(sa.delete(leases).where(ours))
            self._put(connection, new, self._lease_seconds)
        return True

    def _tell_all(self, held: Sequence[str], kept: Sequence[str]) -> bool:
        with self._exclusive() as connection:
            left = sa.and_(
                leases.c.holder == self._holder, leases.c.call_sid.not_in([*held, *kept])
            )
            connection.execute(sa.delete(leases).where(left))
            self._put(connection, held, self._lease_seconds)
        return True

    def _put(self, connection: Connection, calls: Sequence[str], seconds: float) -> None:
        if calls:
            rows = [{"call_sid": sid, "holder": self._holder} for sid in calls]
            until = _now(connection) + seconds
            connection.execute(_upsert(connection.dialect.name, until), rows)

    def _exclusive(self) -> Any:
        assert self._store is not None
        if not self._prepared:
            self._store.prepare()
            with self._store.exclusive(_LOCK) as connection:
                _metadata.create_all(connection)
            self._prepared = True
        return self._store.exclusive(_LOCK)


def _now(connection: Connection) -> sa.ColumnElement[float]:
    return sa.literal_column(_NOW[connection.dialect.name], sa.Double())


def _upsert(dialect: str, until: sa.ColumnElement[float]) -> Any:
    make: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    insert = make(leases).values(
        call_sid=sa.bindparam("call_sid"), holder=sa.bindparam("holder"), expires_at=until
    )
    new = insert.excluded
    return insert.on_conflict_do_update(
        index_elements=[leases.c.call_sid],
        set_={"holder": new.holder, "expires_at": new.expires_at},
    )


class AccountCap:
    """The limit as `bridge.admission.slots` asks for it (its `SharedCap`). `limit` is what the
    configuration says now."""

    def __init__(self, account: AccountLimit, limit: Callable[[], int]) -> None:
        self._account = account
        self._limit = limit

    async def reserve(self, call_sid: str) -> str:
        """ "", or the reason why the call cannot come."""
        if await self._account.reserve(call_sid, self._limit()):
            return ""
        return "limits.account_calls are on"

    def bound(self, call_sid: str) -> None:
        """The call is on, in this process."""
        self._account.hold(call_sid, self._limit())

    def release(self, call_sid: str) -> None:
        """The call is over."""
        self._account.release(call_sid)


def check_account_limit(settings: Settings) -> None:
    """Raises ConfigError where there is a limit and nowhere to count."""
    if settings.limits.account_calls and not settings.records.url:
        raise ConfigError(
            "limits.account_calls: is counted in the database of records, and records.url names "
            "none; name one, or write 0 for no limit"
        )
