"""One limit on calls for a whole account, on however many machines (`limits.account_calls`).

Deepgram limits the sessions that a project has open at once and refuses one more, whose caller
would hear an apology. So the servers count together, in the database of records.

There is a row for each live call, a *lease*: the process that carries the call, and until when the
row counts. A process takes a short lease before it admits a call, and renews the leases of the
calls it carries until they are over. A machine that dies renews nothing: its rows stop counting
LEASE_SECONDS later. A lease is taken under a lock that only one process on all machines has at a
time, so that no race admits one call too many. All times are the database's, because machines'
clocks differ.

One process may answer a call's webhook and another receive its socket. The process that carries the
call `hold`s it, which takes the lease over.

**While the database is away, calls are admitted without being counted.** It is the database of
records, and nothing else in bridge refuses a caller when it is away. The worst case is the same as
without a limit: Deepgram refuses a session, and the caller hears an apology. Refusing every call
would turn an outage of the database into an outage of the telephone. `server.max_calls` still
holds. Live calls are counted as soon as the database is back, even beyond the limit, and then no
call is admitted until their number has fallen below it.

The database is asked in a thread, one statement at a time, with deadlines: a webhook waits for an
answer RESERVE_SECONDS at most, and not at all for RETRY_SECONDS after a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from bridge.admission.slots import NotAdmitted
from bridge.config.settings import ConfigError, Settings
from bridge.log import get_logger
from bridge.one_thread import OneThread
from bridge.records.lease import process_name
from bridge.records.schema import database_time
from bridge.records.store import Store, StoreError, StoreUnavailable
from bridge.supervised import supervised

log = get_logger(__name__)

# How long a dead machine's calls still count; and how long a process that is suspended, or cut off
# from the database, may be away before others get its slots.
LEASE_SECONDS: Final = 60.0

# A lease is renewed three times before it expires, so that one renewal may fail.
RENEWALS_PER_LEASE: Final = 4

# From the webhook to the call's socket: a slot's RESERVED_SECONDS, and the time that `start` may
# take.
RESERVED_SECONDS: Final = 30.0

# What a caller waits for the answer, in silence, at most.
RESERVE_SECONDS: Final = 1.0

# What no caller waits for: above the store's own limits for a connection, a lock and a statement.
ASK_SECONDS: Final = 12.0

# For so long after a failure the database is not asked.
RETRY_SECONDS: Final = 5.0

# For giving all leases back at the end; a lease that is not given back in time expires.
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

# Any number that no other program uses for a lock: "bridge2".
_LOCK: Final = 0x62726964676532


class AccountLimit:
    """This process's share in the limit. `url` is `records.url`; without one nothing is counted.

    Raises StoreError, a ConfigError, for an address that can never work.
    """

    def __init__(self, url: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._store = Store(url) if url else None
        self._lease_seconds = lease_seconds
        self._holder = process_name()
        # The calls that this process carries, which the database is brought in line with.
        self._held: set[str] = set()
        # Leases that were requested, and may exist before the answer is here; and leases that wait
        # for their call, with the time until when.
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
        """Why the database cannot be asked, in one line; "" if it can."""
        return self._trouble

    # ---- calls ----------------------------------------------------------------------------------

    async def reserve(self, call_sid: str, limit: int) -> bool:
        """Take a lease for a call, one of at most `limit` on all machines (0: no limit). Returns
        False if there are as many already.

        Returns True, too, when the database cannot be asked; `uncounted` counts these calls. The
        lease lasts RESERVED_SECONDS, or until `hold` or `release`. Cancelled, it has taken nothing.
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
            # The abandoned thread may still get the lease.
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
        """The call is carried here, whichever process reserved it: count it for this process."""
        if limit and self._store is not None:
            self._begin()
        self._reserved.pop(call_sid, None)
        if call_sid not in self._held:
            self._held.add(call_sid)
            self._new.add(call_sid)
            self._changed.set()

    def release(self, call_sid: str) -> None:
        """The call is over, or was not admitted. Idempotent."""
        self._held.discard(call_sid)
        self._reserved.pop(call_sid, None)
        self._new.discard(call_sid)
        if self._in_use and not self._trouble:
            self._gone.add(call_sid)
            self._changed.set()

    def _begin(self) -> None:
        """Note that there is a limit. If it is new, the live calls have not been counted yet."""
        if not self._in_use:
            self._in_use = True
            self._new |= self._held
            self._changed.set()

    # ---- the database ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Renew the leases and write what changes, until cancelled; then give all leases back.

        Errors are logged and not raised. Giving back takes CLOSE_SECONDS at most.
        """
        if self._store is None:
            return
        try:
            await supervised("account limit", self._keep)
        finally:
            if self._in_use:
                self._held.clear()
                with trio.CancelScope(shield=True):  # deadline: CLOSE_SECONDS, below
                    await self._ask(partial(self._tell_all, (), ()), within=CLOSE_SECONDS)
            if not self._thread.is_stuck:
                self._store.close()

    async def _keep(self) -> None:
        renew_at = trio.current_time()
        while True:
            # Leases are renewed by the clock; changes are written at once.
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
                # Changes made meanwhile are written the next time.
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
                log.exception("account limit: unexpected error")
            self._failed(str(error) or type(error).__name__)
            # The table may be gone, with the database that had it.
            self._prepared = False
            return None
        if self._trouble:
            log.info("account limit: counting calls again", after=self._trouble)
        self._trouble, self._away_until = "", float("-inf")
        return result

    def _failed(self, trouble: str) -> None:
        if not self._trouble:
            log.error("account limit: cannot count calls; admitting them", error=trouble)
        self._trouble = trouble
        self._away_until = trio.current_time() + RETRY_SECONDS
        # When the database is back, everything is written, not only the changes.
        self._gone.clear()
        self._new.clear()
        self._changed.set()

    # ---- in the thread --------------------------------------------------------------------------

    def _take(self, call_sid: str, limit: int) -> bool:
        with self._exclusive() as connection:
            now = database_time(connection)
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
            until = database_time(connection) + seconds
            connection.execute(_upsert(connection.dialect.name, until), rows)

    def _exclusive(self) -> Any:
        assert self._store is not None
        if not self._prepared:
            self._store.prepare()
            with self._store.exclusive(_LOCK) as connection:
                _metadata.create_all(connection)
            self._prepared = True
        return self._store.exclusive(_LOCK)


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
    """The limit in the form that `bridge.admission.slots` needs, its `SharedCap`. `limit` returns
    the current setting.
    """

    def __init__(self, account: AccountLimit, limit: Callable[[], int]) -> None:
        self._account = account
        self._limit = limit

    async def reserve(self, call_sid: str) -> None:
        """Take a slot for the call. Raises NotAdmitted."""
        if not await self._account.reserve(call_sid, self._limit()):
            raise NotAdmitted("limits.account_calls are on")

    def bound(self, call_sid: str) -> None:
        """The call is on, in this process."""
        self._account.hold(call_sid, self._limit())

    def release(self, call_sid: str) -> None:
        """The call is over."""
        self._account.release(call_sid)


def check_account_limit(settings: Settings) -> None:
    """Raise ConfigError if there is a limit but no database to count in."""
    if settings.limits.account_calls and not settings.records.url:
        raise ConfigError(
            "limits.account_calls: needs the database of records, and records.url names none; "
            "name one, or write 0 for no limit"
        )
