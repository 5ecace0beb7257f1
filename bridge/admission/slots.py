"""Who gets a line: how many calls there may be, and which of those that ask are let in.

A call takes a *slot* under its SID when its webhook is answered, long before there is a socket.
The slot is reserved for a while; the socket's `start` binds it, for as long as the call lasts. It
is given back on every way out: by the end of the call, by the end of a socket that never became
one, and by time when no socket came at all. Twilio asks again when an answer was slow, and comes
back to the webhook in mid-call when its TwiML says so: one SID is one slot, however often.

Whoever is refused hears that at the webhook, where words can still be said, and costs no more than
that answer.
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

# From the webhook's answer to the socket's `start`. Twilio opens the socket at once, within a
# second or two over a continent; its own patience with a webhook is 15 s.
RESERVED_SECONDS: Final = 15.0

# Sockets that have not said `start`, when `server.max_calls` is small: they come in bursts.
LEAST_WAITING: Final = 16

_MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls there may be: at once, at once from one caller, and new ones in a minute.
    0 stands for no limit in the latter two."""

    max_calls: int
    per_number: int = 0
    per_minute: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that `config.toml` sets."""
        limits = settings.limits
        return cls(settings.server.max_calls, limits.calls_per_number, limits.calls_per_minute)


class SharedCap(Protocol):
    """A cap on calls that holds for more than this process. Asked after our own limits.

    A SID may be reserved again, by this process or another; that is one slot. What is never bound
    expires by the cap's own rule, because the socket may have reached another process.
    """

    async def reserve(self, call_sid: str) -> str:
        """Take a slot; "", or the reason why there is none. Bounds its own waiting."""
        ...

    def bound(self, call_sid: str) -> None:
        """The call is on, in this process. Does not wait."""
        ...

    def release(self, call_sid: str) -> None:
        """The call is over. Does not wait."""
        ...


@dataclass(slots=True, eq=False)
class _Slot:
    """`expires` is until when, on the admission's clock, it is reserved; `holders` are the sockets
    that it is bound to. `asked`: the shared cap has said yes; `asking` is set while it is asked."""

    caller: str
    expires: float = math.inf
    holders: int = 0
    was_bound: bool = False
    asked: bool = False
    asking: trio.Event | None = None


class Admission:
    """The slots of one process. `clock` gives seconds, always forward.

    Nothing here waits, except for a `shared` cap where there is one.
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
        """How many slots are taken, reserved ones included."""
        self._forget_expired()
        return len(self._slots)

    @property
    def waiting(self) -> int:
        """How many sockets are open that have not said `start`."""
        return self._waiting

    def is_full(self, limits: Limits) -> bool:
        """Whether one more call would be refused, whoever calls."""
        return len(self) >= limits.max_calls

    async def reserve(
        self, call_sid: str, caller: str, limits: Limits, *, seconds: float = RESERVED_SECONDS
    ) -> str:
        """Take a slot for this call for so many seconds; "", or the reason why not.

        A call that has one keeps it, and its time begins anew. `caller` counts towards the limit
        per number; "" towards none. Cancelled, it leaves nothing taken.
        """
        while (slot := self._slots.get(call_sid)) and slot.asking is not None:
            await slot.asking.wait()
        self._forget_expired()
        slot = self._slots.get(call_sid)
        if slot is None:
            if why := self._refusal(caller, limits):
                return why
            slot = self._take(call_sid, caller, limits)
        shared = None if slot.asked else self.shared
        if shared is not None and (why := await self._ask(shared, call_sid, slot)):
            return why
        slot.expires = self._clock() + seconds
        return ""

    def release(self, call_sid: str) -> None:
        """Give back a reserved slot. A bound one stays until its call is over."""
        slot = self._slots.get(call_sid)
        if slot is not None and not slot.holders and slot.asking is None:
            slot.was_bound = True  # it never will be, and the shared cap need not wait for that
            self._drop(call_sid)

    def rename(self, call_sid: str, to: str, *, seconds: float) -> None:
        """A reserved slot's call now has a SID, which may have come from elsewhere already."""
        slot = self._slots.pop(call_sid, None)
        if slot is not None:
            slot.expires = self._clock() + seconds
            self._slots.setdefault(to, slot)
            if self.shared is not None:
                self.shared.release(call_sid)
                slot.asked = False  # its webhook asks under the call's own name

    @contextmanager
    def socket(self, limits: Limits) -> Iterator[Entry | None]:
        """A socket that was opened and may become a call; None if too many are waiting already.
        What it binds is given back when this is left."""
        if self._waiting >= max(limits.max_calls, LEAST_WAITING):
            yield None
            return
        entry = Entry(self, limits)
        self._waiting += 1
        try:
            yield entry
        finally:
            entry._leave()

    # ---- the slots -------------------------------------------------------------------------

    def _refusal(self, caller: str, limits: Limits) -> str:
        if len(self._slots) >= limits.max_calls:
            return "server.max_calls are on"
        if limits.per_number and caller:
            same = sum(slot.caller == caller for slot in self._slots.values())
            if same >= limits.per_number:
                return "limits.calls_per_number from this caller are on"
        if limits.per_minute:
            a_minute_ago = self._clock() - _MINUTE
            while self._began and self._began[0] <= a_minute_ago:
                self._began.popleft()
            if len(self._began) >= limits.per_minute:
                return "limits.calls_per_minute have begun"
        return ""

    def _take(self, call_sid: str, caller: str, limits: Limits) -> _Slot:
        # Not more are remembered than are asked about.
        while len(self._began) >= max(limits.per_minute, 1):
            self._began.popleft()
        self._began.append(self._clock())
        slot = self._slots[call_sid] = _Slot(caller)
        return slot

    async def _ask(self, shared: SharedCap, call_sid: str, slot: _Slot) -> str:
        slot.asking = trio.Event()
        why = "not asked"
        try:
            why = await shared.reserve(call_sid)
        finally:
            slot.asking.set()
            slot.asking = None
            # The socket may have been quicker than the answer.
            slot.asked = not why
            if why and not slot.holders:
                self._drop(call_sid)
        return why

    def _bind(self, call_sid: str, caller: str, limits: Limits, *, promised: bool) -> str:
        self._forget_expired()
        slot = self._slots.get(call_sid)
        if slot is None:
            if not promised and (why := self._refusal(caller, limits)):
                return why
            slot = self._take(call_sid, caller, limits)
        slot.holders += 1
        # The reservation is used up; the webhook may make another in mid-call.
        slot.expires = -math.inf
        slot.was_bound = True
        if self.shared is not None:
            self.shared.bound(call_sid)
        return ""

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
    """One socket's way in."""

    _admission: Admission
    _limits: Limits
    _call_sid: str | None = field(default=None, init=False)
    _waits: bool = field(default=True, init=False)

    def bind(self, call_sid: str, caller: str, *, promised: bool = False) -> str:
        """The socket said `start`: bind the call's slot to it, or take one; "", or why not.

        `promised`: another process has let the call in; it is carried even beyond the limits.
        """
        self._stop_waiting()
        why = self._admission._bind(call_sid, caller, self._limits, promised=promised)
        if not why:
            self._call_sid = call_sid
        return why

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._admission._waiting -= 1

    def _leave(self) -> None:
        self._stop_waiting()
        if self._call_sid is not None:
            self._admission._unbind(self._call_sid)
            self._call_sid = None
