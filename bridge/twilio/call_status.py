"""The progress of a call, folded from Twilio's status callbacks. Sans-I/O.

Twilio reports each step in its own request, and requests may overtake each other: the highest
SequenceNumber is the latest step, and a call that has ended stays ended. The response to the
request that placed the call is a report, too, and may be read after the first callbacks.

https://www.twilio.com/docs/voice/api/call-resource#statuscallbackevent
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from bridge.twilio.numbers import is_call_sid

# In the order in which a call goes through them; all terminal ones rank last.
_RANK: Final = {"queued": 0, "initiated": 1, "ringing": 2, "in-progress": 3}
TERMINAL: Final = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})

_ANSWERED_BY: Final = re.compile(r"[a-z_]{1,40}")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")

# The most calls that are remembered; more than can be dialled while one of them rings.
REMEMBERED: Final = 1000


class StatusUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """One report about one call.

    `status` is Twilio's CallStatus, "" in the result of answering-machine detection.
    `sequence` orders the reports of a call; None where Twilio gives none. `seconds` is the length
    of the call, and `sip_code` the network's answer, both in the last report only. `answered_by`
    is "human", "machine_end_beep" and the like; "" without answering-machine detection.
    """

    call_sid: str
    status: str = ""
    sequence: int | None = None
    seconds: int | None = None
    sip_code: int | None = None
    answered_by: str = ""
    caller: str = ""
    called: str = ""
    direction: Literal["inbound", "outbound-api"] = "outbound-api"

    @property
    def is_terminal(self) -> bool:
        """Return whether the call has ended."""
        return self.status in TERMINAL


class BadStatus(ValueError):
    """The request is not a status callback of Twilio's."""


def read_status(form: Mapping[str, str]) -> StatusUpdate:
    """Return what the form of a status callback, or of answering-machine detection, reports.

    An unknown status is read as "", since Twilio may add one. Raises BadStatus without a call's
    SID.

    https://www.twilio.com/docs/voice/answering-machine-detection#webhook-parameters
    """
    call_sid = form.get("CallSid", "")
    if not is_call_sid(call_sid):
        raise BadStatus("CallSid: expected CA and 32 hexadecimal digits")
    status, answered_by = form.get("CallStatus", ""), form.get("AnsweredBy", "")
    return StatusUpdate(
        call_sid=call_sid,
        status=status if status in _RANK or status in TERMINAL else "",
        sequence=_number(form.get("SequenceNumber", "")),
        seconds=_number(form.get("CallDuration", "")),
        sip_code=_number(form.get("SipResponseCode", "")),
        answered_by=answered_by if _ANSWERED_BY.fullmatch(answered_by) else "",
        caller=form.get("From", "")[:64],
        called=form.get("To", "")[:64],
        direction="inbound" if form.get("Direction") == "inbound" else "outbound-api",
    )


def fold(known: StatusUpdate | None, update: StatusUpdate) -> StatusUpdate:
    """Return what is known of a call after one more report, independent of the reports' order.

    The status only advances, and a terminal one never changes. A fact that only one of the two has
    is kept.
    """
    if known is None:
        return update
    newer, older = (update, known) if _goes_on(known, update) else (known, update)
    return StatusUpdate(
        call_sid=known.call_sid,
        status=newer.status,
        sequence=newer.sequence,
        seconds=newer.seconds if newer.seconds is not None else older.seconds,
        sip_code=newer.sip_code if newer.sip_code is not None else older.sip_code,
        answered_by=newer.answered_by or older.answered_by,
        caller=newer.caller or older.caller,
        called=newer.called or older.called,
        direction=known.direction,
    )


class Progress:
    """The progress of the latest calls, as reported to this process.

    With several worker processes each receives some of the reports; the store folds those of all.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._calls: OrderedDict[str, StatusUpdate] = OrderedDict()

    def fold(self, update: StatusUpdate) -> StatusUpdate:
        """Add a report, and return what is known now."""
        known = self._calls[update.call_sid] = fold(self._calls.get(update.call_sid), update)
        self._calls.move_to_end(update.call_sid)
        while len(self._calls) > self._remembered:
            self._calls.popitem(last=False)
        return known

    def get(self, call_sid: str) -> StatusUpdate | None:
        """Return what is known of a call, or None."""
        return self._calls.get(call_sid)

    def latest(self) -> list[StatusUpdate]:
        """Return all of them, the most recently reported first."""
        return list(reversed(self._calls.values()))


def _goes_on(known: StatusUpdate, update: StatusUpdate) -> bool:
    """Return whether `update` is a later step of the call than `known`."""
    if not update.status or known.is_terminal:
        return False
    if not known.status or update.is_terminal:
        return True
    if known.sequence is not None and update.sequence is not None:
        return update.sequence > known.sequence
    return _RANK[update.status] > _RANK[known.status]


def _number(text: str) -> int | None:
    return int(text) if _DIGITS.fullmatch(text) else None
