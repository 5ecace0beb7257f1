"""Changing what was handed out, to see that it is a copy."""

from __future__ import annotations

from typing import Any


def scribble(value: Any) -> None:
    """Change every table in `value`, and every list in those."""
    if isinstance(value, dict):
        for inner in value.values():
            scribble(inner)
        value["scribbled"] = True
    elif isinstance(value, list):
        value.append("scribbled")
