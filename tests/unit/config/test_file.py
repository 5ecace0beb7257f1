"""The file is read again when it changed, and never costs a call."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from bridge.config import file as config_file
from bridge.config.file import ConfigFile, FixedConfig, config_path, load
from bridge.config.settings import ConfigError, Settings
from tests.unit.config.files import FIRST, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    write(path, FIRST)
    return path


class TestLoad:
    def test_reads(self, path: Path) -> None:
        assert load(path).agent["greeting"] == "first"
        assert ConfigFile(path).load() == load(str(path))

    def test_the_error_names_the_file(self, path: Path) -> None:
        write(path, "[call]\nframe_ms = 1")
        with pytest.raises(ConfigError, match=r"config\.toml: call\.frame_ms: "):
            ConfigFile(path).load()

    def test_a_missing_file_says_how_to_name_one(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no such file.*BRIDGE_CONFIG"):
            load(tmp_path / "config.toml")

    def test_what_is_not_a_file_is_refused_without_waiting(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for other in (tmp_path, tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(ConfigError, match="not a file"):
                load(other)

    def test_odd_names(self) -> None:
        for name in ("a\0b", "x" * 5_000, "a\nb"):
            with pytest.raises(ConfigError) as caught:
                load(name)
            assert str(caught.value).isprintable()

    def test_a_huge_file_is_refused(self, path: Path) -> None:
        path.write_bytes(b"#" * (config_file.SIZE_LIMIT + 1))
        with pytest.raises(ConfigError, match="larger than 1024 KiB"):
            load(path)

    def test_encodings(self, path: Path) -> None:
        path.write_bytes(b"\xef\xbb\xbf" + FIRST.replace("\n", "\r\n").encode())
        assert load(path).agent["greeting"] == "first"
        path.write_bytes(b'[agent]\ngreeting = "\xe9"')
        with pytest.raises(ConfigError, match="line 2: not UTF-8"):
            load(path)

    def test_the_environment_names_the_file(self) -> None:
        assert config_path({"BRIDGE_CONFIG": "/etc/b.toml"}) == Path("/etc/b.toml")
        assert config_path({"BRIDGE_CONFIG": ""}) == config_path({}) == Path("config.toml")

    def test_a_relative_path_survives_a_change_of_directory(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(path.parent)
        file = ConfigFile("config.toml")
        monkeypatch.chdir("/")
        file.load()


async def test_fixed_config(autojump_clock: trio.testing.MockClock) -> None:
    settings = Settings()
    fixed = FixedConfig(settings)
    assert fixed.load() is settings
    assert await fixed.current() is settings
    with trio.CancelScope() as scope:
        scope.cancel()
        await fixed.current()
    assert scope.cancelled_caught
