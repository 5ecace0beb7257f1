"""The log of a call on the caller's side: events, faults and audio, and waiting for them.

All times are seconds since the call was placed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import trio

from bridge.testing.phone.playback import PlaybackBuffer
from bridge.testing.speech import RATE

EventKind = Literal[
    "dialling",  # text: the webhook's address
    "twiml",  # text: the verb Twilio carries out
    "note",  # text: where this phone differs from Twilio
    "started",  # text: the stream SID
    "say",  # the caller begins to speak; size: bytes of µ-law
    "said",  # the caller has finished
    "dtmf",  # text: the digit
    "media",  # size: bytes of µ-law received
    "mark",  # text: the name
    "mark_echoed",  # text: the name
    "clear",  # size: bytes discarded unheard
    "fault",  # text: the fault
    "closed",  # the server closed the websocket; text: close code and reason
    "ended",  # the call has ended; text: how
]

# Bounds the memory that a faulty server can fill with faults.
MAX_FAULTS = 1000


@dataclass(frozen=True, slots=True)
class PhoneEvent:
    """Something that happened `at` seconds after the call was placed."""

    at: float
    kind: EventKind
    text: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """An error that Twilio's debugger would report about the server; `code` is Twilio's."""

    code: int
    detail: str
    at: float

    def __str__(self) -> str:
        return f"{self.code} at {self.at:.2f} s: {self.detail}"


class PhoneFault(AssertionError):
    """The server made mistakes that Twilio would report; lists every fault."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("Twilio would report:\n" + "\n".join(f"  {fault}" for fault in faults))
        self.faults = faults


class PhoneTimeoutError(trio.TooSlowError):
    """The awaited event did not happen in time."""


class CallEndedError(Exception):
    """The call, or its media stream, ended before this was done."""


class CallLog:
    """Records one call; `on_event` is called with each event as it happens."""

    def __init__(self, on_event: Callable[[PhoneEvent], None] | None = None) -> None:
        self.began = trio.current_time()
        self.ended_at: float | None = None
        self.events: list[PhoneEvent] = []
        self.faults: list[Fault] = []
        self.sent_audio = bytearray()
        self.received_audio = bytearray()
        self.playback = PlaybackBuffer(self.began)
        self.changed = trio.Event()  # set, and replaced, with every event
        self._on_event = on_event

    def clock(self) -> float:
        """Return the time on Trio's clock, or when the call ended."""
        return trio.current_time() if self.ended_at is None else self.ended_at

    def elapsed(self) -> float:
        """Seconds since the call was placed, until it ended."""
        return self.clock() - self.began

    def note(self, kind: EventKind, text: str = "", size: int = 0) -> None:
        """Record an event and wake the waiting tasks."""
        event = PhoneEvent(self.elapsed(), kind, text, size)
        self.events.append(event)
        self.wake()
        if self._on_event is not None:
            self._on_event(event)

    def wake(self) -> None:
        """Wake the waiting tasks to check their conditions."""
        self.changed.set()
        self.changed = trio.Event()

    def fault(self, code: int, detail: str) -> None:
        """Record an error that Twilio would report; beyond MAX_FAULTS it is dropped."""
        if len(self.faults) < MAX_FAULTS:
            fault = Fault(code, detail, self.elapsed())
            self.faults.append(fault)
            self.note("fault", str(fault))

    async def wait(self, due_at: Callable[[], float], seconds: float, what: str) -> None:
        """Wait until `due_at()`, on Trio's clock; it is called again after each event.

        `math.inf` means that no time is known yet. Raises `PhoneTimeoutError` after `seconds`.
        """
        with trio.move_on_after(seconds):
            while (due := due_at()) > trio.current_time():
                changed = self.changed
                with trio.move_on_at(due):
                    await changed.wait()
            return
        raise PhoneTimeoutError(f"not within {seconds:g} s: {what}")

    def heard_at(self, seconds: float) -> float:
        """Return when `seconds` of audio will have been heard; `math.inf` if unknown."""
        now = trio.current_time()
        missing = seconds - self.playback.heard_bytes(now) / RATE
        if missing <= 0:
            return now
        # Whole samples have been heard: half a sample more makes the last one count.
        due = now + missing + 0.5 / RATE
        # Heard bytes are rounded down, so `due` may lie up to a sample and a half late.
        return due if due <= self.playback.runs_out_at + 2 / RATE else math.inf
