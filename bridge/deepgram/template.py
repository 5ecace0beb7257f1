"""Fill in an agent's greeting and prompt. Sans-I/O.

They may name facts of the call: `{caller}`, `{called}`, the call's custom parameters, and the
variables that the context hook returned.

The template is not a language. Only `{name}` is replaced: attributes, indices and format specs are
not interpreted, because the caller controls some of the values. For the same reason a value is
never expanded as a template itself, and is cut to one short line without control characters.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bridge.caller import CallInfo
from bridge.log import get_logger

log = get_logger(__name__)

# Characters of one value. Room for a note about the caller; far below Deepgram's limit of 25,000
# for the whole prompt, beyond which the operator's own words would be cut off.
VALUE_LIMIT: Final = 500

# Doubled braces first, so that `{{name}}` becomes a name in braces and not a value.
_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")

# A line break would let a value pose as a paragraph of the prompt; a model also reads invisible
# characters (bidi controls, tag characters); and no message can carry half of a surrogate pair.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]+"
)


def variables_of(
    info: CallInfo, context: Mapping[str, str] | None = None, withheld: str = ""
) -> dict[str, str]:
    """Return the variables a template may name: the call's parameters, then the context hook's
    variables, then `caller` and `called`. Where a name occurs twice, the later value counts.

    A withheld number of the caller's is replaced by the words `withheld`.
    """
    # The facts last: neither a parameter nor a hook may replace the caller's number.
    facts = {"caller": info.caller or withheld, "called": info.called}
    if not info.caller:
        facts["From"] = withheld
    return {**info.parameters, **(context or {}), **facts}


def fill_in(agent: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of the agent's table with `greeting` and every `think.prompt` filled in.

    Names without a value stay as they are written and are logged, all in one line; values are
    never logged. `{{` and `}}` stand for braces. A greeting or prompt that is not text is left as
    it is.
    """
    filled = copy.deepcopy(dict(agent))
    think = filled.get("think")
    unknown: dict[str, None] = {}
    for table, key in ((filled, "greeting"), *((one, "prompt") for one in _tables(think))):
        if isinstance(template := table.get(key), str):
            table[key], missing = fill(template, variables)
            unknown.update(dict.fromkeys(missing))
    if unknown:
        log.warning("greeting or prompt names unknown variables", names=list(unknown))
    return filled


def fill(template: str, variables: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the template with its names replaced, and the names that have no value, in order."""
    unknown: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in variables:
            unknown.append(name)
            return match[0]
        return _safe(variables[name])

    return _TOKEN.sub(replace, template), list(dict.fromkeys(unknown))


def _safe(value: str) -> str:
    # A space, so that the words around a line break stay separate.
    return _UNPRINTABLE.sub(" ", value).strip()[:VALUE_LIMIT].rstrip()


def _tables(value: Any) -> Iterable[dict[str, Any]]:
    """Return the think providers: one, or several to fall back on."""
    several = value if isinstance(value, list) else [value]
    return [one for one in several if isinstance(one, dict)]
