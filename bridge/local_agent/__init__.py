"""A voice agent on this machine: it hears, understands a few phrases, and speaks; no key needed.

It speaks the same protocol as Deepgram's, through the server of `bridge.testing`. Recognition and
synthesis are real, and run in processes of their own (`worker`), one for each call; this package
can be imported without the packages they need. What is said is in a file, `restaurant.toml` or
your own: see `dialogue`.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

INSTALL = "pip install 'bridge[local]'"


def missing(*, recognition: bool = True) -> str:
    """What the local agent lacks on this machine, in one line with the remedy; "" if nothing.

    Without `recognition`: what synthesis alone lacks. Imports none of it.
    """
    needed = ["numpy"] + (["pocketsphinx"] if recognition else [])
    lacking = [name for name in needed if find_spec(name) is None]
    if find_spec("espeakng_loader") is None and shutil.which("flite") is None:
        lacking.append("espeakng-loader")
    if not lacking:
        return ""
    return f"the local agent needs {' and '.join(lacking)}, not installed here: {INSTALL}"


def phrases(path: Path | None = None) -> list[str]:
    """What the local agent understands, one phrase each, with an example ⟨marked⟩ for each slot.

    `path` is a dialogue's file; without it, the one that comes with bridge. Reads it, blocking, and
    raises `bridge.local_agent.dialogue.DialogueError` when it cannot be used.
    """
    from bridge.local_agent.dialogue import load_dialogue  # the workers have no use for it

    return load_dialogue(path).readable()
