"""No shield without a deadline: what nothing can cancel must end by itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bridge

PACKAGE = Path(bridge.__file__).parent

# The deadline is elsewhere: `# deadline: WHICH` on the same line names it.
NAMED = re.compile(r"# deadline: \S")


def shields_without_a_deadline(source: str) -> list[int]:
    """The lines of `CancelScope(shield=...)` calls without a deadline, given or named."""
    lines, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        keywords = {keyword.arg for keyword in node.keywords}
        if name == "CancelScope" and "shield" in keywords and "deadline" not in keywords:
            assert node.end_lineno is not None
            if not any(NAMED.search(line) for line in lines[node.lineno - 1 : node.end_lineno]):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_every_shield_has_a_deadline_or_names_it(path: Path) -> None:
    assert shields_without_a_deadline(path.read_text(encoding="utf-8")) == []


def test_a_shield_without_a_deadline_is_found() -> None:
    assert shields_without_a_deadline("with trio.CancelScope(shield=True):\n    ...") == [1]
    assert not shields_without_a_deadline("trio.CancelScope(shield=True)  # deadline: STOP")
    assert not shields_without_a_deadline("trio.CancelScope(shield=True, deadline=by)")
    assert not shields_without_a_deadline("trio.move_on_after(1, shield=True)")
