"""The database and the folder of recordings, and what is in their way."""

from __future__ import annotations

import sqlite3

import msgspec

from bridge.check.records import check_recordings, check_records
from bridge.config.settings import RecordSettings


def using(**keys) -> RecordSettings:
    return msgspec.structs.replace(RecordSettings(), **keys)


async def test_a_database_that_can_be_written(tmp_path):
    [found] = await check_records(using(url=f"sqlite:///{tmp_path}/calls.db"))
    assert found.status == "ok"
    assert str(tmp_path) in found.what


async def test_no_records_are_kept():
    [found] = await check_records(using(url=""))
    assert found.status == "skipped"


async def test_a_folder_that_is_not_there(tmp_path):
    [found] = await check_records(using(url=f"sqlite:///{tmp_path}/no/calls.db"))
    assert found.status == "wrong"
    assert "does not exist" in found.why


async def test_a_database_that_is_a_folder(tmp_path):
    (tmp_path / "calls.db").mkdir()
    [found] = await check_records(using(url=f"sqlite:///{tmp_path}/calls.db"))
    assert (found.status, found.what) == ("wrong", "the database cannot be written")


async def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "calls.db").write_bytes(b"this is no database" * 100)
    [found] = await check_records(using(url=f"sqlite:///{tmp_path}/calls.db"))
    assert found.status == "wrong"
    assert "not a database" in found.why


async def test_a_database_that_refuses_to_be_changed(tmp_path):
    url = f"sqlite:///{tmp_path}/calls.db"
    assert [found.status for found in await check_records(using(url=url))] == ["ok"]
    with sqlite3.connect(tmp_path / "calls.db") as connection:
        connection.execute("DROP TABLE calls")
        connection.execute("CREATE VIEW calls AS SELECT 1 AS call_sid, 2 AS started_at")
    connection.close()
    [found] = await check_records(using(url=url))
    assert found.status == "wrong"


async def test_a_password_is_not_shown():
    [found] = await check_records(using(url="postgresql://u:hidden-5EC237@127.0.0.1:9/none"))
    assert found.status == "wrong"
    assert "hidden-5EC237" not in found.line


async def test_recordings(tmp_path):
    assert list(await check_recordings("")) == []
    [found] = await check_recordings(str(tmp_path / "new"))
    assert found.status == "ok"
    (tmp_path / "file").write_text("")
    [found] = await check_recordings(str(tmp_path / "file"))
    assert found.status == "wrong"
