"""Files and folders with people's words in them, which are no other user's of the machine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bridge.log import get_logger

log = get_logger(__name__)


def close_to_others(*paths: Path) -> None:
    """Take away what users beside the owner and the group may do with these, where they exist.

    bridge makes them for its own user alone; one that was there before may be open to all. What a
    group may do is left: an operator may have given it that. Blocking; raises nothing.
    """
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & stat.S_IRWXO:
                continue
            path.chmod(mode & ~stat.S_IRWXO)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning(
                "other users of this machine can open what callers said; use chmod o-rwx",
                path=os.fspath(path),
                error=error.strerror,
            )
        else:
            log.warning("was open to other users of this machine; closed", path=os.fspath(path))
