"""The slots of calls: how many calls one process carries, and when a slot is free again.

A call takes a *slot* under its SID when its webhook is answered, before there is a socket. The slot
is reserved for some seconds; the socket's `start` binds it for as long as the call lasts. It is
freed when the call ends, when a socket closes before it became a call, and, if no socket arrives,
when the reservation expires. Twilio repeats a webhook that was slow, and asks it again in mid-call
if its TwiML says so: one SID has one slot, however often its webhook is asked.

A refused call ends at the webhook, where Twilio can still speak to the caller; it costs one answer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from bridge.config.settings import Settings

# From the webhook's answer to the socket's `start`. Twilio opens the socket within a second or two,
# and waits for a webhook for 15 s at most.
RESERVED_SECONDS: Final = 15.0

# Sockets without a `start`, where `server.max_calls` is smaller: they arrive in bursts.
LEAST_WAITING: Final = 16

_MINUTE: Final = 60.0


class NotAdmitted(Exception):
    """The call is not carried. The message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most calls: at once, at once from one caller, and new ones in a minute. In the latter two
    0 means no limit."""

    max_calls: int
    per_number: int = 0
    per_minute: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that `config.toml` sets."""
        limits = settings.limits
        return cls(settings.server.max_calls, limits.calls_per_number, limits.calls_per_minute)


class SharedCap(Protocol):
    """A limit on calls that several processes share. Asked after this process's own limits.

    A SID that is reserved again, by any process, keeps its one slot. A slot that is never bound
    expires by the shared limit's own rule, because the socket may have reached another process.
    """

    async def reserve(self, call_sid: str) -> None:
        """Take a slot. Raises NotAdmitted. Has a deadline of its own."""
        ...

    def bound(self, call_sid: str) -> None:
        """Note that this process carries the call. Does not wait."""
        ...

    def release(self, call_sid: str) -> None:
        """Note that the call has ended. Does not wait."""
        ...


@dataclass(slots=True, eq=False)
class _Slot:
    """`expires` is the end of its reservation on the admission's clock; `holders` is the number of
    sockets it is bound to. `asked`: the shared limit has a slot for it; `asking` is set while the
    shared limit is being asked."""

    caller: str
    expires: float = math.inf
    holders: int = 0
    was_bound: bool = False
    asked: bool = False
    asking: trio.Event | None = None


class Admission:
    """The slots of one process. `clock` is monotonic, in seconds.

    Nothing waits but `reserve`, and that only for a `shared` limit.
    """

    def __init__(
        self, clock: Callable[[], float] = trio.current_time, shared: SharedCap | None = None
    ) -> None:
        self.shared = shared
        self._clock = clock
        self._slots: dict[str, _Slot] = {}
        self._began: deque[float] = deque()
        self._waiting = 0

    def __len__(self) -> int:
        """Return the number of slots taken, reserved ones included."""
        self._forget_expired()
        return len(self._slots)

    def __contains__(self, call_sid: str) -> bool:
        """Return whether this call has a slot."""
        self._forget_expired()
        return call_sid in self._slots

    @property
    def waiting(self) -> int:
        """The number of open sockets without a `start`."""
        return self._waiting

    def is_full(self, limits: Limits) -> bool:
        """Return whether the next call would be refused, from any caller."""
        return len(self) >= limits.max_calls

    async def reserve(
        self, call_sid: str, caller: str, limits: Limits, *, seconds: float = RESERVED_SECONDS
    ) -> None:
        """Reserve a slot for this call, for `seconds`. Raises NotAdmitted.

        A call that has a slot keeps it, and its reservation starts again. `caller` counts towards
        the limit per number; "" towards none. Cancelled, it leaves nothing reserved.
        """
        while (slot := self._slots.get(call_sid)) and slot.asking is not None:
            await slot.asking.wait()
        self._forget_expired()
        slot = self._slots.get(call_sid)
        if slot is None:
            self._check(caller, limits)
            slot = self._take(call_sid, caller, limits)
        if not slot.asked and self.shared is not None:
            await self._ask(self.shared, call_sid, slot)
        slot.expires = self._clock() + seconds

    def release(self, call_sid: str) -> None:
        """Free a reserved slot. A bound slot stays until its call has ended."""
        slot = self._slots.get(call_sid)
        if slot is not None and not slot.holders and slot.asking is None:
            slot.was_bound = True  # it never will be: the shared limit need not wait for that
            self._drop(call_sid)

    def rename(self, call_sid: str, to: str, *, seconds: float) -> None:
        """Give a reserved slot its call's SID; its webhook may have reserved one already."""
        slot = self._slots.pop(call_sid, None)
        if slot is not None:
            slot.expires = self._clock() + seconds
            self._slots.setdefault(to, slot)
            if self.shared is not None:
                self.shared.release(call_sid)
                slot.asked = False  # its webhook asks under the call's SID

    @contextmanager
    def socket(self, limits: Limits) -> Iterator[Entry]:
        """Count an open socket that has not sent `start` yet, and free what it binds on exit.

        Raises NotAdmitted, on entering, if too many sockets are waiting already.
        """
        if self._waiting >= max(limits.max_calls, LEAST_WAITING):
            raise NotAdmitted("too many sockets are waiting to start")
        entry = Entry(self, limits)
        self._waiting += 1
        try:
            yield entry
        finally:
            entry._leave()

    # ---- the slots -------------------------------------------------------------------------

    def _check(self, caller: str, limits: Limits) -> None:
        if len(self._slots) >= limits.max_calls:
            raise NotAdmitted("server.max_calls are on")
        if limits.per_number and caller:
            same = sum(slot.caller == caller for slot in self._slots.values())
            if same >= limits.per_number:
                raise NotAdmitted("limits.calls_per_number from this caller are on")
        if limits.per_minute:
            a_minute_ago = self._clock() - _MINUTE
            while self._began and self._began[0] <= a_minute_ago:
                self._began.popleft()
            if len(self._began) >= limits.per_minute:
                raise NotAdmitted("limits.calls_per_minute have begun")

    def _take(self, call_sid: str, caller: str, limits: Limits) -> _Slot:
        # No more are remembered than the limit counts.
        while len(self._began) >= max(limits.per_minute, 1):
            self._began.popleft()
        self._began.append(self._clock())
        slot = self._slots[call_sid] = _Slot(caller)
        return slot

    async def _ask(self, shared: SharedCap, call_sid: str, slot: _Slot) -> None:
        slot.asking = trio.Event()
        try:
            await shared.reserve(call_sid)
            slot.asked = True
        finally:
            slot.asking.set()
            slot.asking = None
            # The socket may have bound the slot before the answer.
            if not slot.asked and not slot.holders:
                self._drop(call_sid)

    def _bind(self, call_sid: str, caller: str, limits: Limits, *, promised: bool) -> None:
        self._forget_expired()
        slot = self._slots.get(call_sid)
        if slot is None:
            if not promised:
                self._check(caller, limits)
            slot = self._take(call_sid, caller, limits)
        slot.holders += 1
        # The reservation is used; the webhook may make another one in mid-call.
        slot.expires = -math.inf
        slot.was_bound = True
        if self.shared is not None:
            self.shared.bound(call_sid)

    def _unbind(self, call_sid: str) -> None:
        slot = self._slots[call_sid]
        slot.holders -= 1
        self._forget_expired()

    def _drop(self, call_sid: str) -> None:
        slot = self._slots.pop(call_sid, None)
        if slot is not None and slot.was_bound and self.shared is not None:
            self.shared.release(call_sid)

    def _forget_expired(self) -> None:
        now = self._clock()
        gone = [
            call_sid
            for call_sid, slot in self._slots.items()
            if slot.expires <= now and not slot.holders and slot.asking is None
        ]
        for call_sid in gone:
            self._drop(call_sid)


@dataclass(slots=True, eq=False)
class Entry:
    """One media socket on its way to become a call."""

    _admission: Admission
    _limits: Limits
    _call_sid: str | None = field(default=None, init=False)
    _waits: bool = field(default=True, init=False)

    def bind(
        self, call_sid: str, caller: str, *, promised: bool = False, limits: Limits | None = None
    ) -> None:
        """Bind the call's slot to the socket that sent its `start`, or take a slot.

        `promised`: another process has admitted the call, so the limits do not apply. `limits` are
        those of the call's agent. Raises NotAdmitted.
        """
        self._stop_waiting()
        self._admission._bind(call_sid, caller, limits or self._limits, promised=promised)
        self._call_sid = call_sid

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._admission._waiting -= 1

    def _leave(self) -> None:
        self._stop_waiting()
        if self._call_sid is not None:
            self._admission._unbind(self._call_sid)
            self._call_sid = None
