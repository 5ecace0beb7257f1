"""The layers of the package: a module imports its own unit and units on lower floors, no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bridge

PACKAGE = Path(bridge.__file__).parent

# From the ground up. A unit is a module or a folder; units on one floor do not import each other.
FLOORS = (
    "addresses audio backoff caller ending extras log_throttle one_thread outcome tagged_messages "
    "text",
    "log",
    "supervised transport",
    "twilio",
    "config",
    "deepgram",
    "functions",
    "call",
    "records telemetry",
    "admission legs live",
    "call_setup",
    "service",
    "server testing",
    "local_agent",
    "http",
    "asgi",
    "server.worker_process",
    "check",
    "cli",
)
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units.split()}


def unit_of(name: str) -> str:
    """The unit of a module, or of a name in it: "config" for "bridge.config.file.ConfigFile"."""
    parts = name.removeprefix("bridge.").split(".")
    for length in range(len(parts), 0, -1):
        if (unit := ".".join(parts[:length])) in FLOOR_OF:
            return unit
    pytest.fail(f"{name} stands on no floor; add its unit to FLOORS")


def imports(path: Path) -> Iterator[str]:
    """What a module imports of bridge: also inside functions, and also for type checking alone,
    since a reader has to know those modules, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("bridge."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module and node.module.split(".")[0] == "bridge":
                yield from (
                    f"{node.module}.{alias.name}"
                    for alias in node.names
                    if (node.module, alias.name) != ("bridge", "__version__")
                )


MODULES = {
    ".".join(("bridge", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def test_no_module_imports_a_higher_floor() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if unit_of(name) != unit_of(module) and FLOOR_OF[unit_of(name)] >= FLOOR_OF[unit_of(module)]
    ]
    assert wrong == []


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports(PACKAGE / "__init__.py")) == []
