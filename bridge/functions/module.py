"""Imports the module that `functions.module` names, with errors of one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType

from bridge.functions.errors import FunctionError


def import_module(name: str) -> ModuleType:
    """Import a module from the working directory or the installed packages, as `python -m` does.

    Puts the working directory at the front of `sys.path` and leaves it there. Blocks. Raises
    FunctionError with module, cause and remedy; its `__cause__` is the original exception.
    """
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise FunctionError(
            f'functions.module: expected the name of a module, got "{name:.80}"; write '
            "my_functions for my_functions.py, and package.my_functions for one in a folder"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    # Import caches directory listings: a file written since would not be found.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except FunctionError:
        raise
    except (Exception, SystemExit) as error:
        # SystemExit: a script without `if __name__ == "__main__"` must not end the server.
        raise FunctionError(f"functions.module: {name}: {_cause(name, error)}") from error


def _cause(name: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if name == error.name or name.startswith(f"{error.name}."):
            return (
                f"there is no module {error.name}; start bridge in its folder, install it, or "
                "correct the name"
            )
        return f"it imports {error.name}, which is not installed; install it next to bridge"
    if isinstance(error, SyntaxError):
        return f"{_place(error.filename, error.lineno)}: {error.msg}; correct the syntax"
    if isinstance(error, SystemExit):
        return 'it calls sys.exit() when imported; put that under `if __name__ == "__main__":`'
    frames = traceback.extract_tb(error.__traceback__)
    place = _place(frames[-1].filename, frames[-1].lineno) if frames else "its import"
    return (
        f"{place}: {type(error).__name__}: {error}; it must import without errors: try "
        f'python -c "import {name}"'
    )


def _place(filename: str | None, line: int | None) -> str:
    return f"{os.path.basename(filename or '')} line {line}"
