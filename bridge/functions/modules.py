"""The user's modules of functions: each loaded once, and with `reload` again after an edit.

A module that cannot be loaded costs no call: where one was loaded before, its functions stay, and
the next call tries again. The reason is logged once, until it changes.

A reload imports the edited files and all other files of the user's that were imported with them, so
that a function and the helper it imports are of the same version. Calls that are live keep the
functions they began with. Objects that a module keeps, such as a pool of connections, are made
again, and the old ones are left to Python.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final

import trio

from bridge.config.settings import Settings
from bridge.functions.errors import FunctionError
from bridge.functions.registry import Functions
from bridge.log import get_logger
from bridge.one_thread import OneThread

log = get_logger(__name__)

# A caller hears the delay as silence before the greeting. An import that takes longer goes on in
# its thread, and a later call gets the functions.
LOAD_SECONDS: Final = 5.0

Signature = tuple[int, int]


def modules_of(settings: Settings) -> set[str]:
    """Return the modules that `functions.module` names, of any agent."""
    own = (table.get("functions", {}) for table in settings.agents.values())
    return {settings.functions.module, *(table.get("module", "") for table in own)} - {""}


class FunctionModules:
    """The functions of the modules that the configuration names.

    With `reload`, edited files are imported again; Python then writes no bytecode, which would hide
    an edit made within a second of the last.
    """

    def __init__(self, *, reload: bool = False) -> None:
        self.reload = reload
        self.loaded: dict[str, Functions] = {"": Functions()}
        """The functions by the name of their module, as last loaded; "" has none."""
        self._last: dict[str, Functions] = {}
        self._problems: dict[str, str] = {}
        # The user's own files that were imported.
        self._imported: dict[str, ModuleType] = {}
        self._signatures: dict[Path, Signature] = {}
        self._thread = OneThread()

    def load(self, names: Collection[str]) -> None:
        """Load the modules now, blocking. Raises FunctionError for the first that cannot be."""
        self._load(names, strict=True)

    def of(self, module: str, agent: str = "") -> Functions:
        """Return the functions of `module` for a call of `agent`. Where that module could not be
        loaded, they are those of the agent's last call."""
        if module in self.loaded:
            self._last[agent] = self.loaded[module]
        return self._last.get(agent, self.loaded[""])

    async def bring_up_to_date(self, names: Collection[str]) -> None:
        """Load the modules that are not loaded yet, and with `reload` again what was edited.

        Takes LOAD_SECONDS at most, and does not raise for a module that cannot be loaded. An import
        that is cancelled, or takes longer, goes on in its thread.
        """
        if self._thread.is_stuck or not (self.reload or self._missing(names)):
            return
        try:
            await self._thread.run(partial(self._load, names), within=LOAD_SECONDS)
        except trio.TooSlowError:
            log.error("functions still loading; keeping the previous ones", modules=[*names])

    def _missing(self, names: Collection[str]) -> set[str]:
        return {name for name in names if name not in self.loaded}

    def _load(self, names: Collection[str], *, strict: bool = False) -> None:
        """Blocks. One thread at a time runs it, and only it changes what it changes."""
        again = self.reload and (bool(self._problems) or self._were_edited())
        wanted = {*names} - {""} if again else self._missing(names)
        self._problems = {name: why for name, why in self._problems.items() if name in wanted}
        previous = self._forget() if again else {}
        for name in sorted(wanted):
            try:
                with self._noting_files():
                    self.loaded[name] = Functions.from_module(name)
                self._problems.pop(name, None)
            except FunctionError as error:
                if strict:
                    raise
                if self._problems.get(name) != str(error):
                    log.error("functions not loaded; keeping the previous ones", reason=str(error))
                self._problems[name] = str(error)
        if again and not self._problems:
            log.info("functions reloaded", modules=sorted(wanted))
        for name, module in previous.items():
            # What a broken edit has left out is still in use.
            if sys.modules.setdefault(name, module) is module:
                self._imported[name] = module

    def _were_edited(self) -> bool:
        return any(_signature(path) != seen for path, seen in self._signatures.items())

    def _forget(self) -> dict[str, ModuleType]:
        """Make Python import the user's files again; return the modules that it forgets."""
        forgotten, self._imported = self._imported, {}
        self._signatures.clear()
        for name in forgotten:
            sys.modules.pop(name, None)
        return forgotten

    @contextmanager
    def _noting_files(self) -> Iterator[None]:
        """Note the user's files that the block imports. Where it fails they are forgotten again, so
        that the next try reads all of them."""
        before, bytecode = set(sys.modules), sys.dont_write_bytecode
        sys.dont_write_bytecode = bytecode or self.reload
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.dont_write_bytecode = bytecode
            for name in sys.modules.keys() - before:
                if (path := _users_file(sys.modules[name])) is None:
                    continue
                self._signatures[path] = _signature(path)
                if failed:
                    del sys.modules[name]
                else:
                    self._imported[name] = sys.modules[name]


def _users_file(module: ModuleType) -> Path | None:
    """Return the file of a module that the user edits; None for bridge, the standard library and
    installed packages."""
    file = getattr(module, "__file__", None)
    installed = {"site-packages", "dist-packages"}
    if not file or module.__name__.partition(".")[0] in {"bridge", *sys.stdlib_module_names}:
        return None
    path = Path(file)
    return None if installed & set(path.parts) else path


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
