"""A name and a key that all worker processes of one server inherit through the environment.

The name shows whether two addresses lead to one server. `GET /healthz` carries it, and `bridge
check` compares the answer of the public address with that of this machine. It is random and says
nothing about the server.

The key signs the calls' tickets where the operator has set no secret to derive one from, that is,
with signatures switched off and no API token.
"""

from __future__ import annotations

import os
import secrets
from typing import Final

HEADER: Final = "Bridge-Instance"

_VARIABLE: Final = "BRIDGE_INSTANCE"
_TICKET_KEY: Final = "BRIDGE_TICKET_KEY"


def instance() -> str:
    """Return this server's name, made at the first call and inherited by its child processes."""
    return os.environ.setdefault(_VARIABLE, secrets.token_hex(8))


def share_ticket_key() -> None:
    """Make a key for tickets, if there is none, for this process and its child processes.

    `Secrets.from_environment` reads it.
    """
    os.environ.setdefault(_TICKET_KEY, secrets.token_hex(32))
