"""Records of calls whose process is gone, on both databases: ended once, and by the living only."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa
import trio

from bridge.outcome import Outcome
from bridge.records import lease as module
from bridge.records import schema
from bridge.records.lease import REASON, Lease, LostCall
from bridge.records.record import Ending, Leg, continued
from bridge.records.recorder import Recorder
from bridge.records.spool import Spool
from bridge.records.store import Store
from bridge.records.writer import Writer
from bridge.twilio.dialled import DialResult
from tests.integration.records.stores import write
from tests.integration.records.waiting import until
from tests.unit.records.samples import NOON, SID, record, sid, whole_record


def lease_of(store: Store) -> Lease:
    result = Lease(store, lambda call: None)
    result._renew(end_lost=False)
    return result


def dies(store: Store, lease: Lease) -> None:
    """Let the time of a lease go by, on the database's clock."""
    expired = sa.update(schema.processes).values(expires_at=schema.processes.c.expires_at - 60)
    with store._connect().begin() as connection:
        connection.execute(expired.where(schema.processes.c.name == lease.process))


def test_the_calls_of_a_dead_process_are_ended_once(store: Store) -> None:
    mine, other = lease_of(store), lease_of(store)
    legs = [Leg(outcome="handed_over"), Leg(at=9.0, seconds=3.0)]
    live = record(revision=7, process=other.process, seconds=12.0, legs=legs)
    carried = record(sid(1), revision=1, process=mine.process)
    placed = record(sid(2), revision=0)
    write(store, live, carried, placed, whole_record(sid(3), revision=2))
    assert mine._renew(end_lost=True) == (True, [])
    dies(store, other)
    assert mine._renew(end_lost=False) == (True, ())
    assert mine._renew(end_lost=True) == (True, [LostCall(SID, 12.0)])
    assert mine._renew(end_lost=True) == (True, [])
    ended = store.get(SID)
    assert ended is not None
    assert (ended.outcome, ended.reason, ended.process) == ("server_lost", REASON, "")
    assert ended.ended_at == NOON + timedelta(seconds=12)
    assert [leg.outcome for leg in ended.legs] == ["handed_over", "server_lost"]
    left = {one.call_sid: one.outcome for one in store.list_calls()}
    assert left == {SID: "server_lost", sid(1): "", sid(2): "", sid(3): "transferred"}


def test_a_process_that_was_away_itself_ends_nothing(store: Store) -> None:
    """As when the database was away for all: it is the first to come back."""
    mine, other = lease_of(store), lease_of(store)
    write(store, record(revision=1, process=other.process))
    dies(store, other)
    dies(store, mine)
    assert mine._renew(end_lost=True) == (False, ())
    assert other._renew(end_lost=True) == (False, ())
    assert mine._renew(end_lost=True) == (True, [])


def test_a_process_that_was_taken_for_dead_goes_on_writing(store: Store) -> None:
    """What it wrote before, and comes late, changes nothing."""
    mine, other = lease_of(store), lease_of(store)
    live = record(revision=3, process=other.process)
    write(store, live)
    dies(store, other)
    mine._renew(end_lost=True)
    write(store, live)
    assert store.list_calls()[0].outcome == "server_lost"
    live.revision = 4
    write(store, live)
    assert store.list_calls()[0].outcome == ""
    later = continued(live)
    later.outcome, later.process = "idle", ""
    write(store, later)
    assert mine._renew(end_lost=True) == (True, [])
    assert store.list_calls()[0].outcome == "idle"


def test_the_query_looks_at_live_calls_only(store: Store) -> None:
    """However many calls are recorded: it runs all the time."""
    if store.file is None:
        pytest.skip("PostgreSQL decides by the size of the table")
    with store._connect().connect() as connection:
        query = module._LOST.compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
    assert "USING INDEX calls_carried" in str(plan)


async def test_a_process_finds_what_another_left(
    store: Store, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the recorder, in real time: the dead one is a lease that nobody renews."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 1.0)
    dead = lease_of(store)
    lost: list[LostCall] = []
    lease = Lease(store, lost.append)
    recorder = Recorder(Writer(store, Spool(tmp_path / "spool"), retention_days=99_999), lease)
    write(store, record(sid(1), revision=1, process=dead.process, seconds=4.0))
    with trio.fail_after(60):
        async with recorder.running():
            recorder.begin(one := record())
            await until(lambda: lost)
            mine = await recorder.get(SID)
            assert mine is not None
            assert (mine.process, mine.outcome) == (lease.process, "")
            one.outcome = "idle"
            recorder.finish(one)
    assert lost == [LostCall(sid(1), 4.0)]
    assert {r.call_sid: (r.outcome, r.process) for r in store.list_calls()} == {
        SID: ("idle", ""),
        sid(1): ("server_lost", ""),
    }


async def test_the_fallback_of_a_lost_call_is_kept_by_its_end(store: Store, tmp_path) -> None:
    """It is dialled before the lease has expired, and that is no sign of life of the call."""
    mine, dead = lease_of(store), lease_of(store)
    write(store, record(revision=1, process=dead.process, legs=[Leg()]))
    recorder = Recorder(Writer(store, Spool(tmp_path / "spool"), retention_days=99_999), mine)
    rang = DialResult("completed", 9.0)
    async with recorder.running():
        assert await recorder.ending_of(SID, within=0.1) == Ending("server_lost")
        note = partial(recorder.note_dialled, SID, 1, rang, Outcome.TRANSFERRED)
        assert await note(fallback="+15553334444")
        assert not await note(fallback="+15553334444")
    dies(store, dead)
    assert mine._renew(end_lost=True) == (True, [LostCall(SID, 0.0)])
    ended = store.get(SID)
    assert ended is not None
    assert (ended.outcome, ended.transfer_to) == ("server_lost", "+15553334444")
    assert (ended.legs[0].outcome, ended.legs[0].transfer_status) == ("server_lost", "completed")
