"""From an accepted media socket to the facts of the call, which Twilio's `start` brings.

A call begins with `start`. Until then there is only a socket; if it ends, one line is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from bridge.caller import CallInfo
from bridge.outcome import Outcome
from bridge.twilio.media_stream import MediaStream, NotAPhone, PhoneGone
from bridge.twilio.messages import MediaFormat, StartDetails
from bridge.twilio.numbers import known_caller

# The stream parameter that proves that a webhook announced the call: `bridge.admission.ticket`.
TICKET: Final = "ticket"


class NotIntroduced(Exception):
    """A media socket did not become a call. The message says why; `outcome` is for the metrics."""

    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


async def introduction(
    phone: MediaStream, timeout: float, admit: Callable[[StartDetails], object]
) -> CallInfo:
    """Wait at most `timeout` seconds for `start` and return the facts of the call.

    `admit` raises NotIntroduced to refuse a phone. This function raises it for every other failure
    too: a timeout, a lost socket, a bad protocol or audio format. It leaves the socket open, also
    when it is cancelled; closing it is the task of this function's caller.
    """
    try:
        with trio.fail_after(timeout):
            start = await phone.start()
    except trio.TooSlowError:
        waited = f"no start message within {timeout:g} seconds"
        raise NotIntroduced(Outcome.PROTOCOL_ERROR, waited) from None
    except PhoneGone:
        lost = "the phone's socket closed before start"
        raise NotIntroduced(Outcome.PHONE_LOST, lost) from None
    except NotAPhone as error:
        raise NotIntroduced(Outcome.PROTOCOL_ERROR, str(error)) from None
    if start.media_format != MediaFormat():
        other = f"not µ-law at 8 kHz: {start.media_format}"
        raise NotIntroduced(Outcome.PROTOCOL_ERROR, other)
    admit(start)
    return info_of(start.call_sid, start.custom_parameters, start.stream_sid)


def info_of(call_sid: str, parameters: Mapping[str, str], stream_sid: str = "") -> CallInfo:
    """Return the facts of a call from its stream's parameters, without its ticket: the ticket has
    been used, and must not reach prompts, functions or hooks."""
    known = {name: value for name, value in parameters.items() if value and name != TICKET}
    return CallInfo(
        call_sid=call_sid,
        stream_sid=stream_sid,
        caller=known_caller(known.get("From", "")),
        called=known.get("To", ""),
        parameters=known,
    )
