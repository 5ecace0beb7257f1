"""A function's parameters: type hints to the JSON Schema for the agent, and the agent's JSON to
keyword arguments.

msgspec does both from the same types, so the schema is what is checked. The schemas are simplified
here, because Deepgram passes them to models of several providers that support different parts of
JSON Schema: references are inlined, enumerations get a type, OpenAPI's extensions are removed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from bridge.caller import CallInfo
from bridge.functions.errors import BadArguments, FunctionError

Schema = dict[str, Any]

# The explanation quotes what the agent sent; this is enough to recognise it.
MAX_EXPLANATION: Final = 500  # characters

_REFERENCE: Final = "#/$defs/"
_NO_SCHEMA: Final = "Generating JSON schema for custom types requires either:"


@dataclass(frozen=True)
class Parameters:
    """The parameters of a function. `schema` is a JSON Schema object without those in `info`, which
    get the CallInfo.
    """

    schema: Schema
    info: tuple[str, ...]
    _decoder: msgspec.json.Decoder[msgspec.Struct]
    _lenient: msgspec.json.Decoder[msgspec.Struct]

    def read(self, text: str) -> dict[str, Any]:
        """Return the keyword arguments in the JSON `text`; an empty text and null mean none.

        Arguments that the agent omitted are omitted, so Python's defaults apply. Unknown names are
        refused, although the schema does not say so (some models reject `additionalProperties`):
        the agent probably misspelt a parameter, and using its default would hide that. Models
        write numbers as text, and whole numbers as 4.0: where the value fits no other way, "4",
        4.0 and "true" are read as the int and the bool they stand for.

        Raises BadArguments, also for a ValueError or TypeError from the `__post_init__` of a user's
        class, whose text it repeats. Other exceptions of a user's class pass through.
        """
        if text.strip() in ("", "null"):
            text = "{}"
        try:
            try:
                values = self._decoder.decode(text)
            except msgspec.ValidationError as strictly:
                try:
                    values = self._lenient.decode(text)
                except msgspec.ValidationError:
                    raise BadArguments(self._explain(str(strictly))) from None
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            raise BadArguments("the arguments are not a JSON object") from None
        given = ((name, getattr(values, name)) for name in self.schema["properties"])
        return {name: value for name, value in given if value is not msgspec.UNSET}

    def _explain(self, problem: str) -> str:
        # msgspec says "Expected `int`, got `str` - at `$.guests`".
        what, _, path = problem.partition(" - at `$")
        if where := path.removesuffix("`").removeprefix("."):
            return f"{where}: {what}"[:MAX_EXPLANATION]
        names = ", ".join(self.schema["properties"]) or "none"
        return f"{what[:MAX_EXPLANATION]}; the parameters are: {names}"


def parameters_of(implementation: Callable[..., Any], where: str) -> Parameters:
    """Read the signature of a function; `where` names it in errors.

    The text in `Annotated[int, "24-hour clock"]` describes the parameter to the agent, and
    `msgspec.Meta(ge=1, le=20)` there bounds it. Fields of classes are described by `Meta` only.

    Raises FunctionError.
    """
    hints = _hints(implementation, where)
    info: list[str] = []
    fields: list[tuple[str, Any, Any]] = []
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for name, parameter in inspect.signature(implementation).parameters.items():
        _check_kind(parameter, where)
        if name not in hints:
            raise FunctionError(
                f"{where}: parameter {name} has no type hint; write {name}: str, or its type"
            )
        hint = hints[name]
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if isinstance(kind, type) and issubclass(kind, CallInfo):
            info.append(name)
            continue
        hint = _described(hint)
        properties[name] = _schema(hint, f"{where}: parameter {name}")
        if parameter.default is parameter.empty:
            required.append(name)
            fields.append((name, hint, msgspec.NODEFAULT))
        else:
            properties[name] |= _default(parameter.default, hint)
            fields.append((name, hint, msgspec.UNSET))
    try:
        struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
        decoders = msgspec.json.Decoder(struct), msgspec.json.Decoder(struct, strict=False)
    except (TypeError, ValueError) as error:
        raise FunctionError(f"{where}: its parameters cannot be used: {error}") from error
    schema = {"type": "object", "properties": properties, "required": required}
    return Parameters(schema, tuple(info), *decoders)


def _hints(implementation: Callable[..., Any], where: str) -> Mapping[str, Any]:
    def parameters() -> None: ...

    function = inspect.unwrap(implementation)
    try:
        # Without the return type, which is not used and need not be importable.
        parameters.__annotations__ = {
            name: hint for name, hint in implementation.__annotations__.items() if name != "return"
        }
        return get_type_hints(
            parameters, globalns=getattr(function, "__globals__", {}), include_extras=True
        )
    except NameError as error:
        raise FunctionError(
            f"{where}: its type hint {error.name} is not defined when bridge starts; define or "
            "import it at the top of the module, outside `if TYPE_CHECKING:`"
        ) from error
    except Exception as error:  # evaluating hints runs the user's code
        raise FunctionError(f"{where}: its type hints cannot be read: {error}") from error


def _check_kind(parameter: inspect.Parameter, where: str) -> None:
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL | inspect.Parameter.VAR_KEYWORD:
            raise FunctionError(
                f"{where}: {parameter} cannot be described to the agent; name each parameter, or "
                "take a list or a dict"
            )
        case inspect.Parameter.POSITIONAL_ONLY:
            raise FunctionError(
                f"{where}: parameter {parameter.name} is positional-only, but the agent passes "
                "names; remove the / from the signature"
            )


def _described(hint: Any) -> Any:
    """Return the type with each text in an `Annotated` turned into a description."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *notes = inner
        metas = [msgspec.Meta(description=n) if isinstance(n, str) else n for n in notes]
        return Annotated[(_described(kind), *metas)]
    if not inner or origin is Literal:
        return hint
    parts = tuple(map(_described, inner))
    if origin in (Union, UnionType):
        return Union[parts]  # noqa: UP007  # known only here
    return origin[parts] if isinstance(origin, type) else hint  # type: ignore[index]


def _schema(hint: Any, where: str) -> Schema:
    try:
        (schema,), components = msgspec.json.schema_components(
            [hint], ref_template=_REFERENCE + "{name}"
        )
        return _plain(schema, components, ())
    except _ContainsItselfError as error:
        raise FunctionError(
            f"{where}: the type {error} contains itself, which not every model supports; "
            "make it flat, or take a dict"
        ) from None
    except Exception as error:  # TypeError, or what resolving the hints of a user's class raises
        # For an unknown type msgspec's error only explains how to extend msgspec.
        reason = str(error).partition("\n")[0].removeprefix(_NO_SCHEMA)
        because = f" ({reason})" if reason else ""
        raise FunctionError(
            f"{where}: the type {inspect.formatannotation(hint)} cannot be read from JSON"
            f"{because}; "
            "use int, float, str, bool, Literal, list, dict, a dataclass, or one of them | None"
        ) from error


class _ContainsItselfError(Exception):
    pass


def _plain(schema: Schema, components: Mapping[str, Schema], inside: tuple[str, ...]) -> Schema:
    def plain(part: Any) -> Any:
        return _plain(part, components, inside) if isinstance(part, dict) else part

    plainer: Schema = {}
    for key, value in schema.items():
        match key:
            case "$ref":
                name = re.sub(f"^{re.escape(_REFERENCE)}", "", value)
                if name in inside:
                    raise _ContainsItselfError(name)
                target = _plain(components[name], components, (*inside, name))
                # A description of the parameter takes precedence over that of its type.
                plainer = {**target, **plainer}
            case "title" | "discriminator":
                # Python's own names, and a table for the references that were inlined.
                pass
            case "properties":
                plainer[key] = {name: plain(part) for name, part in value.items()}
            case "items" | "additionalProperties" | "propertyNames":
                plainer[key] = plain(value)
            case "anyOf" | "prefixItems":
                plainer[key] = [plain(part) for part in value]
            case _:
                plainer[key] = value
    if "enum" in plainer and "type" not in plainer:
        kinds = {type(value) for value in plainer["enum"]}
        if len(kinds) == 1 and (kind := _JSON_NAMES.get(kinds.pop())):
            plainer = {"type": kind, **plainer}
    return plainer


_JSON_NAMES: Final = {str: "string", int: "integer"}


def _default(value: object, hint: Any) -> Schema:
    """Return the schema's `default`; empty for one that JSON cannot express, and for None, which
    usually means "not given".
    """
    if value is None:
        return {}
    try:
        plain = msgspec.to_builtins(value)
        msgspec.convert(plain, hint)
        msgspec.json.encode(plain)
    except Exception:  # whatever a user's class raises; the default still applies
        return {}
    return {"default": plain}
