"""Calls that end in all ways, many at once and one after another, and nothing of them is left.

The short form, in one process, of `python -m tests.benchmarks.churn`.
"""

from __future__ import annotations

from collections import Counter

import trio

from bridge.call.call import Call
from bridge.call.conversation import Conversation
from bridge.call.uplink import Uplink
from bridge.deepgram.session import AgentSession
from bridge.outcome import Outcome
from bridge.server.hypercorn.connection import GuardedTCPServer
from bridge.transport.websocket import WebSocket
from bridge.twilio.media_stream import MediaStream
from tests.alive import Alive
from tests.benchmarks.churn import CONNECT_TIMEOUT, Churn, agents_behaviour, agents_script
from tests.endtoend.scene import TEARDOWN, scene, until
from tests.world import settings

ROUND = 30
AT_ONCE = 15
SEED = "churn"

OURS = (Call, AgentSession, Conversation, GuardedTCPServer, MediaStream, WebSocket, Uplink)

USING = settings(
    call={"teardown_seconds": TEARDOWN, "start_timeout": 1.0},
    deepgram={"connect_timeout": CONNECT_TIMEOUT},
)


async def test_calls_that_end_in_random_ways_leave_nothing() -> None:
    """After each of two rounds no object of a call is alive, and at the end no task, descriptor or
    session; each call that began has one line that says how it ended, and none a traceback."""
    alive = Alive(*OURS)
    script, behaviour = agents_script(SEED), agents_behaviour(SEED)
    async with scene(script, behaviour, USING, calls=None) as stage:
        churn = Churn(stage.address, AT_ONCE, SEED)
        for _ in range(2):
            await churn.run(ROUND)
            with trio.fail_after(60):
                await until(lambda: not len(stage.calls) and not stage.agent.active)
                await until(lambda: not alive.count())
        endings = stage.log.endings()
        started = [line for line in stage.log.lines if line["event"] == "call started"]
        sids = Counter(line["call_sid"] for line in endings if line["call_sid"])
        assert set(sids.values()) == {1}
        assert len(started) == len(sids)
        assert Outcome.INTERNAL_ERROR not in {line["outcome"] for line in endings}
        # So many ways were taken that this was worth doing.
        assert len(sids) > ROUND
        assert len({line["outcome"] for line in endings}) >= 4
