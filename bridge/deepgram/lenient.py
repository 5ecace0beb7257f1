"""Read a message whose shape differs a little from the documented one. Sans-I/O.

The protocol grows, and older and self-hosted servers differ: null or a number where text was
expected, an object for text that holds JSON, a field or an identifier left out. Such a message is
read field by field, and what cannot be understood takes its default. A call goes on; a function
call that can be named is answered; an Error is not overlooked.

    wanted    understood as well
    text      a number or a boolean, as it is written; an object or a list, as JSON
    number    text that holds one
    boolean   the texts "true" and "false"
    list      a single item; items that cannot be understood are left out
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import msgspec.inspect as shape


class NotUnderstood(ValueError):
    """A value is not near enough to what was expected."""


def nearest(value: Any, kind: type) -> Any:
    """Return the JSON `value` as a `kind`, a msgspec type. Raises NotUnderstood."""
    return _nearest(value, shape.type_info(kind))


def _nearest(value: Any, wanted: shape.Type) -> Any:
    match wanted:
        case shape.AnyType():
            return value
        case shape.StructType() if isinstance(value, dict):
            return _struct(value, wanted)
        case shape.VarTupleType(item_type=item) if value is not None:
            several = value if isinstance(value, list) else [value]
            return tuple(near for one in several for near in _maybe(one, item))
        case shape.DictType() if isinstance(value, dict):
            return value
        case shape.UnionType(types=types):
            if value is None and wanted.includes_none:
                return None
            for one in types:
                for near in _maybe(value, one):
                    return near
        case shape.StrType() if value is not None:
            return value if isinstance(value, str) else msgspec.json.encode(value).decode()
        case shape.FloatType() if isinstance(value, int | float | str):
            try:
                if math.isfinite(number := float(value)) and not isinstance(value, bool):
                    return number
            except (ValueError, OverflowError):
                pass
        case shape.BoolType() if isinstance(value, bool):
            return value
        case shape.BoolType() if value in ("true", "false"):
            return value == "true"
    raise NotUnderstood(f"not a {type(wanted).__name__}")


def _maybe(value: Any, wanted: shape.Type) -> list[Any]:
    """Return the value as `wanted` in a list, which is empty if it is not near enough."""
    try:
        return [_nearest(value, wanted)]
    except NotUnderstood:
        return []


def _struct(value: dict[str, Any], wanted: shape.StructType) -> Any:
    known: dict[str, Any] = {}
    for field in wanted.fields:
        near = _maybe(value.get(field.encode_name), field.type)
        if near:
            known[field.name] = near[0]
        elif field.required:
            raise NotUnderstood(f"{wanted.cls.__name__} without {field.encode_name}")
    return wanted.cls(**known)
