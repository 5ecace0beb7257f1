"""One direction of one call as the load generator sees it: stamped frames in, delays out. Sans-I/O.

A µ-law frame may hold any bytes, so each carries its identity: a mark, the call's number and its
own number in the flow, in decimal digits. Digits survive a server that converts µ-law to PCM and
back, which turns 0x7F into 0xFF. A table holds the time at which each number was sent. The
receiving end splits messages of any size back into the frames of the sender.

Two delays are taken, because the server may send larger frames than it receives. The *total* delay
of a frame includes the time it waited for its larger frame to fill. The last frame of each message
waited for nothing: its delay is what is left *beyond framing*. All times are in nanoseconds of one
monotonic clock, which both ends share. Where both ends are the phone's, the delay is a round trip.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final

FRAME_BYTES: Final = 160
"""20 ms of µ-law at 8 kHz, what a phone sends and plays in one piece."""

FRAME_NS: Final = 20_000_000

_MARK: Final = b"\x01\x02\x03\x04"
_CALL_ENDS: Final = len(_MARK) + 8
_STAMP_ENDS: Final = _CALL_ENDS + 8
# Not µ-law silence, which the server may insert itself.
_FILLER: Final = b"\x55" * (FRAME_BYTES - _STAMP_ENDS)
_SILENCE: Final = b"\xff"


@dataclass
class Window:
    """The period in which frames are sent whose delays count, in ns."""

    begins: float = float("inf")
    ends: float = float("inf")


@dataclass
class Integrity:
    """Damage to audio, in frames. `foreign` frames belong to another call or to none."""

    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    foreign: int = 0

    @property
    def faults(self) -> int:
        """The number of frames that did not arrive once, whole and in order."""
        return self.lost + self.duplicated + self.reordered + self.foreign

    def add(self, other: Integrity) -> None:
        """Add the other's counts."""
        self.sent += other.sent
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.reordered += other.reordered
        self.foreign += other.foreign


class Flow:
    """Frames of one call in one direction, numbered from 0. `call` is below 10**8."""

    def __init__(self, call: int, window: Window) -> None:
        self._identity = b"%b%08d" % (_MARK, call)
        self._window = window
        self._sent_at = array("q")
        self._seen = bytearray()
        self._arrived = 0
        self._highest = -1
        self._rest = b""
        self._found = Integrity()
        self.silence_bytes = 0
        self.messages = 0
        self.totals = array("q")
        self.beyond_framing = array("q")

    def next_frame(self, now: int) -> bytes:
        """Return the next frame, stamped as sent `now`."""
        number = len(self._sent_at)
        self._sent_at.append(now)
        self._seen.append(0)
        return b"%b%08d%b" % (self._identity, number, _FILLER)

    def arrived(self, audio: bytes, now: int) -> None:
        """Account for the audio of one message at the receiving end."""
        self.messages += 1
        if audio[:1] == _SILENCE and audio.count(_SILENCE) == len(audio):
            # Inserted by the server where the phone sent nothing.
            self.silence_bytes += len(audio)
            return
        if self._rest:
            audio = self._rest + audio
        whole = len(audio) - len(audio) % FRAME_BYTES
        self._rest = audio[whole:]
        last = -1
        for start in range(0, whole, FRAME_BYTES):
            number = self._number(audio, start)
            if number is None:
                if audio.count(_SILENCE, start, start + FRAME_BYTES) == FRAME_BYTES:
                    self.silence_bytes += FRAME_BYTES  # the agent's echo, sent on with other audio
                else:
                    self._found.foreign += 1
                continue
            self._account(number)
            last = number
            sent_at = self._sent_at[number]
            if self._window.begins <= sent_at < self._window.ends:
                self.totals.append(now - sent_at)
        if last >= 0 and self._window.begins <= self._sent_at[last] < self._window.ends:
            self.beyond_framing.append(now - self._sent_at[last])

    def _number(self, audio: bytes, start: int) -> int | None:
        """The number of the frame at `start`; None if it is not a frame of this flow."""
        if audio[start : start + _CALL_ENDS] != self._identity:
            return None
        digits = audio[start + _CALL_ENDS : start + _STAMP_ENDS]
        if not digits.isdigit() or (number := int(digits)) >= len(self._sent_at):
            return None
        return number

    def _account(self, number: int) -> None:
        if self._seen[number]:
            self._found.duplicated += 1
            return
        self._seen[number] = 1
        self._arrived += 1
        if number < self._highest:
            self._found.reordered += 1
        else:
            self._highest = number

    @property
    def complete(self) -> bool:
        """Whether every frame that was sent has arrived."""
        return self._arrived == len(self._sent_at)

    @property
    def integrity(self) -> Integrity:
        """The integrity of the frames sent so far."""
        sent = len(self._sent_at)
        found = self._found
        return Integrity(
            sent, sent - self._arrived, found.duplicated, found.reordered, found.foreign
        )
