"""A local voice agent without a key: it recognises a few phrases and answers aloud.

It speaks Deepgram's protocol through the server of `bridge.testing`. Recognition and synthesis are
real; they run in one process per call (`worker`), so this package can be imported without their
dependencies. Phrases and replies are in a TOML file, `restaurant.toml` or your own: see `dialogue`.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from bridge.extras import install_command

# pocketsphinx has no wheels from here on; the extra `local` in pyproject.toml leaves it out.
PYTHON_WITHOUT_RECOGNITION = (3, 14)


def missing(*, recognition: bool = True) -> str:
    """Return which packages are missing here, in one line with the remedy; "" if none is.

    Without `recognition`, looks only for those of synthesis. Imports none of them.
    """
    if recognition and (why := recognition_unavailable()):
        return why
    needed = ["numpy"] + (["pocketsphinx"] if recognition else [])
    lacking = [name for name in needed if find_spec(name) is None]
    if find_spec("espeakng_loader") is None and shutil.which("flite") is None:
        lacking.append("espeakng-loader")
    if not lacking:
        return ""
    names = " and ".join(lacking)
    return f"the local agent needs {names}, not installed here: {install_command('local')}"


def recognition_unavailable() -> str:
    """Return why this Python cannot have recognition, with the remedy; "" if it can."""
    if sys.version_info < PYTHON_WITHOUT_RECOGNITION or find_spec("pocketsphinx") is not None:
        return ""
    major, minor = PYTHON_WITHOUT_RECOGNITION
    return (
        "the local agent needs pocketsphinx, which has no wheels for this Python "
        f"{sys.version_info.major}.{sys.version_info.minor}: make bridge's .venv with a Python "
        f"older than {major}.{minor}"
    )


def phrases(path: Path | None = None) -> list[str]:
    """Return the phrases that the local agent understands, with an example ⟨marked⟩ in each slot.

    `path` is a dialogue file; the default is the built-in one. Blocks. Raises
    `bridge.local_agent.dialogue.DialogueError` when the file cannot be used.
    """
    from bridge.local_agent.dialogue import load_dialogue  # the workers do not need it

    return load_dialogue(path).readable()
