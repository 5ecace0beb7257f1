"""The configuration file is read again while calls are on, in a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from bridge.config import file as config_file
from bridge.config.file import ConfigFile
from bridge.config.settings import Settings
from tests.unit.config.files import FIRST, write

SECOND = 'agent.greeting = "second"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    write(path, FIRST)
    return path


@pytest.fixture
def events() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def rewrite(path: Path, text: str) -> None:
    """Write the file in place, and leave it a time of change that says nothing."""
    path.write_text(text)
    os.utime(path, ns=(9 * 10**18, 9 * 10**18))


def remove(path: Path) -> None:
    path.unlink()


class CountedReads:
    """Stands in for the reading of the file: counts, and can hang like a dead file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.gate = threading.Event()
        self.gate.set()
        real = config_file._read

        def read(*args: object, **kwargs: object) -> object:
            self.count += 1
            assert self.gate.wait(10)
            return real(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(config_file, "_read", read)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedReads]:
    reads = CountedReads(monkeypatch)
    yield reads
    reads.gate.set()


def errors(events: list[structlog.typing.EventDict]) -> list[str]:
    return [event["error"] for event in events if event["log_level"] == "error"]


class TestCurrent:
    async def test_needs_load_first(self, path: Path) -> None:
        with pytest.raises(RuntimeError):
            await ConfigFile(path).current()

    async def test_an_unchanged_file_is_not_read_again(
        self, path: Path, reads: CountedReads
    ) -> None:
        file = ConfigFile(path)
        first = file.load()
        for _ in range(3):
            assert await file.current() is first
        assert reads.count == 1

    async def test_an_edit_takes_effect_with_the_next_call(
        self, path: Path, events: list[structlog.typing.EventDict]
    ) -> None:
        file = ConfigFile(path)
        file.load()
        write(path, SECOND)
        assert (await file.current()).agent["greeting"] == "second"
        assert [event["event"] for event in events] == ["configuration reloaded"]

    async def test_settings_that_need_a_restart_are_named(
        self, path: Path, events: list[structlog.typing.EventDict]
    ) -> None:
        file = ConfigFile(path)
        file.load()
        workers, recordings = "server.workers = 2", "records.recordings = 'wav'"
        for text in (workers, f"{workers}\ncall.max_minutes = 5", recordings, ""):
            write(path, text + "\n[agent]\n")
            await file.current()
        waits = [event.get("needs_restart") for event in events]
        assert waits == [["server.workers"], ["server.workers"], ["records.recordings"], None]

    async def test_edits_within_one_tick_of_the_clock_are_seen(self, path: Path) -> None:
        """Same size, same time, same inode: a fresh file is read again whatever its signature."""
        file = ConfigFile(path)
        for text in ("agent.a = 1", "agent.a = 2", "agent.a = 3"):
            rewrite(path, text)
            if text.endswith("1"):
                file.load()
            assert (await file.current()).agent["a"] == int(text[-1])

    async def test_a_broken_edit_is_logged_once_and_the_last_good_stays(
        self, path: Path, events: list[structlog.typing.EventDict]
    ) -> None:
        file = ConfigFile(path)
        first = file.load()
        for age in (60, 0):  # settled, and so fresh that it is read each time
            events.clear()
            write(path, "[call]\nframe_ms = 1", age=age)
            for _ in range(3):
                assert await file.current() is first
            assert len(errors(events)) == 1
            assert "call.frame_ms" in errors(events)[0]
        events.clear()
        write(path, SECOND)
        assert (await file.current()).agent["greeting"] == "second"
        assert errors(events) == []

    async def test_the_next_broken_version_is_logged_again(
        self, path: Path, events: list[structlog.typing.EventDict]
    ) -> None:
        file = ConfigFile(path)
        file.load()
        for broken in ("x = 1", "y = 1", "y = 1"):
            write(path, broken, age=60 + len(errors(events)))
            await file.current()
        assert len(errors(events)) == 3

    async def test_a_file_that_was_deleted_or_emptied(
        self, path: Path, events: list[structlog.typing.EventDict]
    ) -> None:
        file = ConfigFile(path)
        first = file.load()
        remove(path)
        for _ in range(3):
            assert await file.current() is first
        write(path, "\n")
        for _ in range(3):
            assert await file.current() is first
        reasons = errors(events)
        assert len(reasons) == 2
        assert "no such file" in reasons[0]
        assert "empty" in reasons[1]
        write(path, FIRST)
        assert await file.current() == first

    async def test_a_file_that_could_not_be_read_is_tried_again(
        self, path: Path, events: list[structlog.typing.EventDict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A good edit must not be passed over for want of a file descriptor at that moment."""
        file = ConfigFile(path)
        first = file.load()
        write(path, SECOND)
        real = Path.open

        def fail(self: Path, *args: object) -> object:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(Path, "open", fail)
        assert await file.current() is first
        assert await file.current() is first
        monkeypatch.setattr(Path, "open", real)
        assert (await file.current()).agent["greeting"] == "second"
        assert len(errors(events)) == 1

    async def test_concurrent_callers_share_one_reading(
        self, path: Path, reads: CountedReads
    ) -> None:
        file = ConfigFile(path)
        file.load()
        write(path, SECOND)
        reads.gate.clear()
        got: list[Settings] = []

        async def call() -> None:
            got.append(await file.current())

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(call)
            await wait_all_tasks_blocked()
            reads.gate.set()
        assert reads.count == 2
        assert {settings.agent["greeting"] for settings in got} == {"second"}

    async def test_the_others_go_on_when_the_reader_is_cancelled(
        self, path: Path, reads: CountedReads
    ) -> None:
        file = ConfigFile(path)
        file.load()
        write(path, SECOND)
        reads.gate.clear()
        got: list[Settings] = []

        async def call(scope: trio.CancelScope) -> None:
            with scope:
                got.append(await file.current())

        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()
            nursery.start_soon(call, first)
            await wait_all_tasks_blocked()
            nursery.start_soon(call, trio.CancelScope())
            await wait_all_tasks_blocked()
            first.cancel()
            await wait_all_tasks_blocked()
            reads.gate.set()
        assert [settings.agent["greeting"] for settings in got] == ["second"]

    async def test_a_hung_file_system_costs_one_deadline_and_recovers(
        self,
        path: Path,
        reads: CountedReads,
        events: list[structlog.typing.EventDict],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(config_file, "READ_SECONDS", 0.05)
        file = ConfigFile(path)
        first = file.load()
        write(path, SECOND)
        reads.gate.clear()
        assert await file.current() is first
        monkeypatch.setattr(config_file, "READ_SECONDS", 3600)
        with trio.fail_after(60):
            for _ in range(100):
                assert await file.current() is first
            assert reads.count == 2
            assert len(errors(events)) == 1
            reads.gate.set()
            # Only the thread knows when it lets go of its token.
            while (await file.current()).agent["greeting"] != "second":  # noqa: ASYNC110
                await trio.sleep(0.001)
