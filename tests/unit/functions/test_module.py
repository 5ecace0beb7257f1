"""The module the user named: found, imported, and its errors told in a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.functions import FunctionError, Functions

Write = Callable[[str, str], None]

ONE = """
from bridge.functions import function

@function
def {name}(a: int) -> int:
    return a
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the working directory; forget it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(name: str) -> str:
    with pytest.raises(FunctionError) as raised:
        Functions.from_module(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def names(functions: Functions) -> list[str]:
    return [one.name for one in functions]


def test_a_module_in_the_working_directory(write: Write) -> None:
    write("tables_1.py", ONE.format(name="second") + ONE.format(name="first") + "def not_me(): ...")
    assert names(Functions.from_module("tables_1")) == ["second", "first"]


def test_a_module_in_a_package(write: Write) -> None:
    write("tables_2/__init__.py", "")
    write("tables_2/inner.py", ONE.format(name="f"))
    assert names(Functions.from_module("tables_2.inner")) == ["f"]


def test_functions_spread_over_files(write: Write) -> None:
    """What it imports counts, and a second name for the same function does not."""
    write("tables_3.py", ONE.format(name="f"))
    write("tables_4.py", "from tables_3 import f\ng = f\n" + ONE.format(name="h"))
    assert names(Functions.from_module("tables_4")) == ["f", "h"]


def test_a_hint_defined_further_down(write: Write) -> None:
    write(
        "tables_5.py",
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from bridge.functions import function\n"
        "@function\n"
        "def f(guest: Guest) -> None: ...\n"
        "@dataclasses.dataclass\n"
        "class Guest:\n"
        "    name: str\n",
    )
    (entry,) = Functions.from_module("tables_5").schemas()
    assert entry["parameters"]["properties"]["guest"]["required"] == ["name"]


def test_no_such_module(write: Write) -> None:
    assert "functions.module: nowhere_1: there is no module nowhere_1; start" in refusal(
        "nowhere_1"
    )
    assert "there is no module nowhere_1; start" in refusal("nowhere_1.inner")


def test_it_imports_what_is_not_there(write: Write) -> None:
    write("tables_6.py", "import nowhere_2.inner")
    assert refusal("tables_6") == (
        "functions.module: tables_6: it imports nowhere_2, which is not installed; install it "
        "next to bridge"
    )


def test_it_is_not_python(write: Write) -> None:
    write("tables_7.py", "\ndef f(:\n")
    assert refusal("tables_7") == (
        "functions.module: tables_7: tables_7.py line 2: invalid syntax; correct the syntax"
    )


def test_it_raises(write: Write) -> None:
    write("tables_8.py", "\n\nraise OSError('no \\x1b[31m\\nfile')")
    assert refusal("tables_8") == (
        "functions.module: tables_8: tables_8.py line 3: OSError: no \\x1b[31m\\nfile; it must "
        'import without errors: try python -c "import tables_8"'
    )


def test_it_is_a_program(write: Write) -> None:
    write("tables_9.py", "import sys\nsys.exit(3)")
    assert "it calls sys.exit() when imported; put that under `if __name_" in refusal("tables_9")


def test_an_interrupt_is_nobodys_error(write: Write) -> None:
    write("tables_10.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Functions.from_module("tables_10")


def test_it_marks_nothing(write: Write) -> None:
    write("tables_11.py", "def f(): ...")
    assert "tables_11.py) marks no function; put @function above" in refusal("tables_11")
    assert "functions.module: sys (built in) marks no function" in refusal("sys")


def test_its_function_is_unfit(write: Write) -> None:
    write("tables_12.py", "from bridge.functions import function\n@function\ndef f(a): ...")
    assert refusal("tables_12") == (
        "tables_12.f: parameter a has no type hint; write a: str, or its type"
    )


def test_its_mark_is_misused(write: Write) -> None:
    """Found on import, and still the same one line."""
    write("tables_13.py", "from bridge.functions import function\n@function\nclass C: ...")
    assert refusal("tables_13").startswith("@function: expected a function, got <class")


@pytest.mark.parametrize("name", ["", "my_functions.py", "lib/mine", ".mine", "a..b", "a b", "a-b"])
def test_what_is_no_name(write: Write, name: str) -> None:
    assert "expected the name of a module, got" in refusal(name)


def test_the_working_directory_is_put_in_front_once(write: Write, tmp_path: Path) -> None:
    write("tables_14.py", ONE.format(name="f"))
    Functions.from_module("tables_14")
    Functions.from_module("tables_14")
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1
