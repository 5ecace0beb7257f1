"""What all worker processes of one server have in common, by inheriting it: its name, and a key.

The name tells who asks at two addresses whether it is one server. `GET /healthz` carries it, and
`bridge check` compares what the public address answers with what this machine does. It is random
and says nothing about the server.

The key signs the calls' tickets where the operator has set no secret from which all processes could
have one: signatures are switched off then, and there is no token.
"""

from __future__ import annotations

import os
import secrets
from typing import Final

HEADER: Final = "Bridge-Instance"

_VARIABLE: Final = "BRIDGE_INSTANCE"
_TICKET_KEY: Final = "BRIDGE_TICKET_KEY"


def instance() -> str:
    """This server's name; made when first asked for, and inherited by processes started later."""
    return os.environ.setdefault(_VARIABLE, secrets.token_hex(8))


def share_ticket_key() -> None:
    """Make a key for tickets, if there is none; `Secrets.from_environment` reads it, in this
    process and in those that are started later."""
    os.environ.setdefault(_TICKET_KEY, secrets.token_hex(32))
