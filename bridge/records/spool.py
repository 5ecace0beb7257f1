"""A queue of records on disk, for while the database is away: lines of JSON in a folder.

Theory of operation. Appended lines are on the disk, by fsync, before `append` returns. They are
read back in the order in which they came and forgotten when they are safe elsewhere. They are
stored in segments, files of about a megabyte, each of which is deleted when its last line is
forgotten. So nothing is ever rewritten, and the worst result of a crash is that lines are read
twice, which is harmless for records. A line that a crash or a full disk tore in two was never
reported as safe.

Each process has segments of its own. A lock on `NAME.lock`, which ends with the process however
that ends, marks them as owned. A process that starts adopts those without an owner, ahead of its
own.

The spool is bounded. Above half of its limit it takes only calls that are over, because the others
come again when they end; at its limit it takes no more. What is in it stays: it was accepted first,
and it shows how the trouble began.

Everything here blocks, and nothing is locked against threads: use one thread at a time.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

SPOOL_BYTES: Final = 64 * 1024 * 1024  # for each process: ten thousand calls or more
SEGMENT_BYTES: Final = 1024 * 1024
READ_BYTES: Final = 1024 * 1024  # held in memory when lines are read back

_SEGMENT = re.compile(r"([0-9a-f]{16})-[0-9]{8}\.jsonl")
_LOCK = re.compile(r"([0-9a-f]{16})\.lock")


class SpoolLine(NamedTuple):
    """One line with its line break, and whether its call is over."""

    line: bytes
    finished: bool


class Spool:
    """Lines in a folder, first in, first out. Nothing is made on disk before the first line."""

    def __init__(self, folder: Path, limit: int = SPOOL_BYTES) -> None:
        self.folder = folder.absolute()
        self.bytes = 0
        self._limit = limit
        self._segments: list[Path] = []
        self._read_to = 0
        self._peeked_to = 0
        self._locks: dict[str, int] = {}
        self._name = ""
        self._number = 0
        self._out: int | None = None
        self._out_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether no line is stored. May be asked in any thread."""
        return not self._segments

    def adopt(self) -> int:
        """Take over the segments of processes that have ended. Returns how many.

        Raises OSError.
        """
        if not self.folder.is_dir():
            return 0
        files = sorted(os.listdir(self.folder))
        names = {match[1] for file in files if (match := _SEGMENT.fullmatch(file))}
        adopted: list[Path] = []
        for name in sorted(
            names | {match[1] for file in files if (match := _LOCK.fullmatch(file))}
        ):
            if name not in self._locks and self._lock(name):
                mine = [self.folder / file for file in files if file.startswith(f"{name}-")]
                adopted += (segment for segment in mine if segment.exists())
                if not any(segment.exists() for segment in mine):
                    self._unlock(name, remove=True)
        # Oldest first, over all processes; names are not ordered by age.
        adopted.sort(key=lambda segment: (segment.stat().st_mtime_ns, segment.name))
        if self._segments and self._read_to:
            # Our first segment is half read, so it stays in front.
            self._segments[1:1] = adopted
        else:
            self._segments[:0] = adopted
        self.bytes += sum(segment.stat().st_size for segment in adopted)
        return len(adopted)

    def append(self, lines: Sequence[SpoolLine]) -> list[int]:
        """Write lines to the disk. Returns the indices in `lines` of those that found no room.

        Raises OSError; none of the lines may then be assumed to be safe.
        """
        refused, taken, size = [], [], self.bytes
        for place, (line, finished) in enumerate(lines):
            if size + len(line) > (self._limit if finished else self._limit // 2):
                refused.append(place)
            else:
                taken.append(line)
                size += len(line)
        if taken:
            self._write(b"".join(taken))
        return refused

    def peek(self, count: int) -> list[bytes]:
        """Read the oldest lines, at most `count`; [] if there are none. They stay until `advance`.

        Raises OSError.
        """
        while self._segments:
            try:
                lines = self._read(self._segments[0], count)
            except FileNotFoundError:  # deleted by hand
                lines = []
            if lines:
                return lines
            self._drop_first()
        return []

    def advance(self) -> None:
        """Forget the lines that `peek` returned last. Raises OSError."""
        self._read_to = self._peeked_to
        if self._segments and self._read_to >= _size(self._segments[0]):
            self._drop_first()

    def close(self) -> None:
        """Close all files and locks. Lines that are left are adopted by the next process, or by
        this one: the spool can be used again.
        """
        self._close_out()
        for name in list(self._locks):
            left = any(segment.name.startswith(name) for segment in self._segments)
            self._unlock(name, remove=not left)
        self._segments, self._read_to, self.bytes, self._name = [], 0, 0, ""
        with suppress(OSError):
            self.folder.rmdir()  # only if empty: leave no stray folder next to the database

    # ---- segments ---------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._out is not None and os.fstat(self._out).st_nlink == 0:
            # Deleted by hand: what is written into it now would be lost.
            self._close_out()
        if self._out is None or self._out_bytes >= SEGMENT_BYTES:
            self._begin_segment()
        assert self._out is not None
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._out, rest) :]
            os.fsync(self._out)
        except OSError:
            # Usually a full disk. Half a line at the end would spoil the next one, so the segment
            # ends here.
            with suppress(OSError):
                os.ftruncate(self._out, self._out_bytes)
            self._close_out()
            raise
        self._out_bytes += len(data)
        self.bytes += len(data)

    def _begin_segment(self) -> None:
        self._close_out()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if not self._name or not (self.folder / f"{self._name}.lock").exists():
            self._take_name()
        self._number += 1
        path = self.folder / f"{self._name}-{self._number:08}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._out = os.open(path, flags, 0o600)
        self._out_bytes = 0
        self._segments.append(path)
        folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the file's name is on the disk as well
        finally:
            os.close(folder)

    def _take_name(self) -> None:
        while True:
            name = secrets.token_hex(8)
            if self._lock(name):
                self._name = name
                return

    def _read(self, segment: Path, count: int) -> list[bytes]:
        with segment.open("rb") as file:
            file.seek(self._read_to)
            lines: list[bytes] = []
            size = 0
            while len(lines) < count and size < READ_BYTES:
                line = file.readline()
                if not line.endswith(b"\n"):
                    if line:
                        # Torn: nothing comes after it.
                        file.seek(0, os.SEEK_END)
                    break
                lines.append(line)
                size += len(line)
            self._peeked_to = file.tell()
            return lines

    def _drop_first(self) -> None:
        segment = self._segments.pop(0)
        self._read_to = self._peeked_to = 0
        if not self._segments:
            self._close_out()
        self.bytes = max(0, self.bytes - _size(segment)) if self._segments else 0
        segment.unlink(missing_ok=True)
        name = segment.name.partition("-")[0]
        if name != self._name and not any(one.name.startswith(name) for one in self._segments):
            self._unlock(name, remove=True)

    def _close_out(self) -> None:
        out, self._out, self._out_bytes = self._out, None, 0
        if out is not None:
            os.close(out)

    # ---- locks ------------------------------------------------------------------------------

    def _lock(self, name: str) -> bool:
        path = self.folder / f"{name}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                self._unlock(name, remove=False)
                self._locks[name] = lock
                return True
        except BlockingIOError:
            pass
        # Its owner is alive, or removed it between our opening and locking it.
        os.close(lock)
        return False

    def _unlock(self, name: str, *, remove: bool) -> None:
        lock = self._locks.pop(name, None)
        if lock is None:
            return
        if remove:
            (self.folder / f"{name}.lock").unlink(missing_ok=True)
        os.close(lock)


def _size(segment: Path) -> int:
    try:
        return segment.stat().st_size
    except FileNotFoundError:
        return 0
