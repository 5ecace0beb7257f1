"""Decides which calls are carried: limits and slots, and the tickets that prove an admission.

A call is admitted twice. Its webhook reserves a slot and is given a ticket; the media socket's
`start` shows the ticket and binds the slot. Both refuse with `NotAdmitted`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Final

import trio

from bridge.admission.slots import RESERVED_SECONDS, Admission, Entry, Limits, NotAdmitted
from bridge.admission.ticket import (
    BadTicket,
    EpochClock,
    Purpose,
    Ticket,
    Tickets,
    digest_of,
    ticket_keys,
)
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings

# How long a slot is reserved where the socket may reach another process, in seconds: as long as
# Twilio usually takes to open it.
RESERVED_BRIEFLY: Final = 5.0

# A server that is told to stop admits new calls for so long, in seconds: until every load balancer
# has seen the 503 of /readyz. HAProxy's three checks, as in deploy/haproxy.cfg, take half of it.
LAME_DUCK_SECONDS: Final = 3.0

# From the webhook's answer to the socket's `start`, in seconds. Longer than a slot is reserved,
# since a late socket may still find a free one.
TICKET_SECONDS: Final = 60.0


def tickets_from(secrets: Secrets) -> Tickets:
    """Return the tickets whose keys come from the first secret that is set, so that all processes
    and machines with the same environment accept each other's; random keys if none is set."""
    return Tickets(
        ticket_keys(
            secrets.twilio_auth_tokens,
            secrets.twilio_signing_keys.values(),
            (secrets.api_token,),
            (secrets.run_token,),
        )
    )


class Entrance:
    """Admits the calls of one process."""

    def __init__(self) -> None:
        self.slots = Admission()
        self.tickets = tickets_from(Secrets())
        self.epoch = EpochClock(time.time, trio.current_time, patience=TICKET_SECONDS)
        # By Trio's clock. Infinite until the server is told to stop.
        self.admits_until = math.inf
        # False if hypercorn itself runs several worker processes, or a proxy knows other servers.
        self.alone = True

    @property
    def draining(self) -> bool:
        """Whether the server was told to stop: new calls had better go elsewhere."""
        return self.admits_until < math.inf

    @property
    def expects_calls(self) -> bool:
        """Whether a call may still begin: new ones are admitted, or one has a slot."""
        return trio.current_time() < self.admits_until or len(self.slots) > 0

    def drain(self, seconds: float = 0) -> None:
        """Admit new calls for `seconds` more at most; those that have a slot may begin later."""
        self.admits_until = min(self.admits_until, trio.current_time() + seconds)

    def is_full(self, settings: Settings) -> bool:
        """Return whether there are as many calls as allowed, reserved ones included."""
        return self.slots.is_full(Limits.of(settings))

    def spans_processes(self, settings: Settings) -> bool:
        """Return whether a call's webhook and its socket may reach different processes."""
        return not self.alone or settings.server.workers > 1

    async def reserve(
        self, settings: Settings, call_sid: str, caller: str, *, seconds: float | None = None
    ) -> None:
        """Reserve a slot for a call that is about to begin, for `seconds`.

        `caller` counts towards the limit per number; "" towards none. Raises NotAdmitted.
        Cancelled, it leaves nothing reserved.
        """
        if trio.current_time() >= self.admits_until and call_sid not in self.slots:
            raise NotAdmitted("the server is stopping")
        if seconds is None:
            # With several processes the ticket admits the call wherever its socket arrives, and
            # the slot reserved here stays unused if that is another process.
            seconds = RESERVED_BRIEFLY if self.spans_processes(settings) else RESERVED_SECONDS
        await self.slots.reserve(call_sid, caller, Limits.of(settings), seconds=seconds)

    def ticket(
        self,
        call_sid: str,
        purpose: Purpose = "phone",
        parameters: Mapping[str, str] | None = None,
    ) -> str:
        """Return a ticket for a call that has a slot, and for no stream with other `parameters`
        as far as these say who calls whom."""
        return self.tickets.issue(
            call_sid,
            self.epoch(),
            lifetime=TICKET_SECONDS,
            purpose=purpose,
            facts="" if parameters is None else digest_of(parameters),
        )

    def read_ticket(self, ticket: str, purpose: Purpose = "softphone") -> Ticket:
        """Return what a ticket says, without using it. Raises BadTicket."""
        return self.tickets.read(ticket, self.epoch(), purpose=purpose)

    def socket(self, settings: Settings) -> AbstractContextManager[Entry]:
        """Count a media socket that has not sent `start` yet, and free what it binds on exit.

        Raises NotAdmitted, on entering, if too many sockets are waiting already.
        """
        return self.slots.socket(Limits.of(settings))

    def admit(
        self,
        settings: Settings,
        entry: Entry,
        purpose: Purpose,
        *,
        call_sid: str,
        caller: str,
        ticket: str,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        """Bind the slot of the call whose `start` a media socket has received. Raises NotAdmitted.

        `purpose` is what the ticket has to be for, and `parameters` are the stream's.
        """
        announced = settings.twilio.require_ticket or purpose == "softphone"
        if announced:
            try:
                facts = digest_of(parameters or {})
                self.tickets.use(ticket, call_sid, self.epoch(), purpose=purpose, facts=facts)
            except BadTicket as error:
                raise NotAdmitted(str(error)) from None
        # A valid ticket proves an admission, perhaps by another worker process.
        promised = announced and self.spans_processes(settings)
        entry.bind(call_sid, caller, promised=promised, limits=Limits.of(settings))
