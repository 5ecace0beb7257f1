"""What this depends on: each with a range, so that no release breaks it unseen, and a reason."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]

REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
]


# Ourselves, and one whose versions are dates with a Grafana's behind them: nothing to end before.
EXCEPT = {"bridge[local]", "grafana-foundation-sdk>=1"}


@pytest.mark.parametrize("requirement", sorted({*REQUIREMENTS} - EXCEPT))
def test_a_dependency_has_a_range_and_a_reason(requirement: str) -> None:
    """Not below what it was tried with, nor above the next release that may break it."""
    bounds = requirement.partition(";")[0]
    assert re.search(r">=[\d.]+,<[\d.]+$", bounds.strip()), "write >=LOWEST,<FIRST UNKNOWN"
    lines = [line for line in PYPROJECT.splitlines() if f'"{requirement}"' in line]
    assert lines
    for line in lines:
        assert re.search(r"# \S", line), "say in a comment what it is for"
