"""The README stays true where a test can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "path"), sorted(set(re.findall(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)", README)))
)
def test_every_proof_that_is_named_exists(name: str, path: str) -> None:
    assert re.search(rf"def {name}\b", (ROOT / path).read_text())


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?:bridge|tests)/[^)]*)\)", README))))
def test_every_file_that_is_linked_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_there_are_proofs() -> None:
    assert README.count("](tests/endtoend/test_endings.py)") > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_described(command: str) -> None:
    assert f"`bridge {command}" in README
