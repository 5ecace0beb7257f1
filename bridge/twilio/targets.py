"""Whom a caller can be connected to: a phone number, an extension behind one, SIP, a Twilio client.

https://www.twilio.com/docs/voice/twiml/number, .../sip and .../client
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from bridge.text import printable
from bridge.twilio.numbers import EXPECTED_NUMBER, is_number, is_target, known_caller

# The characters of an extension follow the answer by so many half seconds.
_PAUSE: Final = "wwww"

# RFC 3966 writes the extension of a number so. Twilio plays 0-9, # and * as tones, and waits for w.
_EXTENSION: Final = re.compile(r"(?P<number>\+[0-9]+);ext=(?P<digits>[0-9*#w]{1,32})")

# Of an address that is no number, such as one of SIP; far more than any has.
_LONGEST: Final = 255
# https://www.twilio.com/docs/voice/twiml/client
_LONGEST_IDENTITY: Final = 121

EXPECTED: Final = (
    f"{EXPECTED_NUMBER}, with an extension +15551234567;ext=12, sip:user@example.com or client:name"
)


class Target(NamedTuple):
    """One noun of `<Dial>`, its text, and the digits that are sent when it is answered."""

    noun: Literal["Number", "Sip", "Client"]
    address: str
    send_digits: str = ""


def read_target(text: str) -> Target:
    """Return the target that `text` names. Raises ValueError, with the remedy, if it names none."""
    if is_number(text):
        return Target("Number", text)
    extension = _EXTENSION.fullmatch(text)
    if extension and is_number(extension["number"]):
        return Target("Number", extension["number"], _PAUSE + extension["digits"])
    if is_target(text) and len(text) <= _LONGEST and '"' not in text:
        kind, _, identity = text.partition(":")
        if kind != "client":
            return Target("Sip", text)
        if len(identity) <= _LONGEST_IDENTITY:
            return Target("Client", identity)
    raise ValueError(f'{EXPECTED}, got "{printable(text[:40])}"')


def caller_id(configured: str, caller: str, called: str) -> str:
    """Return the number that the dialled phone shows: the configured one, else the caller's, else
    the called one; "" if none of them is a phone number.

    Without callerId Twilio takes the caller's, and refuses the call (error 13214) where that is a
    client, a SIP address or a withheld number.

    https://www.twilio.com/docs/api/errors/13214
    """
    return configured or next(filter(is_number, (known_caller(caller), called)), "")
