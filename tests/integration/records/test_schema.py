"""A database that an older bridge made: it is opened, brought up to date, read and written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridge.call.story import Line
from bridge.records import schema
from bridge.records.record import CallRecord
from bridge.records.schema import SCHEMA_VERSION, STEPS
from bridge.records.store import Store
from tests.integration.records.stores import drop_tables, prepare_at_once, write
from tests.unit.records.samples import whole_record

# Dumps of databases that bridge made at schema 1, with one call in each.
DUMPS = Path(__file__).parent / "schema_1"
OLD_SID = "CA" + "0338a6f7" * 4


def address(request: pytest.FixtureRequest, database: str) -> str:
    if database == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/calls.db"
    return str(request.getfixturevalue("postgres").url)


def connected(store: Store) -> sa.Engine:
    return store._connect()


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store on a database of schema 1."""
    store = Store(address(request, request.param))
    dump = (DUMPS / f"{request.param}.sql").read_text()
    with connected(store).connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        if request.param == "sqlite":
            raw.executescript(dump)
        else:
            raw.execute("DROP TABLE IF EXISTS calls, bridge_schema")
            raw.execute(dump)
            raw.commit()
    yield store
    drop_tables(store)
    store.close()


def columns(store: Store) -> dict[str, tuple[str, bool, str]]:
    with connected(store).connect() as connection:
        return {
            column["name"]: (
                str(column["type"]).replace("REAL", "DOUBLE"),  # SQLite stores both alike
                column["nullable"],
                str(column["default"]).partition("::")[0],
            )
            for column in sa.inspect(connection).get_columns("calls")
        }


def indices(store: Store) -> list[object]:
    with connected(store).connect() as connection:
        found = sa.inspect(connection).get_indexes("calls")
    return sorted((str(index["name"]), index["column_names"]) for index in found)


def test_it_reads_and_writes_an_old_database(old: Store) -> None:
    new = whole_record(revision=1)
    write(old, new)
    call = old.get(OLD_SID)
    assert call is not None
    assert (call.outcome, call.transfer_to) == ("transferred", "+15551112222")
    assert [line.words for line in call.transcript][:2] == ["Hello!", "How can I help you today?"]
    assert call.turns[1].confirmed_at is not None  # it had another name
    assert (call.legs, call.request_ids, call.transfer_seconds) == ([], [], None)
    assert old.get(new.call_sid) == new
    assert [one.call_sid for one in old.list_calls()] == [new.call_sid, OLD_SID]


def test_a_call_of_an_old_database_is_written_again(old: Store) -> None:
    old.prepare()
    call = old.get(OLD_SID)
    assert call is not None
    call.revision += 1
    call.transfer_name, call.transcript = "reception", [*call.transcript, Line(words="And more.")]
    write(old, call)
    assert old.get(OLD_SID) == call


def test_looking_brings_it_up_to_date_too(old: Store) -> None:
    old.check()
    assert len(old.list_calls(outcome="transferred")) == 1


def test_the_steps_lead_to_the_tables_of_a_new_database(old: Store) -> None:
    old.prepare()
    stepped = columns(old), indices(old)
    drop_tables(old)
    old.prepare()
    assert stepped == (columns(old), indices(old))
    assert sorted(STEPS) == list(range(2, SCHEMA_VERSION + 1))


def test_many_processes_may_start_at_once(old: Store) -> None:
    prepare_at_once(old)


def test_a_step_that_fails_leaves_the_old_database(
    old: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {**STEPS, SCHEMA_VERSION: (*STEPS[SCHEMA_VERSION], "ALTER TABLE nonsense ADD x TEXT")}
    before = columns(old)
    with monkeypatch.context() as broken:
        broken.setattr(schema, "STEPS", steps)
        with pytest.raises(Exception, match="nonsense"):
            old.prepare()
    assert columns(old) == before
    old.prepare()
    assert old.get(OLD_SID) is not None


def test_a_process_of_the_version_before_goes_on_writing(old: Store) -> None:
    """It does not know the new columns, and its rows get their defaults."""
    old.prepare()
    with connected(old).begin() as connection:
        connection.exec_driver_sql(_OLD_INSERT)
    written = old.get("CAolder")
    assert isinstance(written, CallRecord)
    assert (written.legs, written.request_ids, written.transfer_status) == ([], [], "")


_OLD_COLUMNS = (
    "started_at, ended_at, stream_sid, caller, called, direction, agent, seconds, agent_seconds, "
    "setup_seconds, teardown_seconds, outcome, reason, transfer_to, status, status_sequence, "
    "answered_by, cost, dropped_bytes, reconnects, barge_ins, recording, words_kept, shortened, "
    "revision, turns, transcript, functions"
)
_OLD_INSERT = (
    f"INSERT INTO calls (call_sid, {_OLD_COLUMNS}) SELECT 'CAolder', {_OLD_COLUMNS} FROM calls"
)
