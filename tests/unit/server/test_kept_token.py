"""The API token of a run: printed once, kept where only its user's commands find it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.server.kept_token import announced, keeping, kept_token, page_address

TOKEN = "0123456789abcdef0123456789abcdef"
HERE = "http://127.0.0.1:5000"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "bridge"


def test_a_command_finds_the_token_by_the_server_s_port(folder: Path) -> None:
    with keeping(TOKEN, ["http://0.0.0.0:5000"]):
        (file,) = folder.iterdir()
        assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
        for url in (HERE, "http://localhost:5000", "http://[::1]:5000/"):
            assert kept_token(url) == TOKEN
        for url in ("http://127.0.0.1:5001", "http://127.0.0.1", "http://[", "nonsense"):
            assert kept_token(url) == ""
    assert kept_token(HERE) == ""
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("url", ["https://voice.example.com:5000", "http://10.0.0.7:5000"])
def test_no_other_machine_is_sent_it(url: str) -> None:
    with keeping(TOKEN, [HERE]):
        assert kept_token(url) == ""


def test_of_several_workers_with_one_token_one_prints_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with announced(TOKEN, [HERE]), announced(TOKEN, [HERE]):
        assert kept_token(HERE) == TOKEN
    printed = capsys.readouterr().err
    assert printed.count(TOKEN) == 1
    assert f"http://127.0.0.1:5000/#token={TOKEN} " in printed


def test_the_server_started_last_on_a_port_is_the_one_that_has_it(folder: Path) -> None:
    with keeping(TOKEN, [HERE]):
        (first,) = folder.iterdir()
        os.utime(first, (1, 1))
        with keeping("another", [HERE]):
            assert kept_token(HERE) == "another"


def test_what_a_killed_server_left_behind_is_removed(folder: Path) -> None:
    folder.mkdir(0o700)
    # No process has so high a number.
    (folder / "dead.json").write_text('{"pid": 4194305, "ports": [5000], "token": "old"}')
    (folder / "torn.json").write_text('{"pid": 1, "po')
    with keeping(TOKEN, [HERE]):
        assert not (folder / "dead.json").exists()
        assert kept_token(HERE) == TOKEN


@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_a_folder_that_others_can_open_is_not_used(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with keeping(TOKEN, [HERE]):
        assert list(folder.iterdir()) == []
        assert kept_token(HERE) == TOKEN  # in the folder for temporary files
    folder.rmdir()
    folder.symlink_to(folder.parent / "tmp")
    with keeping(TOKEN, [HERE]):
        assert not list(folder.glob("*.json"))


def test_a_token_that_cannot_be_kept_is_printed_all_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.touch()
    (folder.parent / "tmp").rmdir()
    with capture_logs() as logs, announced(TOKEN, [HERE]):
        assert kept_token(HERE) == ""
    assert TOKEN in capsys.readouterr().err
    (line,) = logs
    assert "BRIDGE_API_TOKEN" in line["event"]
    assert TOKEN not in str(line)


@pytest.mark.parametrize(
    ("address", "page"),
    [
        (HERE, f"http://127.0.0.1:5000/#token={TOKEN}"),
        ("http://0.0.0.0:5000", f"http://127.0.0.1:5000/#token={TOKEN}"),
        ("https://[::]:443", f"https://[::1]:443/#token={TOKEN}"),
    ],
)
def test_the_printed_address_can_be_opened_on_this_machine(address: str, page: str) -> None:
    assert page_address(address, TOKEN) == page
