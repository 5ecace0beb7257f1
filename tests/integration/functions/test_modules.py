"""The user's modules: loaded once, and again after an edit; a broken edit costs no call."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from bridge.config.file import FixedConfig
from bridge.functions import FunctionError
from bridge.functions import modules as functions_modules
from bridge.functions.modules import FunctionModules
from bridge.service import Bridge
from tests.world import SECRETS, settings

Write = Callable[[str, str], None]


def source(answer: Any, more: str = "") -> str:
    return f"""
{more}
from bridge.functions import function

@function
def f() -> str:
    return {answer}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the working directory; forget it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def answer(modules: FunctionModules, name: str = "mine") -> Any:
    function = modules.of(name).get("f")
    assert function is not None
    return function.implementation()


async def test_an_edit_is_loaded_for_the_next_call(write: Write) -> None:
    write("mine.py", source(1))
    modules = FunctionModules(reload=True)
    modules.load({"mine"})
    before = modules.of("mine")
    for number in (2, 3, 4):  # of the same size, and within a second
        write("mine.py", source(number))
        await modules.bring_up_to_date({"mine"})
        assert answer(modules) == number
    function = before.get("f")
    assert function is not None
    assert function.implementation() == 1, "a live call keeps what it began with"


async def test_without_reload_an_edit_waits_for_a_restart(write: Write) -> None:
    write("mine.py", source(1))
    modules = FunctionModules()
    modules.load({"mine"})
    write("mine.py", source(2))
    await modules.bring_up_to_date({"mine"})
    assert answer(modules) == 1


async def test_the_files_it_imports_count(write: Write) -> None:
    write("mine.py", source("helper.ANSWER", "import helper"))
    write("yours.py", source("helper.ANSWER * 10", "import helper"))
    write("helper.py", "ANSWER = 1")
    modules = FunctionModules(reload=True)
    modules.load({"mine", "yours"})
    write("helper.py", "ANSWER = 2")
    await modules.bring_up_to_date({"mine", "yours"})
    assert (answer(modules), answer(modules, "yours")) == (2, 20)
    assert modules.of("mine") is not modules.of("yours")


@pytest.mark.parametrize(
    "broken",
    [
        "def",
        "import not_there_1",
        "1/0",
        "x = 1",
        source(3).replace("def f", "def end_call"),
        source("helper.ANSWER", "from helper import NOTHING"),
    ],
)
async def test_a_broken_edit_is_reported_once_and_a_mended_one_tried_again(
    write: Write, broken: str
) -> None:
    write("helper.py", "ANSWER = 1")
    write("mine.py", source("helper.ANSWER", "import helper"))
    modules = FunctionModules(reload=True)
    modules.load({"mine"})
    with capture_logs() as logs:
        write("mine.py", broken)
        for _ in range(3):
            await modules.bring_up_to_date({"mine"})
            assert answer(modules) == 1
        assert [line["log_level"] for line in logs] == ["error"]
        assert logs[0]["event"] == "functions not loaded; keeping the previous ones"
        write("helper.py", "ANSWER = 2")
        write("mine.py", source("helper.ANSWER", "import helper"))
        await modules.bring_up_to_date({"mine"})
    assert answer(modules) == 2
    assert logs[-1]["event"] == "functions reloaded"


async def test_a_module_that_an_edit_of_the_configuration_names_is_tried_again(
    write: Write,
) -> None:
    write("mine.py", source(1))
    modules = FunctionModules()
    modules.load({"mine"})
    assert answer(modules) == 1
    await modules.bring_up_to_date({"yours"})
    assert answer(modules, "yours") == 1, "the agent's last"
    write("yours.py", source(2))
    await modules.bring_up_to_date({"yours"})
    assert answer(modules, "yours") == 2


def test_the_start_is_strict(write: Write) -> None:
    write("mine.py", source(1).replace("def f", "def transfer_call"))
    with pytest.raises(FunctionError, match=r"^mine.transfer_call: bridge has its own transfer_ca"):
        FunctionModules().load({"mine"})


async def test_an_import_that_hangs_costs_one_call_some_seconds(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions_modules, "LOAD_SECONDS", 0.2)
    write("mine.py", source(1))
    modules = FunctionModules(reload=True)
    modules.load({"mine"})
    monkeypatch.setattr(sys, "loading", gate := threading.Event(), raising=False)
    write("mine.py", source(2, "import sys; sys.loading.wait(60)"))
    await modules.bring_up_to_date({"mine"})
    with trio.fail_after(60):
        before = trio.current_time()
        for _ in range(100):
            await modules.bring_up_to_date({"mine"})
        assert trio.current_time() - before < 10, "the others do not wait"
        assert answer(modules) == 1
        gate.set()
        while answer(modules) == 1:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert answer(modules) == 2


async def test_a_server_asks_for_them_with_the_settings_of_each_call(write: Write) -> None:
    agents = {"sales": {"functions": {"module": "yours"}}, "night": {"greeting": "Good night."}}
    using = settings(functions={"module": "mine"}, agents=agents)
    write("mine.py", source(1))
    write("yours.py", source(10))
    bridge = Bridge(FixedConfig(using), SECRETS)
    bridge.functions.reload = True
    bridge.prepare()
    assert set(bridge.functions.loaded) == {"", "mine", "yours"}
    write("yours.py", source(20))
    await bridge.settings()
    assert (answer(bridge.functions), answer(bridge.functions, "yours")) == (1, 20)
