"""A worker is killed under its calls (finding A4): their words, their callers and their records."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx

from bridge.records.store import Store
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say
from tests.endtoend.servers import SERVE_2, WORDS, running, stopped
from tests.endtoend.test_worker_metrics import scrape
from tests.integration.records.waiting import until
from tests.world import OPERATOR

CALLS = 3

# A lease and a renewal, and a machine that does other things at the same time.
PATIENCE = 180.0


def written(store: Store, call_sid: str, words: str) -> bool:
    """Whether the record has these words already."""
    record = store.get(call_sid)
    return record is not None and words in [line.words for line in record.transcript]


async def test_what_a_killed_worker_leaves_of_its_calls(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/calls.db")
    async with running(SERVE_2, tmp_path, patience=PATIENCE) as it, AsyncExitStack() as stack:
        dies, lives = it.workers()
        async with stopped(lives):
            places = [it.call(strict=False) for _ in range(CALLS)]
            calls = [await stack.enter_async_context(place) for place in places]
        async with stopped(dies):
            other, _ = await stack.enter_async_context(it.call())
        sids = [phone.call_sid for phone, _ in calls]
        for number, (_, session) in enumerate(calls):
            await session.user_said(f"Question {number}.")
            await session.say("Answer.", WORDS)
        # Written while the calls are on; test_crash.py in tests/calls says how soon.
        for number, sid in enumerate(sids):
            await until(partial(written, store, sid, f"Question {number}."), PATIENCE)
        assert len(store.list_calls(outcome="")) == CALLS + 1
        os.kill(dies, signal.SIGKILL)

        # Long before a lease has expired, every caller hears words.
        for phone, _ in calls:
            await phone.wait_ended()
            assert [type(verb) for verb in phone.verbs] == [ConnectStream, Say, Hangup]
            assert "something went wrong" in phone.verbs[1].text
        for sid in sids:
            await it.logged("call ended", call_sid=sid, outcome="server_lost")
        async with httpx.AsyncClient(base_url=it.base_url, headers=OPERATOR) as client:
            for sid in sids:
                shown = (await client.get(f"/calls/{sid}")).json()
                assert (shown["outcome"], shown["live"]) == ("server_lost", False)
                assert "elsewhere" not in shown
                assert (await client.delete(f"/calls/{sid}")).status_code == 200
        assert (await scrape(it))['bridge_calls_total{outcome="server_lost"}'] == CALLS
        assert len(it.find("call ended")) == CALLS
        assert all(written(store, sid, f"Question {n}.") for n, sid in enumerate(sids))

        # The other worker's call is on, and nobody has ended its record.
        assert [one.call_sid for one in store.list_calls(outcome="")] == [other.call_sid]
        await other.hang_up()
        await it.logged("call ended", call_sid=other.call_sid, outcome="caller_hung_up")
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert it.other == []
    store.close()
