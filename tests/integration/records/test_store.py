"""The store, on both databases it is made for: the same rules, whatever is written."""

from __future__ import annotations

import sqlite3
import stat
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.call.story import Line
from bridge.config.settings import ConfigError
from bridge.records import schema
from bridge.records import store as stores
from bridge.records.record import CallRecord, Ending, merge, snapshot, tidy
from bridge.records.schema import SCHEMA_VERSION
from bridge.records.store import Store, StoreError, StoreUnavailable
from tests.integration.records.stores import drop_tables, prepare_at_once, write
from tests.unit.records.samples import (
    ENDING,
    NASTY,
    NOON,
    SID,
    any_record,
    record,
    sid,
    whole_record,
)

# ---- what is written comes back ----------------------------------------------------------------


def test_every_field_comes_back(store):
    write(store, whole_record(revision=1))
    assert store.get(SID) == whole_record(revision=1)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=any_record)
def test_any_record_comes_back(store: Store, one: CallRecord) -> None:
    one.revision = 2**61
    store.purge(NOON + timedelta(days=400 * 365))
    written = tidy(snapshot(one))
    write(store, one)
    assert store.get(written.call_sid) == written


@pytest.mark.parametrize("text", NASTY[1:])
def test_sql_is_text_like_any_other(store, text):
    """In a SID, as a filter and as a transcript: nothing is executed, nothing else is found."""
    write(store, record(revision=1), record(text, revision=1, transcript=[Line(words=text)]))
    clean = tidy(snapshot(record(text))).call_sid
    found = store.get(clean)
    assert found is not None
    assert found.transcript == tidy(snapshot(record(transcript=[Line(words=text)]))).transcript
    assert store.list_calls(outcome=clean) == []
    assert store.ending_of(clean) == Ending("")
    assert len(store.list_calls()) == 2


def test_an_unknown_call_is_none(store):
    assert store.get("CAnobody") is None
    assert store.ending_of("CAnobody") is None
    assert store.list_calls() == []


def test_an_ending_is_known_when_there_is_one(store):
    write(store, record(revision=0))
    assert store.ending_of(SID) is None
    write(store, record(revision=1))
    assert store.ending_of(SID) == Ending("")
    write(store, whole_record(revision=2))
    assert store.ending_of(SID) == ENDING


# ---- writing again -----------------------------------------------------------------------------


def test_writing_twice_is_writing_once(store):
    begun, ended = record(revision=1), whole_record(revision=2)
    write(store, begun, ended, begun, ended)
    write(store, begun)
    assert store.get(SID) == ended
    assert len(store.list_calls()) == 1


writings = st.lists(
    st.builds(
        record,
        revision=st.integers(0, 4),
        outcome=st.sampled_from(["", "idle", "transferred"]),
        status=st.sampled_from(["ringing", "completed"]),
        status_sequence=st.integers(-1, 3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=writings, cut=st.integers(1, 6))
def test_sql_and_python_merge_alike(store: Store, order: list[CallRecord], cut: int) -> None:
    """Whatever arrives in whatever order: it makes no difference what met in memory before."""
    store.purge(NOON + timedelta(days=1))
    write(store, *order[:cut])
    result = snapshot(order[0])
    for one in order[1:cut]:
        result = merge(result, snapshot(one))
    assert store.get(SID) == tidy(result)
    if rest := order[cut:]:
        met = snapshot(rest[0])
        for one in rest[1:]:
            met = merge(met, snapshot(one))
        write(store, tidy(met))
        for one in rest:
            result = merge(result, snapshot(one))
        assert store.get(SID) == tidy(result)


def test_a_transfer_whose_result_never_came_is_ended_after_a_day(store):
    old, new, over = (
        whole_record(sid(number), revision=1, started_at=NOON + timedelta(hours=hours), **ended)
        for number, (hours, ended) in enumerate(
            [(0, HANDED_OVER), (2, HANDED_OVER), (0, {"outcome": "idle"})]
        )
    )
    write(store, old, new, over)
    assert store.end_unreported(NOON + timedelta(hours=1)) == 1
    outcomes = {one.call_sid: one.outcome for one in store.list_calls()}
    assert outcomes == {sid(0): "agent_ended", sid(1): "handed_over", sid(2): "idle"}
    assert store.get(sid(0)).reason == "asked for a person; its result was not reported"
    assert store.end_unreported(NOON + timedelta(hours=1)) == 0


HANDED_OVER = {"outcome": "handed_over"}


def test_a_call_that_names_no_process_is_ended_after_a_day(store):
    """An older bridge wrote it, and died."""
    old = {"revision": 1, "started_at": NOON}
    write(store, record(sid(0), **old), record(sid(1), **old, process="a:1:ff"))
    write(store, record(sid(2), **old | {"revision": 0}), record(sid(3), revision=1))
    assert store.end_unreported(NOON) == 0
    assert store.end_unreported(NOON + timedelta(seconds=1)) == 2
    outcomes = {one.call_sid: one.outcome for one in store.list_calls()}
    assert outcomes == {sid(0): "server_lost", sid(1): "", sid(2): "", sid(3): "server_lost"}


# ---- listing and retention ---------------------------------------------------------------------


def test_lists_newest_first_in_pages_and_by_outcome(store):
    calls = [
        whole_record(
            sid(i),
            revision=1,
            started_at=NOON + timedelta(minutes=i),
            outcome="idle" if i % 2 else "transferred",
        )
        for i in range(10)
    ]
    write(store, *calls)
    first = store.list_calls(4)
    assert [one.call_sid for one in first] == [sid(i) for i in (9, 8, 7, 6)]
    second = store.list_calls(4, before=first[-1].started_at)
    assert [one.call_sid for one in second] == [sid(i) for i in (5, 4, 3, 2)]
    idle = store.list_calls(2, before=second[-1].started_at, outcome="idle")
    assert [one.call_sid for one in idle] == [sid(1)]
    assert all(not one.transcript and not one.turns and not one.functions for one in first)
    assert first[0].caller == "+15550100001"


def test_purges_what_is_older_and_nothing_else(store):
    ages = [timedelta(days=days) for days in range(5)]
    write(store, *(record(sid(i), revision=1, started_at=NOON - age) for i, age in enumerate(ages)))
    limit = NOON - timedelta(days=1.5)
    assert store.purge(limit, limit=2) == 2
    assert [one.call_sid for one in store.list_calls()] == [sid(0), sid(1), sid(2)]
    assert store.purge(limit) == 1
    assert store.purge(limit) == 0
    assert [one.call_sid for one in store.list_calls()] == [sid(0), sid(1)]


# ---- the schema --------------------------------------------------------------------------------


def test_preparing_again_changes_nothing(store):
    write(store, whole_record(revision=1))
    store.prepare()
    assert store.get(SID) == whole_record(revision=1)
    store.check()


def test_many_workers_may_prepare_at_once(store):
    drop_tables(store)
    prepare_at_once(store)


def test_a_newer_schema_is_refused(store):
    with store._connect().begin() as connection:
        connection.execute(sa.update(schema.versions).values(version=SCHEMA_VERSION + 1))
    for method in (store.prepare, store.check):
        with pytest.raises(StoreError, match="newer bridge"):
            method()


def test_an_index_serves_each_question(store):
    with store._connect().connect() as connection:
        columns = [
            index["column_names"] for index in sa.inspect(connection).get_indexes("calls")
        ] + [sa.inspect(connection).get_pk_constraint("calls")["constrained_columns"]]
    assert sorted(columns) == [["call_sid"], ["outcome"], ["process"], ["started_at"]]


def test_tables_that_were_dropped_come_back(store):
    write(store, record(revision=1))
    drop_tables(store)
    with pytest.raises(StoreUnavailable):
        store.write([record(revision=2)])
    write(store, record(revision=2))
    assert store.get(SID) == record(revision=2)


# ---- SQLite ------------------------------------------------------------------------------------


def test_sqlite_is_in_wal_mode_and_private(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/calls.db")
    store.prepare()
    with sqlite3.connect(tmp_path / "calls.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert stat.S_IMODE((tmp_path / "calls.db").stat().st_mode) == 0o600


def test_a_locked_database_is_read_all_the_same_and_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.05)
    store = Store(f"sqlite:///{tmp_path}/calls.db")
    write(store, record(revision=1))
    other = sqlite3.connect(tmp_path / "calls.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.write([record(revision=2)])
        assert store.get(SID) == record(revision=1)
    finally:
        other.close()
    write(store, record(revision=2))


def test_deleted_records_are_gone_from_the_file(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/calls.db")
    write(store, record(revision=1, transcript=[Line(words="unmistakable words")]))
    assert b"unmistakable" in (tmp_path / "calls.db").read_bytes()
    store.purge(NOON + timedelta(days=1))
    assert b"unmistakable" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_a_database_that_was_deleted_is_made_again(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/calls.db")
    write(store, record(revision=1))
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(StoreUnavailable):
        store.write([record(revision=2)])
    write(store, record(revision=2))
    assert Store(f"sqlite:///{tmp_path}/calls.db").get(SID) == record(revision=2)


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path):
    (tmp_path / "calls.db").write_text("a letter to my aunt, of more than a hundred characters" * 9)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Store(f"sqlite:///{tmp_path}/calls.db").prepare()


def test_reading_makes_no_database(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/calls.db")
    with pytest.raises(StoreUnavailable):
        store.get(SID)
    with pytest.raises(StoreError, match="no call has been recorded yet"):
        store.check()
    (tmp_path / "calls.db").touch()
    with pytest.raises(StoreError, match="holds no calls"):
        store.check()


# ---- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense secret-password", ["records.url", "sqlite:///calls.db"]),
        ("mysql://me:secret-password@host/calls", ["mysql", "sqlite or postgresql"]),
        ("sqlite://", ["names no file"]),
        ("sqlite:///:memory:", ["names no file"]),
        ("sqlite:////nowhere/at/all/calls.db", ["/nowhere/at/all", "does not exist", "make it"]),
        ("postgresql+nosuch://me:secret-password@host/calls", ["driver", ".[postgres]"]),
        ("postgresql://me:secret-password@host:port/calls", ["records.url"]),
    ],
)
def test_an_address_that_cannot_work_is_refused_in_one_line(url, words):
    with pytest.raises(StoreError) as caught:
        Store(url)
    text = str(caught.value)
    assert isinstance(caught.value, ConfigError)
    assert [word for word in words if word not in text] == []
    assert "secret-password" not in text
    assert text.isprintable()


def test_no_password_is_ever_shown(tmp_path):
    store = Store(f"postgresql://me:secret-password@/calls?host={tmp_path}")
    with pytest.raises(StoreUnavailable) as caught:
        store.prepare()
    for text in (repr(store), store.name, str(caught.value)):
        assert "secret-password" not in text
    assert caught.value.__cause__ is None
    store.close()


# ---- PostgreSQL --------------------------------------------------------------------------------


def test_postgres_does_not_wait_long_for_a_lock(postgres, monkeypatch):
    monkeypatch.setitem(stores._POSTGRES_LIMITS, "lock_timeout", 0.05)  # type: ignore[index]
    store = Store(postgres.url)
    drop_tables(store)
    write(store, record(revision=1))
    with store._connect().begin() as other:
        other.exec_driver_sql("LOCK TABLE calls")
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.write([record(revision=2)])
    write(store, record(revision=2))
    store.close()


def test_postgres_that_was_restarted_is_used_again(postgres):
    store = Store(postgres.url)
    drop_tables(store)
    write(store, record(revision=1))
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailable):
            store.write([record(revision=2)])
    finally:
        postgres.start()
    write(store, record(revision=2))
    assert store.get(SID) == record(revision=2)
    store.close()
