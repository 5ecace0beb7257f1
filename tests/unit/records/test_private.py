"""What was there before bridge, and is open to every user of the machine (finding C6)."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.records.private import close_to_others


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("found", "left"), [(0o644, 0o640), (0o777, 0o770), (0o602, 0o600)])
def test_other_users_are_shut_out_and_a_group_is_not(tmp_path: Path, found: int, left: int) -> None:
    """Said once: afterwards there is nothing to close."""
    path = tmp_path / "calls.db"
    path.touch()
    path.chmod(found)
    with capture_logs() as logs:
        close_to_others(path, tmp_path / "nowhere")
        close_to_others(path)
    assert _mode(path) == left
    assert [line["path"] for line in logs] == [str(path)]


def test_what_is_private_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "recordings"
    path.mkdir(mode=0o750)
    with capture_logs() as logs:
        close_to_others(path)
    assert (_mode(path), logs) == (0o750, [])


def test_what_cannot_be_closed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is another user's, for example; the calls go on."""

    def refused(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "recordings"
    path.mkdir()
    path.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", refused)
    with capture_logs() as logs:
        close_to_others(path)
    (line,) = logs
    assert "chmod o-rwx" in line["event"]
