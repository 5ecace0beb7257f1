"""The miniature call of bridge/call/README.md, swept: a fault at every scheduling step.

The recipe, for any server: play a scenario once and count its steps; play it again for each step
and each fault, with the fault injected there; check the same promises after each run.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import outcome
import pytest
import trio
import trio.testing
from trio._core import _run

from tests.unit.call.skeleton import TEARDOWN, Call

SOURCE = Path(__file__).with_name("skeleton.py").read_text()
PAGE = Path(__file__).parents[3] / "bridge/call/README.md"
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

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
            if task.name.endswith(".part") and state == inspect.CORO_SUSPENDED:
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
        if self.call.outcome == "Boom" and self.error is None:
            broken.append("the bug was swallowed")
        if self.outcome_then and self.call.outcome != self.outcome_then:
            broken.append(f"{self.outcome_then} became {self.call.outcome}")
        if self.call.outcome not in {HANG_UP, self.outcome_then, *OUTCOMES[self.fault]}:
            broken.append(f"{self.fault} was recorded as {self.call.outcome!r}")
        return broken


HANG_UP = "the caller hung up"
OUTCOMES: dict[Fault | None, set[str]] = {
    None: set(),
    "cancel": {"Cancelled"},
    "raise": {"Boom"},
    "lose phone": {"a peer was lost"},
    "lose agent": {"a peer was lost"},
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


# Each rule, broken by changing its line.
BREAKS = {
    "the last sign counts": ("if not self.outcome:", "if True:"),
    "cleans up before it records": (
        "            await work()",
        "            try:\n                await work()\n            finally:\n                "
        "with trio.CancelScope(shield=True, deadline=self.close_by):\n                    "
        "await own.aclose()",
    ),
    "stacks timeouts": (
        "deadline=self.close_by",
        "deadline=trio.current_time() + 0.85 * TEARDOWN",
    ),
    "shields without a deadline": ("shield=True, deadline=self.close_by", "shield=True"),
    "swallows what it does not know": ("raise  # rule 5", "pass  # rule 5"),
}


@pytest.mark.parametrize(
    ("broken", "fault", "promise"),
    [
        ("the last sign counts", "lose phone", "became"),
        ("cleans up before it records", "raise", "s to end"),
        ("stacks timeouts", "lose phone", "s to end"),
        ("shields without a deadline", "cancel", "s to end"),
        ("swallows what it does not know", "raise", "the bug was swallowed"),
    ],
)
def test_each_rule_is_needed(broken: str, fault: Fault, promise: str) -> None:
    """With a rule broken, some step of the sweep finds a promise broken."""
    line, changed = BREAKS[broken]
    assert SOURCE.count(line) == 1
    names: dict[str, Any] = {"__name__": "broken"}
    exec(compile(SOURCE.replace(line, changed), broken, "exec"), names)
    steps = Run(fault, stubborn=True).steps
    runs = (Run(fault, at, stubborn=True, kind=names["Call"]) for at in range(steps))
    assert any(promise in found for run in runs for found in run.broken_promises())


def test_the_page_shows_this_very_file() -> None:
    assert f"```python\n{SOURCE}```" in PAGE.read_text()
