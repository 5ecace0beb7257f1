"""A configuration file that is changed while it is used."""

from __future__ import annotations

import os
from pathlib import Path

FIRST = 'agent.greeting = "first"\n'


def write(path: Path, text: str, *, age: float = 60) -> None:
    """Replace the file in one step, as an editor does, by one last changed `age` seconds ago."""
    new = path.with_suffix(".new")
    new.write_text(text)
    written = new.stat().st_mtime - age
    os.utime(new, (written, written))
    new.replace(path)
