"""The spool: lines on disk, in order, whatever happens to the process, the folder or the disk."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.records import spool as spools
from bridge.records.spool import Spool, SpoolLine
from tests.unit.records.draining import drain


def line(number: int, size: int = 0) -> bytes:
    return f"{number} {'x' * size}\n".encode()


def put(spool: Spool, *numbers: int) -> None:
    assert spool.append([SpoolLine(line(number), True) for number in numbers]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "calls.db-spool"


def test_nothing_is_made_before_the_first_line_nor_left_after_the_last(folder):
    spool = Spool(folder)
    assert spool.adopt() == 0
    assert spool.peek(1) == []
    assert not folder.exists()
    put(spool, 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert drain(spool) == [1]
    spool.close()
    assert not folder.exists()


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), max_size=30))
def test_first_in_first_out(tmp_path_factory, steps: list[int]) -> None:
    """Whatever is appended and taken in whatever order, over several segments."""
    spool = Spool(tmp_path_factory.mktemp("spool") / "s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spools, "SEGMENT_BYTES", 10)
        expected: list[int] = []
        taken: list[int] = []
        for step in steps:
            if step < 4:
                put(spool, *range(len(expected), len(expected) + step))
                expected += range(len(expected), len(expected) + step)
            else:
                taken += [int(one.split()[0]) for one in spool.peek(step - 3)]
                spool.advance()
        taken += drain(spool)
    assert taken == expected
    assert spool.is_empty
    assert spool.bytes == 0
    spool.close()


def test_what_was_peeked_stays_until_it_is_advanced(folder):
    spool = Spool(folder)
    put(spool, 1, 2, 3)
    assert spool.peek(2) == spool.peek(2) == [line(1), line(2)]
    put(spool, 4)
    spool.advance()
    assert drain(spool) == [3, 4]
    spool.close()


def test_another_process_goes_on_where_one_ended(folder):
    first = Spool(folder)
    put(first, 1, 2, 3)
    first.peek(1)
    first.advance()
    first.close()
    second = Spool(folder)
    assert second.adopt() == 1
    put(second, 4)
    # 1 a second time: what was read is forgotten with its segment, and records bear it.
    assert drain(second) == [1, 2, 3, 4]
    second.close()
    assert not folder.exists()


def test_a_living_process_keeps_its_own(folder):
    living, other = Spool(folder), Spool(folder)
    put(living, 1)
    assert other.adopt() == 0
    put(other, 2)
    assert drain(other) == [2]
    assert drain(living) == [1]
    other.close()
    living.close()


def test_a_torn_line_is_no_line_and_spoils_no_other(folder):
    spool = Spool(folder)
    put(spool, 1, 2)
    spool.close()
    (segment,) = folder.glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b"3 and then the power")
    again = Spool(folder)
    again.adopt()
    put(again, 4)
    assert drain(again) == [1, 2, 4]
    again.close()


def test_segments_whose_lock_is_gone_are_adopted(folder):
    spool = Spool(folder)
    put(spool, 1)
    spool.close()
    for lock in folder.glob("*.lock"):
        lock.unlink()
    (folder / "notes.txt").write_text("not ours")
    again = Spool(folder)
    assert again.adopt() == 1
    assert drain(again) == [1]
    again.close()
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_it_is_bounded_and_keeps_what_it_promised(folder):
    """Above half, calls that are on are refused; at the limit, everything is."""
    spool = Spool(folder, limit=1000)
    long = line(7, 96)
    assert len(long) == 99
    assert spool.append([SpoolLine(long, False)] * 7) == [5, 6]
    assert spool.append([SpoolLine(long, True)] * 7) == [5, 6]
    assert spool.append([SpoolLine(b"1\n", False), SpoolLine(b"2\n", True)]) == [0]
    assert spool.bytes <= 1000
    assert sum(file.stat().st_size for file in folder.iterdir()) == spool.bytes
    assert drain(spool) == [7] * 10 + [2]
    put(spool, 8)
    assert drain(spool) == [8]
    spool.close()


def test_a_full_disk_is_told_and_nothing_is_torn(folder, monkeypatch):
    spool = Spool(folder)
    put(spool, 1)
    really = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(file, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(spools.os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            put(spool, 2, 3, 4)
    put(spool, 5)
    assert drain(spool) == [1, 5]
    spool.close()


def test_a_folder_that_is_taken_away_is_made_again(folder):
    spool = Spool(folder)
    put(spool, 1)
    shutil.rmtree(folder)
    put(spool, 2)
    assert drain(spool) == [2]
    spool.close()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    spool = Spool(tmp_path / "gone" / "spool")
    with pytest.raises(OSError, match="gone"):
        put(spool, 1)
    assert spool.is_empty
    (tmp_path / "gone").mkdir()
    put(spool, 2)
    assert drain(spool) == [2]
    spool.close()


def test_links_are_not_followed(folder, tmp_path):
    folder.mkdir()
    target = tmp_path / "target"
    target.write_text("mine")
    (folder / ("0" * 16 + ".lock")).symlink_to(target)
    spool = Spool(folder)
    with pytest.raises(OSError, match="0000"):
        spool.adopt()
    assert target.read_text() == "mine"
