"""Any sequence of what phone, agent, operator and clock can do, and the same promises after it.

Each action settles before the next, so that the first one that ends the call is known, and with it
the outcome: that is the model the real call is compared with. Hypothesis shrinks a failure to the
shortest sequence that shows it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.outcome import Outcome
from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.phone import CallEndedError, SimulatedPhone
from tests.world import QUIET, World, in_memory
from tests.world import settings as call_settings

# A lost agent ends the call here, and nothing is said into silence: one cause, one effect.
USING = call_settings(
    deepgram={"max_reconnects": 0, "connect_budget": 0.1},
    call={"idle_seconds": 3600, "stall_seconds": 3600},
)

SPEECH = bytes(range(1, 255)) * 4
TEARDOWN_SECONDS = 2.0


class Stage:
    """The call under test, in the middle of it."""

    def __init__(self, world: World, phone: SimulatedPhone, nursery: trio.Nursery) -> None:
        self.world = world
        self.phone = phone
        self.nursery = nursery

    @property
    def agent(self) -> AgentSession:
        return self.world.agent.sessions[-1]

    @property
    def call(self) -> Any:
        return next(iter(self.world.app.extensions["bridge"].calls))

    async def passes(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def soon(self, action: Callable[..., Awaitable[object]], *args: object) -> None:
        """Begin something that may take longer than the call lasts."""

        async def run() -> None:
            try:
                await action(*args)
            except (CallEndedError, trio.ClosedResourceError):
                pass

        self.nursery.start_soon(run)


Action = Callable[[Stage], Awaitable[None] | None]

# What changes nothing about whether the call goes on...
HARMLESS: dict[str, Action] = {
    "caller speaks": lambda s: s.soon(s.phone.say, SPEECH),
    "caller presses 1": lambda s: s.soon(s.phone.press, "1"),
    "agent speaks": lambda s: s.soon(s.agent.say, "One. Two.", SPEECH * 9),
    "agent hears the caller": lambda s: s.agent.user_started_speaking(),
    "turn is confirmed": lambda s: s.agent.user_said("yes"),
    "agent warns": lambda s: s.agent.warning("SLOW_THINK_REQUEST", "slow"),
    "agent sends nonsense": lambda s: s.agent.send({"type": "Nonsense", "x": [1]}),
    "a moment passes": lambda s: s.passes(0.03),
    "a second passes": lambda s: s.passes(1.0),
    "ten seconds pass": lambda s: s.passes(10.0),
}

# ...and what ends it, with the outcome that must be recorded.
ENDING: dict[str, tuple[Action, Outcome]] = {
    "caller hangs up": (lambda s: s.phone.hang_up(), Outcome.CALLER_HUNG_UP),
    "phone is lost": (lambda s: s.phone.drop(), Outcome.PHONE_LOST),
    "agent closes without a word": (lambda s: s.agent.close(1000), Outcome.AGENT_FAILED),
    "agent closes in trouble": (lambda s: s.agent.close(1011), Outcome.AGENT_FAILED),
    "agent is lost": (lambda s: s.agent.reset(), Outcome.AGENT_FAILED),
    "agent fails": (lambda s: s.agent.error("INTERNAL_SERVER_ERROR"), Outcome.AGENT_FAILED),
    "server ends the call": (
        lambda s: s.call.end(Outcome.SERVER_SHUTDOWN, "test"),
        Outcome.SERVER_SHUTDOWN,
    ),
    "server winds down": (
        lambda s: s.call.polite_end.wind_down(Outcome.SERVER_SHUTDOWN, "test", "Goodbye."),
        Outcome.SERVER_SHUTDOWN,
    ),
}

sequences = st.lists(st.sampled_from([*HARMLESS]), max_size=8)


@given(sequences, st.sampled_from([*ENDING]), sequences, st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_the_first_ending_counts_and_nothing_is_left(
    before: list[str], ending: str, after: list[str], answers_close: bool
) -> None:
    behaviour = msgspec.structs.replace(QUIET, answers_close=answers_close)

    async def play() -> None:
        action, outcome = ENDING[ending]
        async with in_memory(behaviour=behaviour, using=USING) as world:
            phone = world.phone()
            async with trio.open_nursery() as nursery:
                async with phone.place_call(world.base_url):
                    session = await world.agent.wait_for_session()
                    await session.applied.wait()
                    await trio.testing.wait_all_tasks_blocked()
                    stage = Stage(world, phone, nursery)
                    for name in before:
                        await perform(HARMLESS[name], stage)
                    assert len(world.app.extensions["bridge"].calls) == 1
                    began_seconds = trio.current_time() - stage.call.began_at
                    await perform(action, stage)
                    for name in after:
                        if world.agent.active and not phone.ending:
                            await perform(HARMLESS[name], stage)
                    if ending == "server winds down":
                        await phone.wait_ended()  # the caller listens to the goodbye
                nursery.cancel_scope.cancel()
            await world.app.extensions["bridge"].calls.wait_until_empty()
            line = world.ending  # exactly one
            assert line["outcome"] == outcome
            bound = TEARDOWN_SECONDS
            if ending == "server winds down":
                bound += 8.0  # the agent's goodbye
            assert line["seconds"] - began_seconds <= bound + 0.01
            await trio.testing.wait_all_tasks_blocked()
            if answers_close:
                assert world.agent.active == 0
            assert not any("exc_info" in entry for entry in world.logs)

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


async def perform(action: Action, stage: Stage) -> None:
    """Do it and let everything that follows at once happen."""
    result = action(stage)
    if result is not None:
        await result
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("first", [name for name in ENDING if not name.startswith(("c", "ph"))])
@pytest.mark.parametrize("second", ["caller hangs up", "phone is lost"])
def test_both_ends_race_to_end(first: str, second: str) -> None:
    """Two endings in the same instant: one outcome, one of the two, nothing left."""

    async def play() -> None:
        async with in_memory(using=USING) as world:
            phone = world.phone(strict=False)
            async with phone.place_call(world.base_url):
                session = await world.agent.wait_for_session()
                await session.applied.wait()
                await trio.testing.wait_all_tasks_blocked()
                stage = Stage(world, phone, trio.lowlevel.current_task().parent_nursery)  # type: ignore[arg-type]
                async with trio.open_nursery() as nursery:
                    for name in (first, second):
                        nursery.start_soon(perform_quietly, ENDING[name][0], stage)
            await world.quiet()
            assert world.ending["outcome"] in {ENDING[first][1], ENDING[second][1]}

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


async def perform_quietly(action: Action, stage: Stage) -> None:
    try:
        result = action(stage)
        if result is not None:
            await result
    except (CallEndedError, StopIteration, trio.ClosedResourceError):
        pass
