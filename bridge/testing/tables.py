"""What files that people write have in common: tables whose keys are known, and near misses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from bridge.text import closest


def tables(value: Any) -> list[dict[str, Any]]:
    """The tables in a list; what is none is for the types to complain about."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def unknown_key(where: str, table: Any, kind: type[msgspec.Struct]) -> str:
    """Return what to say about the first key of `table` that `kind` does not have, "" if there is
    none. `where` is how the file calls the table."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            name = f"{where}.{key}" if where else key
            return f"{name}: unknown key; {nearest(key, known)}"
    return ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what was probably meant by `name`, or else what there is, in words."""
    known = list(known)
    if close := closest(name, known):
        return f"did you mean {close}?"
    return f"there are {', '.join(known[:20])}" if known else "there are none; add it"
