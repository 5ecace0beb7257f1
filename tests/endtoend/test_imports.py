"""What is imported when, each in a process of its own: imports are what a start costs."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(code: str) -> set[str]:
    """Run `code` in a new interpreter; return the names of the modules it has loaded then."""
    show = "import sys; print(*sys.modules, file=sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_command_line_alone_imports_click_and_nothing_of_the_server(option):
    modules = loaded(f"from bridge.cli import cli; cli.main(['{option}'], standalone_mode=False)")
    ours = {name for name in modules if name.partition(".")[0] == "bridge"}
    assert ours == {"bridge", "bridge.cli"}
    assert not modules & {"trio", "quart", "httpx", "msgspec", "rich", "importlib.metadata"}


def test_a_speech_worker_imports_none_of_the_server():
    modules = loaded("import bridge.local_agent.worker")
    assert not modules & {
        *("trio", "quart", "hypercorn", "sqlalchemy", "structlog", "httpx", "click"),
        *("asyncio", "bridge.testing", "bridge.config", "pocketsphinx"),
    }
