"""What tests do to a store beside calling it."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from bridge.records import schema
from bridge.records.record import CallRecord, snapshot, tidy
from bridge.records.schema import SCHEMA_VERSION
from bridge.records.store import Store


def write(store: Store, *records: CallRecord) -> None:
    assert store.write([tidy(snapshot(one)) for one in records]) == []


def drop_tables(store: Store) -> None:
    with store._connect().begin() as connection:
        schema.metadata.drop_all(connection)


def prepare_at_once(store: Store) -> None:
    """Prepare its database from eight stores at the same time, and see that all succeed."""
    errors: list[Exception] = []
    url = store._url.render_as_string(hide_password=False)

    def prepare() -> None:
        mine = Store(url)
        try:
            mine.prepare()
        except Exception as error:
            errors.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=prepare) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with store._connect().connect() as connection:
        assert connection.execute(sa.select(schema.versions.c.version)).all() == [(SCHEMA_VERSION,)]
