"""Two servers that share a PostgreSQL and secrets, as two machines do, and nothing else: a call's
webhook, its socket and what Twilio asks after it may reach either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
import trio

from bridge.testing.agent.server import AgentSession, SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import ConnectStream, Dial, Hangup, Say
from tests.endtoend.servers import SERVE, SERVE_2, Server, running, stopped
from tests.integration.records.postgres import Cluster, cluster
from tests.world import AUTH_TOKEN, QUIET

WORDS = bytes(range(1, 201)) * 8


@pytest.fixture(scope="module")
def postgres() -> Iterator[Cluster]:
    with cluster() as database:
        yield database


def through(*servers: Server) -> SimulatedPhone:
    """A phone whose connections a load balancer gives to these servers, one after the other."""
    ports = cycle(int(server.base_url.rpartition(":")[2]) for server in servers)

    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        return await trio.open_tcp_stream("127.0.0.1", next(ports))

    return SimulatedPhone(strict=True, auth_token=AUTH_TOKEN, open_stream=open_stream)


async def test_a_call_needs_no_server_twice(tmp_path: Path, postgres: Cluster) -> None:
    """Its ticket is let in by the other; how it ended is known there; and both count it: with
    `limits.account_calls` of 1, neither takes another meanwhile."""
    talked = trio.Event()
    working = False

    async def script(agent: AgentSession) -> None:
        if agent.number == 1 or working:
            await agent.say("Good morning", WORDS)
        await talked.wait()
        if not working:
            # And so does each session that takes its place.
            await agent.error("FAILED_TO_THINK", "the model is gone")
        else:
            where = json.dumps({"destination": "reception"})
            await agent.call_functions([{"name": "transfer_call", "arguments": where}])
            await agent.say("I connect you", WORDS)

    more = "\n".join(
        [
            f'[records]\nurl = "{postgres.url}"',
            "[limits]\naccount_calls = 1",
            '[functions]\ntransfer_to = { reception = "+15551112222" }',
        ]
    )
    # Both have the one agent, which is elsewhere too.
    agent = SimulatedAgent(script, QUIET)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    async with (
        running(SERVE, folders[0], agent=agent, more=more) as a,
        running(SERVE, folders[1], agent=agent, more=more) as b,
    ):
        async with through(a, b, a).place_call(a.base_url) as phone:
            await phone.wait_heard(len(WORDS) / 8000)
            for server in (a, b):
                async with through(server).place_call(server.base_url) as other:
                    await other.wait_ended()
                assert [type(verb) for verb in other.verbs] == [Say, Hangup]
            talked.set()
            await phone.wait_ended()
        connect, apology, end = phone.verbs
        assert isinstance(connect, ConnectStream)
        assert isinstance(apology, Say)
        assert "something went wrong" in apology.text
        assert isinstance(end, Hangup)
        assert a.find("call started") == []
        assert len(b.find("call ended", outcome="agent_failed")) == 1

        working = True
        while phone.ending != "dialled":
            # Until the first call has stopped counting.
            async with through(b, a, b).place_call(b.base_url) as phone:
                await phone.wait_ended()
            assert phone.ending == "dialled" or isinstance(phone.verbs[0], Say)
        assert phone.ending == "dialled"
        dial = phone.verbs[-2]
        assert isinstance(dial, Dial)
        assert dial.number == "+15551112222"
        assert len(a.find("call handed over")) == 1
        assert b.find("call handed over") == []
        # The last one that Twilio asked is the one that tells.
        ends = [*a.find("call ended"), *b.find("call ended")]
        assert [end["outcome"] for end in ends].count("transferred") == 1


async def test_workers_of_one_server_need_each_other_no_more(tmp_path: Path) -> None:
    """With SQLite between them."""
    async with running(SERVE_2, tmp_path) as it:
        first, second = it.workers()
        turn = iter([second, first])
        asleep: list[trio.CancelScope] = []

        async with trio.open_nursery() as nursery:

            async def sleep(pid: int, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
                with trio.CancelScope() as scope:
                    async with stopped(pid):
                        task_status.started(scope)
                        await trio.sleep_forever()

            async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
                while asleep:
                    asleep.pop().cancel("the test: the other's turn")
                with suppress(StopIteration):
                    asleep.append(await nursery.start(sleep, next(turn)))
                return await trio.open_tcp_stream(host, port)

            phone = SimulatedPhone(strict=True, auth_token=AUTH_TOKEN, open_stream=open_stream)
            async with phone.place_call(it.base_url):
                session = await it.agent.wait_for_session()
                await session.say("Good morning", WORDS)
                await phone.wait_heard(len(WORDS) / 8000)
                # Such an error would recur, so that no other session is opened.
                await session.error("INVALID_SETTINGS", "no such model")
                await phone.wait_ended()
            nursery.cancel_scope.cancel(reason="done")
        assert [type(verb) for verb in phone.verbs] == [ConnectStream, Say, Hangup]
