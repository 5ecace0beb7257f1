"""The tables of the database, and the steps that bring an older one up to date.

The database carries the number of its schema in `bridge_schema`. A new database is made as the
tables below say. An older one is brought up to date by the steps that it has not seen, in one
transaction and under a lock, so that it is either the old one or the new one and several processes
may start at once. `tests/integration/records/schema_1` has a database to try it on.

To change the schema: change the tables, raise SCHEMA_VERSION, and add the step from the version
before. A process of the version before may still be writing while the first new one starts, so a
step only adds columns, each with a default, and indices.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect

SCHEMA_VERSION: Final = 3

# SQL that both databases understand, by the version that it makes.
STEPS: Final[Mapping[int, tuple[str, ...]]] = {
    2: (
        "ALTER TABLE calls ADD COLUMN transfer_name TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE calls ADD COLUMN transfer_status TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE calls ADD COLUMN transfer_seconds DOUBLE PRECISION",
        "ALTER TABLE calls ADD COLUMN legs JSON NOT NULL DEFAULT '[]'",
        "ALTER TABLE calls ADD COLUMN request_ids JSON NOT NULL DEFAULT '[]'",
    ),
    3: (
        "ALTER TABLE calls ADD COLUMN process TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX calls_carried ON calls (process) WHERE process > ''",
    ),
}


class NewerSchema(Exception):
    """A newer bridge made the database. `version` is the number of its schema."""

    def __init__(self, version: int) -> None:
        super().__init__(f"schema {version}, and this bridge knows {SCHEMA_VERSION}")
        self.version = version


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A time in UTC. SQLite stores no time zone, so it is removed and added again."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return what is stored."""
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return what was stored."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)  # type: ignore[no-any-return]


metadata = sa.MetaData()

versions = sa.Table("bridge_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

# The processes that carry calls, as `lease` says.
processes = sa.Table(
    "bridge_processes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("expires_at", sa.Double, nullable=False),  # seconds since 1970, by this database
)


def _text(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **options)


def _list(name: str, **options: Any) -> sa.Column[Any]:
    # json, not jsonb, which would not preserve numbers as written.
    return sa.Column(name, sa.JSON, nullable=False, **options)


calls = sa.Table(
    "calls",
    metadata,
    sa.Column("call_sid", sa.Text, primary_key=True),
    sa.Column("started_at", UtcTime, nullable=False, index=True),
    sa.Column("ended_at", UtcTime),
    _text("stream_sid"),
    _text("caller"),
    _text("called"),
    _text("direction"),
    _text("agent"),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("agent_seconds", sa.Double, nullable=False),
    sa.Column("setup_seconds", sa.Double),
    sa.Column("teardown_seconds", sa.Double),
    sa.Column("outcome", sa.Text, nullable=False, index=True),
    _text("reason"),
    _text("transfer_to"),
    _text("status"),
    sa.Column("status_sequence", sa.BigInteger, nullable=False),
    _text("answered_by"),
    sa.Column("cost", sa.Double),
    sa.Column("dropped_bytes", sa.BigInteger, nullable=False),
    sa.Column("reconnects", sa.BigInteger, nullable=False),
    sa.Column("barge_ins", sa.BigInteger, nullable=False),
    _text("recording"),
    sa.Column("words_kept", sa.Boolean, nullable=False),
    sa.Column("shortened", sa.Boolean, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    _list("turns"),
    _list("transcript"),
    _list("functions"),
    _text("transfer_name", server_default=""),
    _text("transfer_status", server_default=""),
    sa.Column("transfer_seconds", sa.Double),
    _list("legs", server_default="[]"),
    _list("request_ids", server_default="[]"),
    _text("process", server_default=""),
)

# Of the rows of live calls. In words, since SQLite uses such an index only for a query that has the
# same words.
carried: Final = sa.text("process > ''")
sa.Index("calls_carried", calls.c.process, sqlite_where=carried, postgresql_where=carried)


# What a list of calls leaves out.
LISTS: Final = ("turns", "transcript", "functions", "legs", "request_ids")


def bring_up_to_date(connection: Connection) -> None:
    """Make the tables, or bring older ones up to date. Raises NewerSchema.

    The connection is in a transaction that no other process is in at the same time.
    """
    for table in (versions, processes):
        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
    version = version_of(connection)
    for step in range(version + 1, SCHEMA_VERSION + 1) if version else ():
        for statement in STEPS[step]:
            connection.exec_driver_sql(statement)
    if not version:
        connection.execute(sa.schema.CreateTable(calls))
        for index in sorted(calls.indexes, key=lambda index: str(index.name)):
            connection.execute(sa.schema.CreateIndex(index))
    if version != SCHEMA_VERSION:
        connection.execute(sa.delete(versions))
        connection.execute(sa.insert(versions).values(version=SCHEMA_VERSION))


# The time of the statement, not of the transaction, which may have waited for a lock.
_NOW: Final = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
}


def database_time(connection: Connection) -> sa.ColumnElement[float]:
    """Return the database's clock, in seconds since 1970: machines' clocks differ."""
    return sa.literal_column(_NOW[connection.dialect.name], sa.Double())


def version_of(connection: Connection) -> int:
    """Return the version of the tables that are there, 0 without any. Raises NewerSchema."""
    there = sa.inspect(connection)
    version = 0
    if there.has_table(versions.name):
        version = connection.execute(sa.select(sa.func.max(versions.c.version))).scalar() or 0
    if version > SCHEMA_VERSION:
        raise NewerSchema(version)
    # Version 1 was not made in one transaction.
    return version or int(there.has_table(calls.name))
