"""The database of call records: SQLite or PostgreSQL, one table, one row for each call.

Everything here blocks, so it runs in worker threads or in a command, never on Trio's thread.

Transcript, turns and functions are JSON columns of the row. They are always written and read as a
whole, together with their call, so a call is replaced in one statement, which makes writing it
twice harmless; `json_extract` and `->>` reach into them for queries by hand. The columns by which
calls are looked up, SID, start and outcome, are indexed.

Every value is a bound parameter; no statement contains text from the network.

SQLite is in WAL mode, so that readers (`bridge calls`, other workers) never wait for a writer. Its
connections are opened for each use, which takes a tenth of a millisecond: one that is kept open
goes on writing into a file that was deleted or replaced, and those calls would never be seen.
https://www.sqlite.org/wal.html, https://www.sqlite.org/howtocorrupt.html section 4
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)

from bridge.config.settings import ConfigError
from bridge.extras import install_command
from bridge.outcome import Outcome
from bridge.records.private import close_to_others
from bridge.records.record import STATUS_FIELDS, CallRecord, Ending, upgrade
from bridge.records.schema import (
    LISTS,
    SCHEMA_VERSION,
    NewerSchema,
    bring_up_to_date,
    calls,
    version_of,
)
from bridge.text import printable

# How long a statement waits for a lock, and on PostgreSQL for anything. Long enough for a backup or
# a long query to pass, short enough that a stop of the server need not wait.
LOCK_SECONDS: Final = 2.0
STATEMENT_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 3.0

# Rows deleted in one transaction, so that no writer waits for a purge of many years' rows.
PURGE_ROWS: Final = 500

# Of a transfer whose result never came.
UNREPORTED: Final = "; its result was not reported"

T = TypeVar("T")


class StoreError(ConfigError):
    """The database cannot be used until the operator changes something; one line says what."""


class StoreUnavailable(Exception):
    """The database does not answer, or refuses, for now. One line, without secrets or speech."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


_SUMMARY: Final = tuple(column for column in calls.c if column.name not in LISTS)


class Rejected(msgspec.Struct, frozen=True):
    """A record that the database will never accept, and the database's reason."""

    record: CallRecord
    reason: str


class Store:
    """The records in one database. Opens nothing before it is used, and is thread-safe.

    Every method may raise StoreUnavailable; `prepare` and `check`, StoreError as well.
    """

    def __init__(self, url: str) -> None:
        """Raises StoreError for an address that can never work."""
        self._url = _checked(url)
        self.file = _sqlite_file(self._url)
        self._engine: Engine | None = None
        self._prepared = False

    def __repr__(self) -> str:
        return f"Store({self.name})"

    @property
    def name(self) -> str:
        """The database's address for messages, without the password and the options."""
        return str(self.file) if self.file else self._url.set(query={}).render_as_string()

    # ---- its tables -------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the tables, or bring those of an older bridge up to date. Several processes may do
        so at once. Raises StoreError if a newer bridge made them.
        """
        if self.file is not None:
            _private_file(self.file)
        with self.exclusive(_SCHEMA_LOCK) as connection:
            self._known(bring_up_to_date, connection)
        if self.file is not None:
            self._use_wal()
        self._prepared = True

    def check(self) -> None:
        """Check that there is a database of bridge's that this version can read, and bring it up
        to date; make none. Raises StoreError.
        """
        if self.file is not None and not self.file.exists():
            raise StoreError(f"no database at {self.file}: no call has been recorded yet")
        with self._transaction() as connection:
            version = self._known(version_of, connection)
        if not version:
            raise StoreError(f"{self.name} holds no calls of bridge's")
        if version < SCHEMA_VERSION:
            self.prepare()

    def _known(self, look: Callable[[Connection], T], connection: Connection) -> T:
        try:
            return look(connection)
        except NewerSchema as newer:
            raise StoreError(
                f"{self.name} was made by a newer bridge ({newer}); run that one, or name another "
                "database in records.url"
            ) from None

    def _use_wal(self) -> None:
        # Outside a transaction. The setting is stored in the file. SQLite does not wait for the
        # lock that this needs: while others use the file, one of them sets it, or the next start.
        with (
            suppress(StoreUnavailable),
            _translated(self.name),
            self._connect().connect() as connection,
        ):
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    # ---- writing ----------------------------------------------------------------------------

    def write(self, records: Sequence[CallRecord]) -> list[Rejected]:
        """Write tidy records, in order, all or none, except those that the database will never
        accept, which are returned. A row keeps what `record.merge` would keep.
        """
        if not self._prepared:
            self.prepare()
        try:
            self._write(records)
        except _Unfit:
            return self._write_singly(records)
        return []

    def _write_singly(self, records: Sequence[CallRecord]) -> list[Rejected]:
        rejected = []
        for record in records:
            try:
                self._write([record])
            except _Unfit as error:
                rejected.append(Rejected(record, str(error)))
        return rejected

    def _write(self, records: Sequence[CallRecord]) -> None:
        rows = [_row(record) for record in records]
        if not rows:
            return
        try:
            with self._transaction() as connection:
                connection.execute(_UPSERTS[connection.dialect.name], rows)
        except StoreUnavailable:
            # The file may have been removed, and its tables with it.
            self._prepared = False
            raise

    def purge(self, older_than: datetime, limit: int = PURGE_ROWS) -> int:
        """Delete the oldest calls that began before `older_than`, at most `limit`. Returns how
        many.
        """
        if not self._prepared:
            self.prepare()
        oldest = (
            sa.select(calls.c.call_sid)
            .where(calls.c.started_at < older_than)
            .order_by(calls.c.started_at)
            .limit(limit)
        )
        with self._transaction() as connection:
            result = connection.execute(sa.delete(calls).where(calls.c.call_sid.in_(oldest)))
            return int(result.rowcount)

    def end_unreported(self, older_than: datetime) -> int:
        """End the calls that began before `older_than` and are still handed over, since Twilio
        could not report what became of them, or live, since an older bridge wrote no process that
        `lease` could miss. Returns how many.
        """
        if not self._prepared:
            self.prepare()
        old = calls.c.started_at < older_than
        handed_over = calls.c.outcome == Outcome.HANDED_OVER.value
        live = sa.and_(calls.c.outcome == "", calls.c.revision > 0, calls.c.process == "")
        ended = {"outcome": Outcome.AGENT_ENDED.value, "reason": calls.c.reason + UNREPORTED}
        lost = {"outcome": Outcome.SERVER_LOST.value}
        with self._transaction() as connection:
            results = [
                connection.execute(sa.update(calls).where(old, which).values(values))
                for which, values in ((handed_over, ended), (live, lost))
            ]
            return sum(result.rowcount for result in results)

    # ---- reading ----------------------------------------------------------------------------

    def list_calls(
        self, limit: int = 20, before: datetime | None = None, outcome: str | None = None
    ) -> list[CallRecord]:
        """Return the latest calls, newest first, without their LISTS. For the next page, `before`
        is the `started_at` of the last call on this one.
        """
        query = sa.select(*_SUMMARY).order_by(calls.c.started_at.desc(), calls.c.call_sid.desc())
        if before is not None:
            query = query.where(calls.c.started_at < before)
        if outcome is not None:
            query = query.where(calls.c.outcome == outcome)
        with self._reading() as connection:
            return [_record(row) for row in connection.execute(query.limit(limit))]

    def get(self, call_sid: str) -> CallRecord | None:
        """Return one call with everything, None if it is not known."""
        query = sa.select(calls).where(calls.c.call_sid == call_sid)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else _record(row)

    def ending_of(self, call_sid: str) -> Ending | None:
        """Return how a call ended, with the outcome "" if it has not; None for an unknown call."""
        columns = calls.c.outcome, calls.c.transfer_to, calls.c.transfer_name, calls.c.legs
        # Revision 0: no process has carried it yet.
        query = sa.select(*columns).where(calls.c.call_sid == call_sid, calls.c.revision > 0)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            return Ending(row.outcome, row.transfer_to, row.transfer_name, max(1, len(row.legs)))

    def close(self) -> None:
        """Close the idle connections. The store can be used again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    # ---- connections ------------------------------------------------------------------------

    @contextmanager
    def exclusive(self, lock: int) -> Iterator[Connection]:
        """Run the block in a transaction while no other with the same number runs on any machine.
        It sees what earlier ones wrote. Waits LOCK_SECONDS at most.
        """
        with _translated(self.name), self._connect().connect() as connection:
            if connection.dialect.name == "sqlite":
                # SQLite has one writer at a time; the driver's BEGIN would lock too late.
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
                connection.exec_driver_sql("COMMIT")
                return
            # At any other level the snapshot would be older than the lock.
            connection = connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                self._limit(connection)
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
                yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self.file is not None and not self.file.exists():
            # Connecting would make an empty one.
            raise StoreUnavailable(f"no database at {self.file}")
        with self._transaction() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with _translated(self.name), self._connect().begin() as connection:
            if connection.dialect.name == "postgresql":
                self._limit(connection)
            yield connection

    @staticmethod
    def _limit(connection: Connection) -> None:
        # LOCAL, so that it is right behind a pooler such as pgbouncer, too.
        for setting, seconds in _POSTGRES_LIMITS.items():
            text = str(round(1000 * seconds))
            connection.execute(sa.select(sa.func.set_config(setting, text, True)))

    def _connect(self) -> Engine:
        # Two threads may both make one: the loser's has opened nothing.
        if self._engine is None:
            self._engine = _engine(self._url)
        return self._engine


_POSTGRES_LIMITS: Final = {"statement_timeout": STATEMENT_SECONDS, "lock_timeout": LOCK_SECONDS}
_SCHEMA_LOCK: Final = 0x62726964676531  # any number that no other program uses: "bridge1"


def _checked(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Not shown: it may hold a password.
        raise StoreError(
            "records.url: not a database address; write one such as sqlite:///calls.db or "
            "postgresql://user@host/name"
        ) from None
    backend = url.get_backend_name()
    if backend in ("postgres", "postgresql"):
        # If no driver is named, the one of the extra `postgres`.
        plain = url.drivername in ("postgres", "postgresql")
        url = url.set(drivername="postgresql+psycopg") if plain else url
    elif backend != "sqlite":
        raise StoreError(
            f"records.url: {printable(backend[:40])} is not supported; use sqlite or postgresql"
        )
    try:
        url.get_dialect().import_dbapi()
    except (ImportError, NoSuchModuleError):
        raise StoreError(
            f"records.url: the driver of {printable(url.drivername[:40])} is not installed; "
            f"{install_command('postgres')}"
        ) from None
    file = _sqlite_file(url)
    if backend == "sqlite":
        if file is None:
            raise StoreError(
                "records.url: names no file; write sqlite:///calls.db, or an empty text to keep no "
                "records"
            )
        if not file.parent.is_dir():
            raise StoreError(
                f"records.url: the folder {file.parent} does not exist; make it, or name another"
            )
        # Absolute, because the working directory may change under a long-lived server.
        url = url.set(database=str(file))
    return url


def _sqlite_file(url: URL) -> Path | None:
    database = url.database or ""
    if url.get_backend_name() != "sqlite" or database in ("", ":memory:"):
        return None
    return Path(database).absolute()


def _private_file(file: Path) -> None:
    # Conversations are in it. SQLite gives its WAL the same mode.
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnavailable(f"{file}: {error.strerror}") from None
    close_to_others(file, Path(f"{file}-wal"), Path(f"{file}-shm"))


def _engine(url: URL) -> Engine:
    common: dict[str, Any] = {
        "hide_parameters": True,  # an exception must not contain callers' words
        "json_serializer": lambda value: msgspec.json.encode(value).decode(),
        "json_deserializer": msgspec.json.decode,
    }
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(
            url, poolclass=sa.pool.NullPool, connect_args={"timeout": LOCK_SECONDS}, **common
        )
        sa.event.listen(engine, "connect", _erase_what_is_deleted)
        return engine
    arguments: dict[str, Any] = {
        "connect_timeout": round(CONNECT_SECONDS),
        "tcp_user_timeout": round(1000 * STATEMENT_SECONDS),  # a machine that is gone
        "prepare_threshold": None,  # prepared statements do not survive a pooler
    }
    return sa.create_engine(
        url,
        pool_size=2,
        max_overflow=4,
        pool_timeout=CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={key: value for key, value in arguments.items() if key not in url.query},
        **common,
    )


def _erase_what_is_deleted(connection: Any, _record: Any) -> None:
    # Retention means that the words are removed from the file, not only from its index.
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA secure_delete=ON")
    finally:
        cursor.close()


class _Unfit(StoreUnavailable):
    """The row itself is invalid; retrying cannot help."""


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError) as error:
        raise _Unfit(_reason(error)) from None
    except StatementError as error:
        if not isinstance(error, DBAPIError):
            raise _Unfit(_reason(error)) from None  # a value that no column takes
        raise StoreUnavailable(f"{name}: {_reason(error)}") from None
    except SQLAlchemyError as error:
        raise StoreUnavailable(f"{name}: {_reason(error)}") from None


def _reason(error: SQLAlchemyError) -> str:
    # The first line of the driver's message. Those below it may quote the row.
    cause = getattr(error, "orig", None) or error
    first, *_ = str(cause).strip().splitlines() or [type(cause).__name__]
    return first[:300]


def _upsert(insert: Any) -> Any:
    """Make the statement that inserts a row or updates the existing one, as `record.merge` does."""
    new = insert.excluded
    replaces = sa.and_(new.revision > 0, new.revision >= calls.c.revision)
    later = new.status_sequence > calls.c.status_sequence
    kept = {
        column.name: sa.case(
            (later if column.name in STATUS_FIELDS else replaces, new[column.name]), else_=column
        )
        for column in calls.c
        if not column.primary_key
    }
    answered_by = calls.c.answered_by
    kept["answered_by"] = sa.case((new.answered_by != "", new.answered_by), else_=answered_by)
    return insert.on_conflict_do_update(index_elements=[calls.c.call_sid], set_=kept)


_UPSERTS: Final = {
    "sqlite": _upsert(sqlite.insert(calls)),
    "postgresql": _upsert(postgresql.insert(calls)),
}


def _row(record: CallRecord) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in CallRecord.__struct_fields__}
    return row | {name: msgspec.to_builtins(row[name]) for name in LISTS}


def _record(row: sa.Row[Any]) -> CallRecord:
    # SQLAlchemy's names are a kind of str that msgspec does not take for one.
    fields = {str(name): value for name, value in row._mapping.items()}
    try:
        upgrade(fields)
        return msgspec.convert(fields, CallRecord)
    except msgspec.ValidationError as error:
        raise StoreUnavailable(f"a row that bridge did not write: {error}") from None
