"""The registry of functions: marked by a decorator, collected once, described to every agent.

The decorator only marks the function. The description is built when the functions are collected,
so a type hint may name a class that the module defines further down, and there is no global table
that modules or tests share.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, TypeVar, overload

from bridge.functions.errors import FunctionError
from bridge.functions.module import import_module
from bridge.functions.parameters import Parameters, parameters_of

F = TypeVar("F", bound=Callable[..., Any])

# The names that model providers accept, and that Deepgram therefore passes on.
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")

# The names of bridge's own functions, which `builtin` adds to each call's.
_BUILT_IN: Final = frozenset({"end_call", "transfer_call"})

_MARK: Final = "__bridge_function__"


@dataclass(frozen=True)
class Options:
    """The options given to `@function(...)`."""

    name: str | None = None
    deadline: float | None = None
    defer_until_eot: bool = False


@overload
def function(implementation: F, /) -> F: ...


@overload
def function(
    *, name: str | None = None, deadline: float | None = None, defer_until_eot: bool = False
) -> Callable[[F], F]: ...


def function(
    implementation: F | None = None,
    /,
    *,
    name: str | None = None,
    deadline: float | None = None,
    defer_until_eot: bool = False,
) -> F | Callable[[F], F]:
    """Mark a function, `async` or plain, as one that the agent may call; return it unchanged.

    *Description*: the agent gets its name (or `name`), the first paragraph of its docstring, and
    its parameters with their type hints.

    *Result*: the return value is sent to the agent as JSON.

    *Error handling*: when it raises, the agent learns only that it failed, because the text of an
    exception may contain secrets. To tell the agent what went wrong, return it.

    *Cancellation*: `deadline` is in seconds, 10 by default. An async function runs on Trio and is
    cancelled at its deadline, when the phone call ends, or when the agent cancels the function
    call. Trio cannot end a function that shields itself, and the phone call would wait for it: do
    not shield without a deadline. A plain function runs in a thread, which cannot be stopped. At
    its deadline it is abandoned: its result is discarded, its effects are not, and it keeps one
    thread of the pool busy until it returns. Give everything it waits for a timeout.

    *Repeatability*: the agent may call a function before the caller's turn is confirmed, and cancel
    it when the caller goes on speaking. With `defer_until_eot` it waits for the end of the turn:
    set it for anything that cannot be undone.
    https://developers.deepgram.com/docs/voice-agent-function-call-request

    Raises FunctionError if it is not a function; everything else is checked when it is collected.
    """
    options = Options(name, deadline, defer_until_eot)

    def mark(implementation: F) -> F:
        if not isinstance(implementation, FunctionType):
            raise FunctionError(
                f"@function: expected a function, got {implementation!r:.80}; put @function or "
                '@function(name="...") above a def or async def'
            )
        setattr(implementation, _MARK, options)
        return implementation

    return mark if implementation is None else mark(implementation)


@dataclass(frozen=True)
class Function:
    """One function, ready to be described and called. `deadline` is in seconds, None for the
    default; `source` is its module and qualified name, for errors.
    """

    name: str
    description: str
    parameters: Parameters
    implementation: Callable[..., Any]
    source: str
    deadline: float | None = None
    defer_until_eot: bool = False

    @classmethod
    def of(cls, implementation: Callable[..., Any]) -> Function:
        """Describe a function or bound method, marked by `@function` or not.

        Raises FunctionError: one line that names the function and the remedy.
        """
        if not inspect.isfunction(implementation) and not inspect.ismethod(implementation):
            raise FunctionError(f"expected a function, got {implementation!r:.80}; write a def")
        options: Options = getattr(implementation, _MARK, Options())
        source = f"{implementation.__module__}.{implementation.__qualname__}"
        name = implementation.__name__ if options.name is None else options.name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise FunctionError(
                f"{source}: the agent accepts no function called {name!r:.80}; give it "
                "@function(name=...) of 1 to 64 letters a-z, digits, _ and -"
            )
        if options.deadline is not None and not _is_deadline(options.deadline):
            raise FunctionError(
                f"{source}: expected a deadline in seconds above 0, got {options.deadline!r:.80}; "
                "for example deadline=5.0"
            )
        if inspect.isgeneratorfunction(implementation) or inspect.isasyncgenfunction(
            implementation
        ):
            raise FunctionError(
                f"{source}: is a generator, but the agent accepts one answer; return it instead"
            )
        return cls(
            name=name,
            description=_first_paragraph(implementation),
            parameters=parameters_of(implementation, source),
            implementation=implementation,
            source=source,
            deadline=options.deadline,
            defer_until_eot=bool(options.defer_until_eot),
        )

    @property
    def is_async(self) -> bool:
        """Whether it runs as a Trio task; plain functions run in a thread."""
        return inspect.iscoroutinefunction(self.implementation)

    def schema(self) -> dict[str, Any]:
        """Return its entry in `agent.think.functions` of the Settings, as a copy.

        https://developers.deepgram.com/docs/configure-voice-agent
        """
        entry: dict[str, Any] = {"name": self.name}
        if self.description:
            entry["description"] = self.description
        entry["parameters"] = copy.deepcopy(self.parameters.schema)
        if self.defer_until_eot:
            entry["defer_until_eot"] = True
        return entry


class Functions:
    """Functions by name, in source order. Immutable; `+` makes a new one.

    Raises FunctionError when two have the same name.
    """

    def __init__(self, functions: Iterable[Function] = ()) -> None:
        self._by_name: dict[str, Function] = {}
        for one in functions:
            other = self._by_name.setdefault(one.name, one)
            if other is not one:
                raise FunctionError(
                    f"{one.source}: {other.source} is called {one.name}, too; rename one of them, "
                    "or give it @function(name=...)"
                )

    @classmethod
    def of(cls, *implementations: Callable[..., Any]) -> Functions:
        """Collect functions and bound methods, marked or not. Raises FunctionError."""
        return cls(map(Function.of, implementations))

    @classmethod
    def from_module(cls, name: str) -> Functions:
        """Import a module and collect what it marks with `@function`, imported functions included.

        Blocks. The module is found as `python -m` finds it; the working directory goes to the front
        of `sys.path` and stays there, because functions may import when they run. Python imports a
        module once per process; `FunctionModules` imports it again.

        Raises FunctionError when it cannot be imported, marks nothing, marks an unfit function, or
        one with the name of a function of bridge's own.
        """
        module = import_module(name)
        marked = {
            id(value): value
            for value in vars(module).values()
            if isinstance(value, FunctionType) and isinstance(getattr(value, _MARK, None), Options)
        }
        if not marked:
            raise FunctionError(
                f"functions.module: {name} ({getattr(module, '__file__', None) or 'built in'}) "
                "marks no function; put @function above one, or name another module"
            )
        functions = cls.of(*marked.values())
        for one in functions:
            if one.name in _BUILT_IN:
                raise FunctionError(
                    f"{one.source}: bridge has its own {one.name}; rename yours, or give it "
                    "@function(name=...)"
                )
        return functions

    def get(self, name: str) -> Function | None:
        """Return the function of this name, if there is one."""
        return self._by_name.get(name)

    def schemas(self) -> list[dict[str, Any]]:
        """Return the list for `agent.think.functions` of the Settings, as a copy."""
        return [one.schema() for one in self]

    def __add__(self, other: Functions) -> Functions:
        return Functions([*self, *other])

    def __iter__(self) -> Iterator[Function]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Functions({', '.join(self._by_name)})"


def _is_deadline(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value < math.inf


def _first_paragraph(implementation: Callable[..., Any]) -> str:
    paragraph, _, _ = (inspect.getdoc(implementation) or "").partition("\n\n")
    return " ".join(paragraph.split())
