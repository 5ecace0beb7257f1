"""The miniature call of bridge/call/README.md, swept: a fault at every scheduling step.

The recipe, for any server: play a scenario once and count its steps; play it again for each step
and each fault, with the fault injected there; check the same promises after each run.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import outcome
import pytest
import trio
import trio.testing
from trio._core import _run

from tests.unit.call.skeleton import GONE, TEARDOWN, Call

ROOT = Path(__file__).parents[3]

Memory = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]
Fault = Literal["cancel", "raise", "lose phone", "lose agent"]


class Boom(Exception):
    """The injected bug."""


class Socket(trio.abc.Stream):
    """A stream with a goodbye: it says so, and waits for the peer to close."""

    def __init__(self, stream: Memory) -> None:
        self._stream = stream
        self._writing = trio.Lock()
        self.is_closed = self.is_lost = self.is_stuck = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._writing:
            if self.is_stuck:
                await trio.sleep_forever()
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        if not data and self.is_lost:
            raise trio.BrokenResourceError
        return bytes(data)

    async def aclose(self) -> None:
        try:
            await self.send_all(b"bye")
            while await self.receive_some():
                pass
        except GONE:
            pass
        finally:
            self.is_closed = True
            await trio.aclose_forcefully(self._stream)


class Run(trio.abc.Instrument):
    """One call between a caller who speaks twice and an agent that repeats what it hears.

    A `stubborn` caller or agent never answers a goodbye, and the agent stops reading before the
    caller's last words. At step `at`, `fault` strikes.
    """

    def __init__(
        self,
        fault: Fault | None = None,
        at: int = -1,
        *,
        stubborn: bool = False,
        kind: type[Call] = Call,
    ) -> None:
        self.fault, self.at, self.stubborn, self.kind = fault, at, stubborn, kind
        self.steps, self.struck_at, self.outcome_then = 0, -1.0, ""
        self.said, self.heard = b"", b""
        self.error: BaseException | None = None
        # Trio shuffles its tasks; seeded, in the same order each time.
        _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
        _run._r.seed(0)
        trio.run(self.main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[self])

    async def main(self) -> None:
        phone, self.caller = trio.testing.memory_stream_pair()
        agent, self.voice = trio.testing.memory_stream_pair()
        self.phone, self.agent = Socket(phone), Socket(agent)
        self.call = self.kind(self.phone, self.agent)
        self.scope = trio.CancelScope()
        async with trio.open_nursery() as peers:
            peers.start_soon(self.peer, self.speak, self.caller)
            peers.start_soon(self.peer, self.repeat, self.voice)
            peers.start_soon(self.lose_patience)
            try:
                with self.scope:
                    await self.call.run()
            except BaseException as error:
                self.error = error
            self.ended_at = trio.current_time()
            peers.cancel_scope.cancel()

    async def peer(self, behave: Callable[[], Awaitable[None]], stream: Memory) -> None:
        try:
            await behave()
            if not self.stubborn:
                await stream.aclose()
        except GONE:
            pass

    async def lose_patience(self) -> None:
        await trio.sleep(60)
        await self.caller.aclose()
        await self.voice.aclose()

    async def speak(self) -> None:
        for word in b"one ", b"two ":
            await self.caller.send_all(word)
            heard = await self.caller.receive_some()
            if heard == b"bye":
                return
            self.heard += heard
        self.agent.is_stuck = self.stubborn
        await self.caller.send_all(b"goodbye")
        await self.caller.send_stream.aclose()

    async def repeat(self) -> None:
        async for word in self.voice:
            if word == b"bye":
                return
            self.said += word
            await self.voice.send_all(word)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if not hasattr(self, "scope") or hasattr(self, "ended_at"):
            return
        if self.steps == self.at:
            self.struck_at, self.outcome_then = trio.current_time(), self.call.outcome
            self.strike(task)
        self.steps += 1

    def strike(self, task: trio.lowlevel.Task) -> None:
        if self.fault == "cancel":
            self.scope.cancel()
        elif self.fault == "raise":
            state = inspect.getcoroutinestate(task.coro)
            # A task that has not begun yet cannot have a bug.
            if task.name.endswith(".watch") and state == inspect.CORO_SUSPENDED:
                task._next_send = outcome.Error(Boom())
        else:
            lose_phone = self.fault == "lose phone"
            ours, theirs = (self.phone, self.caller) if lose_phone else (self.agent, self.voice)
            ours.is_lost = True
            theirs.send_stream.close()
            theirs.receive_stream.close()

    def broken_promises(self) -> list[str]:
        """List what must hold after any fault, and did not."""
        broken = []
        if self.ended_at - max(self.struck_at, 0) > TEARDOWN:
            broken.append(f"it took {self.ended_at - self.struck_at} s to end")
        if not (self.phone.is_closed and self.agent.is_closed):
            broken.append("a socket is open")
        if not (self.error is None or self.fault == "raise"):
            broken.append(f"an exception came out: {self.error!r}")
        if self.call.outcome == "crashed: Boom()" and self.error is None:
            broken.append("the bug was swallowed")
        if self.outcome_then and self.call.outcome != self.outcome_then:
            broken.append(f"{self.outcome_then} became {self.call.outcome}")
        if self.call.outcome not in {HANG_UP, self.outcome_then, *OUTCOMES[self.fault]}:
            broken.append(f"{self.fault} was recorded as {self.call.outcome!r}")
        return broken


HANG_UP = "the caller hung up"
OUTCOMES: dict[Fault | None, set[str]] = {
    None: set(),
    "cancel": {"cancelled from outside"},
    "raise": {"crashed: Boom()"},
    "lose phone": {"the phone was lost"},
    "lose agent": {"the agent was lost"},
}


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_call_without_a_fault(stubborn: bool) -> None:
    run = Run(stubborn=stubborn)
    assert run.heard == b"one two "
    assert run.said == b"one two " + (b"" if stubborn else b"goodbye")
    assert run.call.outcome == HANG_UP
    assert run.error is None
    assert run.broken_promises() == []
    assert run.ended_at == pytest.approx(TEARDOWN * 0.85 if stubborn else 0)


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("fault", ["cancel", "raise", "lose phone", "lose agent"])
def test_every_promise_holds_after_a_fault_at_every_step(fault: Fault, stubborn: bool) -> None:
    steps = Run(fault, stubborn=stubborn).steps
    assert steps > 40, "the call is too short to prove anything"
    runs = [Run(fault, at, stubborn=stubborn) for at in range(steps)]
    assert {run.at: broken for run in runs if (broken := run.broken_promises())} == {}
    assert OUTCOMES[fault] & {run.call.outcome for run in runs}, "the fault never struck"


class TheLastSignCounts(Call):
    def end(self, outcome: str, last_words: float = 0.0) -> None:
        self.outcome = ""
        super().end(outcome, last_words)


class ActsBeforeItRecords(Call):
    async def watch(self, task: Callable[[], Awaitable[None]]) -> None:
        await task()


class StacksTimeouts(Call):
    def start_clock(self) -> float:
        return trio.current_time() + TEARDOWN * 0.85


class ShieldsWithoutADeadline(Call):
    async def close(self, socket: trio.abc.Stream) -> None:
        with trio.CancelScope(shield=True):
            await socket.aclose()


class SwallowsWhatItDoesNotKnow(Call):
    async def watch(self, task: Callable[[], Awaitable[None]]) -> None:
        with suppress(Exception):
            await super().watch(task)


@pytest.mark.parametrize(
    ("kind", "fault", "breaks"),
    [
        (TheLastSignCounts, "lose phone", "became"),
        (ActsBeforeItRecords, "raise", "raise was recorded as 'cancelled from outside'"),
        (StacksTimeouts, "lose phone", "s to end"),
        (ShieldsWithoutADeadline, "cancel", "s to end"),
        (SwallowsWhatItDoesNotKnow, "raise", "the bug was swallowed"),
    ],
)
def test_each_rule_is_needed(kind: type[Call], fault: Fault, breaks: str) -> None:
    """With a rule broken, some step of the sweep finds a promise broken."""
    steps = Run(fault, stubborn=True).steps
    runs = (Run(fault, at, stubborn=True, kind=kind) for at in range(steps))
    assert any(breaks in broken for run in runs for broken in run.broken_promises())


def test_the_page_shows_this_very_file() -> None:
    page = (ROOT / "bridge/call/README.md").read_text()
    assert f"```python\n{(ROOT / 'tests/unit/call/skeleton.py').read_text()}```" in page
