"""A name and an API token that all worker processes of one server share.

bridge's own workers inherit both through the environment. hypercorn's own parent process has not
imported bridge, so its workers derive both from the key that multiprocessing makes in that parent
and passes on to its children alone.

The name shows whether two addresses lead to one server. `GET /healthz` carries it, and `bridge
check` compares the answer of the public address with that of this machine.

The token admits operators where none is set in BRIDGE_API_TOKEN. It is another one in each run.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from multiprocessing import current_process
from typing import Final

HEADER: Final = "Bridge-Instance"

_VARIABLE: Final = "BRIDGE_INSTANCE"
_RUN_TOKEN: Final = "BRIDGE_RUN_TOKEN"  # noqa: S105 - a variable's name


def instance() -> str:
    """Return this server's name, made at the first call and inherited by its child processes."""
    return os.environ.setdefault(_VARIABLE, _of_this_run("name")[:16])


def share_run_token() -> None:
    """Make an API token for this run, if there is none, for this process and its children.

    `Secrets.from_environment` reads it.
    """
    os.environ.setdefault(_RUN_TOKEN, _of_this_run("API token")[:32])


def _of_this_run(what: str) -> str:
    return hmac.new(current_process().authkey, what.encode(), hashlib.sha256).hexdigest()
