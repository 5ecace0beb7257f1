"""Phone numbers, other addresses of a call's two ends, and SIDs, as Twilio writes them."""

from __future__ import annotations

import re
from typing import Final

from bridge.text import printable

# https://www.twilio.com/docs/glossary/what-e164
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")

# The other forms of From and To: https://www.twilio.com/docs/voice/twiml#twilios-request-to-your-application
# Of any length and with quotes, or else a caller could evade a limit by an odd parameter.
_SIP: Final = re.compile(
    r"(?i:sips?):([^@\s<>]+)@([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?([;?][^\s<>]*)?"
)
_CLIENT: Final = re.compile(r"client:[^\s<>]+")
_WHATSAPP: Final = re.compile(r"whatsapp:" + _E164.pattern)

# What carriers send in place of a withheld number. Twilio passes the word on, or a "number" of the
# digits that spell it on a keypad, such as +266696687.
# https://help.twilio.com/articles/223179988
_WITHHELD: Final = ("anonymous", "blocked", "private", "restricted", "unavailable", "unknown")
_KEYS: Final = str.maketrans("abcdefghijklmnopqrstuvwxyz", "22233344455566677778889999")
WITHHELD: Final = frozenset(
    ("", *_WITHHELD, *(f"+{word.translate(_KEYS)}" for word in _WITHHELD), "+8566696", "+464")
)

# https://www.twilio.com/docs/glossary/what-is-a-sid
CALL_SID_PATTERN: Final = "^CA[0-9a-fA-F]{32}$"
_CALL_SID: Final = re.compile(CALL_SID_PATTERN.strip("^$"))

EXPECTED_NUMBER: Final = "expected a phone number such as +15551234567"
HOW_TO_WRITE_NUMBERS: Final = "write + and the country code, then digits alone"
EXPECTED_TARGET: Final = (
    f"{EXPECTED_NUMBER}, sip:name@example.com or client:name; {HOW_TO_WRITE_NUMBERS}"
)


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


def line_of(address: str) -> str:
    """Return one form of an address of a call: a number, `sip:user@host` without its port and
    parameters and with its host in lower case, or another address as it is."""
    match = _SIP.fullmatch(address)
    return f"sip:{match[1]}@{match[2].lower()}" if match else address


def check_line(address: str) -> str:
    """Return the `line_of` an address that can be called. Raises ValueError, with the remedy."""
    if not any(form.fullmatch(address) for form in (_E164, _SIP, _CLIENT, _WHATSAPP)):
        raise ValueError(
            f'{EXPECTED_NUMBER}, got "{printable(address[:40])}"; {HOW_TO_WRITE_NUMBERS}, or '
            "sip:name@host, client:name, whatsapp:+15551234567"
        )
    return line_of(address)


def known_caller(address: str) -> str:
    """Return the `line_of` a caller, or "" if the number was withheld."""
    line = line_of(address)
    name = line.removeprefix("sip:").partition("@")[0] if line.startswith("sip:") else line
    return "" if name.strip().lower() in WITHHELD else line


def counted_as(caller: str) -> str:
    """Return what a caller is counted as: all who withhold their number count as one caller, or
    else withholding it would evade a limit."""
    return known_caller(caller) or "withheld"


def is_target(target: str) -> bool:
    """Return whether Twilio can call this: a number in E.164, `sip:name@host` or `client:name`.

    https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource (To)
    """
    return any(form.fullmatch(target) for form in (_E164, _SIP, _CLIENT))


def check_target(target: str) -> str:
    """Return `target`. Raises ValueError, with the remedy, if Twilio cannot call it."""
    if not is_target(target):
        raise ValueError(f'{EXPECTED_TARGET}, got "{printable(target[:40])}"')
    return target


def is_call_sid(call_sid: str) -> bool:
    """Return whether this is the SID of a call."""
    return _CALL_SID.fullmatch(call_sid) is not None


def check_call_sid(call_sid: str) -> str:
    """Return `call_sid`. Raises ValueError if it is not the SID of a call."""
    if not is_call_sid(call_sid):
        raise ValueError("a call's SID is CA and 32 hexadecimal digits")
    return call_sid
