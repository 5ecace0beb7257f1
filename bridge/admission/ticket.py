"""Tickets: proof that the peer of a media socket was given the socket's address by this server.

The webhook, which only Twilio can reach, puts a ticket among the stream's parameters; the socket's
`start` brings it back. A ticket names the call, its purpose and its expiry, with a MAC over these
and over who calls whom. Any process or machine with the same secret can verify it, and none stores
issued tickets:

    phone.CA0123…cdef.6a1b2c3d.Xk3s9QmZ0aE.<43 characters of HMAC-SHA256>

Only used tickets are remembered, by the process that saw them. A replay to another process would
still have to be for the same call, within seconds, and pass the check of Twilio's signature.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final, Literal, NamedTuple, get_args

from bridge.twilio.twiml import parameter_value

Purpose = Literal["phone", "softphone"]

# Separates the tickets' key from other uses of the same secret.
_LABEL: Final = b"bridge: tickets of calls, 1"

_FORM: Final = re.compile(
    r"(?P<purpose>[a-z]{1,16})\.(?P<call_sid>[A-Za-z0-9]{1,64})\."
    r"(?P<expires>[0-9a-f]{8,12})\.(?P<nonce>[A-Za-z0-9_-]{11})\.(?P<mac>[A-Za-z0-9_-]{43})"
)
_CALL_SID: Final = re.compile(r"[A-Za-z0-9]{1,64}")

# The parameters that decide which agent answers, and as whose call it counts.
_FACTS: Final = ("From", "To", "direction", "agent")

# Used tickets that are remembered until they expire: a hundred a second for ten minutes. Beyond,
# tickets are refused; only Twilio's webhook is given so many, for as many calls.
MAX_USED: Final = 60_000

NO_TICKET: Final = "no ticket"

# In seconds. A smaller step is an ordinary correction of the clock, as NTP makes it.
STEP_SECONDS: Final = 2.0


class Ticket(NamedTuple):
    """What a ticket says. `expires` is in whole seconds of the Unix epoch."""

    purpose: Purpose
    call_sid: str
    expires: int
    nonce: str


class BadTicket(ValueError):
    """The ticket is not valid. The message says why, and quotes nothing of the ticket."""


def ticket_keys(*sources: Iterable[str]) -> tuple[bytes, ...]:
    """Return the keys for `Tickets` from the first source that has a secret: all of its secrets,
    so that tickets signed before a rotation stay valid after it. A random key if none has any.
    """
    for source in sources:
        if chosen := [secret for secret in source if secret]:
            return tuple(
                hmac.new(secret.encode(), _LABEL, hashlib.sha256).digest() for secret in chosen
            )
    return (secrets.token_bytes(32),)


def digest_of(parameters: Mapping[str, str]) -> str:
    """Return a digest of who calls whom, by the parameters of a stream, for a ticket.

    Values count as Twilio passes them on, without regard to white space.
    """
    facts = [" ".join(parameter_value(name, parameters.get(name, "")).split()) for name in _FACTS]
    digest = hashlib.sha256(repr(facts).encode(errors="replace")).digest()
    return "." + base64.urlsafe_b64encode(digest).decode()


class EpochClock:
    """Seconds of the Unix epoch, for tickets.

    When the wall clock is set back, this clock follows at once; when it is set forward, only after
    `patience` seconds, so that no ticket expires early. `wall` is the clock that can be set,
    `steady` the monotonic one.
    """

    def __init__(
        self, wall: Callable[[], float], steady: Callable[[], float], *, patience: float
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._patience = patience
        self._ahead = math.inf
        self._set_forward_at: float | None = None

    def __call__(self) -> float:
        """Return the time now."""
        steady = self._steady()
        ahead = self._wall() - steady
        if ahead <= self._ahead + STEP_SECONDS:
            self._ahead, self._set_forward_at = ahead, None
        elif self._set_forward_at is None:
            self._set_forward_at = steady
        elif steady - self._set_forward_at >= self._patience:
            self._ahead, self._set_forward_at = ahead, None
        return steady + self._ahead


class Tickets:
    """Issues and verifies tickets. The first of `keys` signs, any of them verifies.

    `now` is always in seconds of the Unix epoch. One per process, which remembers used tickets.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("tickets need a key")
        self._keys = tuple(keys)
        self._used: set[str] = set()
        self._expiring: list[tuple[int, str]] = []

    def issue(
        self,
        call_sid: str,
        now: float,
        *,
        lifetime: float,
        purpose: Purpose = "phone",
        facts: str = "",
    ) -> str:
        """Return a ticket for this call: URL-safe text of less than 200 characters, valid once
        within `lifetime` seconds, and only for a call with these `facts` (`digest_of`), if any.

        Raises ValueError for a SID that is not of letters and digits.
        """
        if not _CALL_SID.fullmatch(call_sid):
            raise ValueError("a call SID is of letters and digits")
        nonce = secrets.token_urlsafe(8)
        body = f"{purpose}.{call_sid}.{int(now + lifetime):08x}.{nonce}"
        return f"{body}.{self._mac(self._keys[0], body + facts)}"

    def read(
        self, ticket: str, now: float, *, purpose: Purpose = "phone", facts: str = ""
    ) -> Ticket:
        """Return what a ticket says, whether or not it has been used. Raises BadTicket."""
        form = _FORM.fullmatch(ticket)
        if form is None:
            raise BadTicket("not a ticket" if ticket else NO_TICKET)
        body = ticket.rpartition(".")[0]
        # Every key is tried, so that the time taken does not reveal which one signed.
        held = [
            hmac.compare_digest(self._mac(key, body + bound), form["mac"])
            for key in self._keys
            for bound in ("", facts)
        ]
        if not any(held) or form["purpose"] not in get_args(Purpose):
            raise BadTicket("a ticket that was not signed here, or not for this caller and agent")
        if form["purpose"] != purpose:
            raise BadTicket(f"a ticket for a {form['purpose']}, shown by a {purpose}")
        expires = int(form["expires"], 16)
        if now >= expires:
            raise BadTicket(f"a ticket that expired {now - expires:.0f} seconds ago")
        return Ticket(purpose, form["call_sid"], expires, form["nonce"])

    def use(
        self,
        ticket: str,
        call_sid: str,
        now: float,
        *,
        purpose: Purpose = "phone",
        facts: str = "",
    ) -> None:
        """Use up a ticket for this call, with these `facts` (`digest_of`). Raises BadTicket."""
        read = self.read(ticket, now, purpose=purpose, facts=facts)
        if not hmac.compare_digest(read.call_sid.encode(), call_sid.encode(errors="replace")):
            raise BadTicket("the ticket of another call")
        while self._expiring and self._expiring[0][0] <= now:
            self._used.discard(heappop(self._expiring)[1])
        if read.nonce in self._used:
            raise BadTicket("a ticket that was used before")
        if len(self._used) >= MAX_USED:
            raise BadTicket("too many tickets at once")
        self._used.add(read.nonce)
        heappush(self._expiring, (read.expires, read.nonce))

    @staticmethod
    def _mac(key: bytes, body: str) -> str:
        digest = hmac.new(key, body.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
