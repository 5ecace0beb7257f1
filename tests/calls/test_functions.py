"""Functions that act on their call, on the whole stack and the virtual clock."""

from __future__ import annotations

import pytest
import trio.testing

from bridge.config.settings import Settings
from bridge.functions import Functions
from bridge.testing.phone.twiml import Hangup, Say
from tests.world import in_memory, settings

Clock = trio.testing.MockClock


# ---- a call that cannot be set up ---------------------------------------------------------------


@pytest.mark.parametrize("prewarm", [False, True])
async def test_a_call_that_cannot_be_set_up_ends_like_any_other(
    autojump_clock: Clock, prewarm: bool
) -> None:
    """With its outcome, the apology, the metric, and its slot back at once."""

    async def end_call() -> None: ...

    using = settings(deepgram={"prewarm": prewarm}, server={"max_calls": 1})
    async with in_memory(using=using) as world:
        bridge = world.app.extensions["bridge"]
        bridge.functions.loaded[""] = Functions.of(end_call)
        for _ in range(2):
            async with world.call() as phone:
                await phone.wait_ended()
            assert phone.verbs[1:] == [Say(Settings().call.apology), Hangup()]
        await world.quiet()
        assert not bridge.entrance.is_full(using)
        metrics, _ = bridge.metrics.expose(None)
    assert b'bridge_calls_total{outcome="internal_error"} 2.0' in metrics
    endings = [line for line in world.logs if line["event"] == "call ended"]
    assert [line["outcome"] for line in endings] == ["internal_error"] * 2
