"""Slots: never more than there may be, none that is not given back, and busy for the rest."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
import trio
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.testing import wait_all_tasks_blocked

from bridge.admission.slots import (
    LEAST_WAITING,
    RESERVED_SECONDS,
    Admission,
    Entry,
    Limits,
    NotAdmitted,
)

TWO = Limits(2)


async def reserve(admission: Admission, sid: str, caller: str, limits: Limits) -> str:
    """Reserve a slot, and return the reason if that is refused, else ""."""
    try:
        await admission.reserve(sid, caller, limits)
    except NotAdmitted as error:
        return str(error)
    return ""


def bind(entry: Entry, sid: str, caller: str, *, promised: bool = False) -> str:
    """Bind a slot, and return the reason if that is refused, else ""."""
    try:
        entry.bind(sid, caller, promised=promised)
    except NotAdmitted as error:
        return str(error)
    return ""


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(clock)


async def test_the_cap_is_exact(admission: Admission) -> None:
    assert await reserve(admission, "CA1", "", TWO) == ""
    assert not admission.is_full(TWO)
    assert await reserve(admission, "CA2", "", TWO) == ""
    assert admission.is_full(TWO)
    assert "server.max_calls" in await reserve(admission, "CA3", "", TWO)
    assert len(admission) == 2


async def test_a_webhook_that_is_asked_twice_takes_one_slot(admission: Admission) -> None:
    for _ in range(3):
        assert await reserve(admission, "CA1", "", TWO) == ""
    assert len(admission) == 1
    assert await reserve(admission, "CA2", "", TWO) == ""
    # Also when there is no room for another.
    assert await reserve(admission, "CA1", "", TWO) == ""


async def test_a_reservation_expires(admission: Admission, clock: Clock) -> None:
    await reserve(admission, "CA1", "", Limits(1))
    clock.now = RESERVED_SECONDS - 0.1
    assert await reserve(admission, "CA2", "", Limits(1)) != ""
    await reserve(admission, "CA1", "", Limits(1))  # asked again: its time begins anew
    clock.now = 2 * RESERVED_SECONDS - 0.2
    assert admission.is_full(Limits(1))
    clock.now = 2 * RESERVED_SECONDS
    assert len(admission) == 0
    assert await reserve(admission, "CA2", "", Limits(1)) == ""


async def test_a_bound_slot_lasts_as_long_as_its_socket(admission: Admission, clock: Clock) -> None:
    await reserve(admission, "CA1", "", Limits(1))
    with admission.socket(Limits(1)) as entry:
        assert bind(entry, "CA1", "") == ""
        clock.now = 3600.0
        assert len(admission) == 1
        admission.release("CA1")  # a report that the call has ended comes before the call's end
        assert len(admission) == 1
    assert len(admission) == 0


async def test_every_way_out_gives_the_slot_back(admission: Admission) -> None:
    await reserve(admission, "CA1", "", TWO)

    def crash() -> None:
        with admission.socket(TWO) as entry:
            bind(entry, "CA1", "")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert len(admission) == 0
    await reserve(admission, "CA2", "", TWO)
    with trio.CancelScope() as scope:
        with admission.socket(TWO) as entry:
            bind(entry, "CA2", "")
            scope.cancel()
            await trio.sleep_forever()
    assert (len(admission), admission.waiting) == (0, 0)


async def test_a_call_that_comes_back_to_the_webhook_keeps_its_slot(
    admission: Admission, clock: Clock
) -> None:
    """Its TwiML may redirect it there while the first stream is still being torn down."""
    await reserve(admission, "CA1", "", Limits(1))
    with admission.socket(Limits(1)) as first:
        bind(first, "CA1", "")
        assert await reserve(admission, "CA1", "", Limits(1)) == ""
    assert len(admission) == 1
    with admission.socket(Limits(1)) as second:
        assert bind(second, "CA1", "") == ""
        assert len(admission) == 1
    assert len(admission) == 0


async def test_a_socket_without_a_reservation_takes_a_slot_if_there_is_one(
    admission: Admission,
) -> None:
    with ExitStack() as stack:
        entries = [stack.enter_context(admission.socket(Limits(1))) for _ in range(3)]
        assert bind(entries[0], "CA1", "") == ""
        assert "server.max_calls" in bind(entries[1], "CA2", "")
        # Another process has let it in: a call is not dropped for that.
        assert bind(entries[2], "CA3", "", promised=True) == ""
        assert len(admission) == 2
    assert len(admission) == 0


async def test_a_caller_has_so_many_calls_at_once(admission: Admission) -> None:
    limits = Limits(10, per_number=1)
    assert await reserve(admission, "CA1", "+15551234567", limits) == ""
    assert await reserve(admission, "CA1", "+15551234567", limits) == ""
    assert "calls_per_number" in await reserve(admission, "CA2", "+15551234567", limits)
    assert await reserve(admission, "CA3", "+15557654321", limits) == ""
    # Outbound calls and softphones count towards no caller's limit.
    assert await reserve(admission, "CA4", "", limits) == ""
    assert await reserve(admission, "CA5", "", limits) == ""
    admission.release("CA1")
    assert await reserve(admission, "CA2", "+15551234567", limits) == ""


async def test_so_many_calls_begin_in_any_minute(admission: Admission, clock: Clock) -> None:
    limits = Limits(10, per_minute=2)
    for at, sid in ((0.0, "CA1"), (30.0, "CA2")):
        clock.now = at
        assert await reserve(admission, sid, "", limits) == ""
        admission.release(sid)
    clock.now = 59.9
    assert "calls_per_minute" in await reserve(admission, "CA3", "", limits)
    clock.now = 60.0
    assert await reserve(admission, "CA3", "", limits) == ""
    # Asked again it is no new call, and who is refused does not count.
    assert await reserve(admission, "CA3", "", limits) == ""
    clock.now = 89.9
    assert await reserve(admission, "CA4", "", limits) != ""
    clock.now = 90.0
    assert await reserve(admission, "CA4", "", limits) == ""


async def test_sockets_that_have_not_started_are_bounded(admission: Admission) -> None:
    with ExitStack() as stack:
        entries = [stack.enter_context(admission.socket(TWO)) for _ in range(LEAST_WAITING)]
        with pytest.raises(NotAdmitted, match="sockets"), admission.socket(TWO):
            pass
        # A socket that has started no longer waits, also if it was refused.
        bind(entries[0], "CA1", "")
        assert admission.waiting == LEAST_WAITING - 1
        with admission.socket(TWO):
            pass
    assert admission.waiting == 0


async def test_an_outbound_call_keeps_its_slot_when_it_gets_its_name(
    admission: Admission, clock: Clock
) -> None:
    await reserve(admission, "dial 1", "", Limits(1))
    admission.rename("dial 1", "CA1", seconds=90)
    clock.now = 89.0
    assert await reserve(admission, "CA2", "", Limits(1)) != ""
    assert await reserve(admission, "CA1", "", Limits(1)) == ""  # its webhook
    assert len(admission) == 1
    admission.rename("dial 2", "CA9", seconds=90)  # expired meanwhile: nothing to rename
    assert len(admission) == 1


class Cap:
    """A cap of a whole account, which takes its time to answer."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: set[str] = set()
        self.answers = trio.Event()
        self.asked: Counter[str] = Counter()

    async def reserve(self, call_sid: str) -> None:
        self.asked[call_sid] += 1
        await self.answers.wait()
        if call_sid not in self.held and len(self.held) >= self.size:
            raise NotAdmitted("the account has no more")
        self.held.add(call_sid)

    def bound(self, call_sid: str) -> None:
        self.held.add(call_sid)

    def release(self, call_sid: str) -> None:
        self.held.discard(call_sid)


async def test_a_shared_cap_may_refuse_what_we_would_take(clock: Clock) -> None:
    cap = Cap(1)
    cap.answers.set()
    admission = Admission(clock, cap)
    assert await reserve(admission, "CA1", "", TWO) == ""
    assert await reserve(admission, "CA2", "", TWO) == "the account has no more"
    assert len(admission) == 1
    assert await reserve(admission, "CA1", "", TWO) == ""
    assert cap.asked == {"CA1": 1, "CA2": 1}
    with admission.socket(TWO) as entry:
        bind(entry, "CA1", "")
    assert cap.held == set()
    # It is not asked when there is no room here.
    assert await reserve(admission, "CA3", "", Limits(0)) != ""
    assert cap.asked["CA3"] == 0


async def test_a_slot_is_held_while_a_shared_cap_is_asked(clock: Clock) -> None:
    """So that no other call takes it; a second request for the same call waits for the first."""
    cap = Cap(1)
    admission = Admission(clock, cap)
    answers: list[str] = []

    async def webhook(sid: str) -> None:
        answers.append(await reserve(admission, sid, "", Limits(1)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(webhook, "CA1")
        await wait_all_tasks_blocked()
        nursery.start_soon(webhook, "CA1")
        await wait_all_tasks_blocked()
        assert "server.max_calls" in await reserve(admission, "CA2", "", Limits(1))
        clock.now = 100.0
        assert len(admission) == 1
        cap.answers.set()
    assert answers == ["", ""]
    assert cap.asked == {"CA1": 1}


async def test_a_webhook_that_is_cancelled_leaves_nothing(clock: Clock) -> None:
    admission = Admission(clock, Cap(1))
    with trio.move_on_after(0):
        await reserve(admission, "CA1", "", TWO)
    assert len(admission) == 0


async def test_what_expires_unbound_is_left_to_the_shared_cap(clock: Clock) -> None:
    """The socket may have reached another process, which holds the slot there."""
    cap = Cap(2)
    cap.answers.set()
    admission = Admission(clock, cap)
    await reserve(admission, "CA1", "", TWO)
    clock.now = RESERVED_SECONDS
    assert len(admission) == 0
    assert cap.held == {"CA1"}
    await reserve(admission, "CA1", "", TWO)
    admission.release("CA1")  # but the caller who hung up before is nowhere
    assert cap.held == set()


class Calls(RuleBasedStateMachine):
    """Anything in any order: webhooks, sockets, starts, ends, time."""

    CAP = 3
    SIDS = st.sampled_from([f"CA{number}" for number in range(8)])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.admission = Admission(self.clock)
        self.limits = Limits(self.CAP, per_number=2, per_minute=12)
        self.open: list[tuple[ExitStack, Entry]] = []
        self.bound: Counter[str] = Counter()
        self.names: dict[int, str] = {}

    def run(self, sid: str, caller: str) -> str:
        answer: list[str] = []

        async def main() -> None:
            answer.append(await reserve(self.admission, sid, caller, self.limits))

        trio.run(main)
        return answer[0]

    @rule(sid=SIDS, caller=st.sampled_from(["+1", "+2", ""]))
    def webhook(self, sid: str, caller: str) -> None:
        self.run(sid, caller)

    @rule()
    def opens(self) -> None:
        stack = ExitStack()
        try:
            entry = stack.enter_context(self.admission.socket(self.limits))
        except NotAdmitted:
            assert self.admission.waiting >= LEAST_WAITING
        else:
            self.open.append((stack, entry))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), sid=SIDS)
    def starts(self, data: st.DataObject, sid: str) -> None:
        position = data.draw(st.integers(0, len(self.open) - 1))
        _, entry = self.open[position]
        if id(entry) not in self.names and bind(entry, sid, "+1") == "":
            self.names[id(entry)] = sid
            self.bound[sid] += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def closes(self, data: st.DataObject) -> None:
        stack, entry = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        stack.close()
        if (sid := self.names.pop(id(entry), None)) is not None:
            self.bound[sid] -= 1

    @rule(sid=SIDS)
    def is_reported_as_over(self, sid: str) -> None:
        self.admission.release(sid)

    @rule(sid=SIDS, to=SIDS)
    def is_named(self, sid: str, to: str) -> None:
        if not self.bound[sid]:
            self.admission.rename(sid, to, seconds=30)

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def there_are_never_too_many(self) -> None:
        live = sum(count > 0 for count in self.bound.values())
        assert live <= len(self.admission) <= self.CAP
        assert 0 <= self.admission.waiting <= len(self.open)

    def teardown(self) -> None:
        for stack, _ in self.open:
            stack.close()
        self.clock.now += 1000
        assert (len(self.admission), self.admission.waiting) == (0, 0)
        answers = [self.run(f"CA9{number}", "") for number in range(self.CAP + 1)]
        assert [not why for why in answers] == [True] * self.CAP + [False]


TestCalls = Calls.TestCase
TestCalls.settings = effort(max_examples=30, stateful_step_count=30)
