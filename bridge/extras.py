"""The optional packages: the extras of pyproject.toml, and the command that installs them."""

from __future__ import annotations


def install_command(extra: str) -> str:
    """Return the command that installs `extra`, for the end of a message that asks for it.

    It installs from the clone: bridge is in no package index, where another project may have the
    name.
    """
    return f"in the folder of bridge's pyproject.toml, run .venv/bin/pip install -e '.[{extra}]'"
