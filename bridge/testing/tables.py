"""Tables of hand-written files: unknown keys are reported with the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from bridge.text import closest


def tables(value: Any) -> list[dict[str, Any]]:
    """Return the tables in a list. Other items are skipped: type checks report them."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def unknown_key(where: str, table: Any, kind: type[msgspec.Struct]) -> str:
    """Return the error for the first key of `table` that `kind` does not have, "" if there is none.
    `where` is the table's name in the file."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            name = f"{where}.{key}" if where else key
            return f"{name}: unknown key; {nearest(key, known)}"
    return ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion in words: the known name closest to `name`, or a list of known names."""
    known = list(known)
    if close := closest(name, known):
        return f"did you mean {close}?"
    return f"there are {', '.join(known[:20])}" if known else "there are none; add it"
