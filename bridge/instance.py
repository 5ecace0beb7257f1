"""The name of a running server: who asks at two addresses can tell whether it is one server.

`GET /healthz` carries it, and `bridge check` compares what the public address answers with what
this machine does. It is random, says nothing about the server, and is the same in all of a
server's worker processes: they inherit it.
"""

from __future__ import annotations

import os
import secrets
from typing import Final

HEADER: Final = "Bridge-Instance"

_VARIABLE: Final = "BRIDGE_INSTANCE"


def instance() -> str:
    """This server's name; made when first asked for, and inherited by processes started later."""
    return os.environ.setdefault(_VARIABLE, secrets.token_hex(8))
