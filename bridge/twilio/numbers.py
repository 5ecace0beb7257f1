"""Phone numbers in E.164 and the SIDs of calls, as Twilio writes them."""

from __future__ import annotations

import re
from typing import Final

from bridge.text import printable

# https://www.twilio.com/docs/glossary/what-e164
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")

# https://www.twilio.com/docs/glossary/what-is-a-sid
CALL_SID_PATTERN: Final = "^CA[0-9a-fA-F]{32}$"
_CALL_SID: Final = re.compile(CALL_SID_PATTERN.strip("^$"))

EXPECTED_NUMBER: Final = "expected a phone number such as +15551234567"
HOW_TO_WRITE_NUMBERS: Final = "write + and the country code, then digits alone"


def is_number(number: str) -> bool:
    """Return whether this is a phone number in E.164."""
    return _E164.fullmatch(number) is not None


def check_number(number: str) -> str:
    """Return `number`. Raises ValueError, with the remedy, if it is not in E.164."""
    if not is_number(number):
        raise ValueError(
            f'{EXPECTED_NUMBER}, got "{printable(number[:40])}"; {HOW_TO_WRITE_NUMBERS}'
        )
    return number


def is_call_sid(call_sid: str) -> bool:
    """Return whether this is the SID of a call."""
    return _CALL_SID.fullmatch(call_sid) is not None


def check_call_sid(call_sid: str) -> str:
    """Return `call_sid`. Raises ValueError if it is not the SID of a call."""
    if not is_call_sid(call_sid):
        raise ValueError("a call's SID is CA and 32 hexadecimal digits")
    return call_sid
