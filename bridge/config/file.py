"""The configuration file on disk: found, read, and read again when it was edited.

Calls ask for the settings one by one, so that an edit takes effect with the next call. What that
must never do is cost a call: reading happens in a thread, with a deadline, and whatever goes wrong
with the file after a good start leaves the last good settings in force.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Protocol

import trio

from bridge.config.settings import ConfigError, Settings
from bridge.config.toml import parse
from bridge.log import get_logger
from bridge.one_thread import OneThread

# A caller hears the delay as silence before the greeting, and a file on a local disk takes a
# millisecond; beyond a second it is a network file system that hangs.
READ_SECONDS = 1.0

# No sane file comes near it; the wrong file (a log, a disk image) must not be read whole per call.
SIZE_LIMIT = 1_048_576

# Two edits within one tick of a file system's clock can leave the same signature, so a file this
# fresh is read again (FAT's tick, the coarsest in use, is two seconds).
FRESH_SECONDS = 2.0

# What a server reads once; an edit of it is noted, so that nobody waits for it to have an effect.
AT_THE_START = (
    *("server.bind", "server.workers", "records.url", "records.retention_days"),
    *("logging.format", "logging.level", "logging.mask_numbers"),
)

Signature = tuple[int, int, int, int]

_log = get_logger(__name__)


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file to read: what `BRIDGE_CONFIG` names, else `config.toml` in the working directory."""
    return Path(environ.get("BRIDGE_CONFIG", "").strip() or "config.toml")


def load(path: str | os.PathLike[str]) -> Settings:
    """Read and check the file, blocking. Raises `ConfigError`."""
    return parse(_read(Path(path)).text, _name(path))


class SettingsSource(Protocol):
    """Where calls get their settings: `ConfigFile`, or `FixedConfig`."""

    def load(self) -> Settings: ...

    async def current(self) -> Settings: ...


class FixedConfig:
    """Settings that never change, for tests and for programs that embed bridge: no file and no
    threads, so that a virtual clock works.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self) -> Settings:
        """The settings."""
        return self._settings

    async def current(self) -> Settings:
        """The settings. A checkpoint, as in `ConfigFile`."""
        await trio.lowlevel.checkpoint()
        return self._settings


class ConfigFile:
    """A configuration file that may be edited while calls come in.

    `load` once, strictly, at the start; `current` for each call. An edit that cannot be used is
    logged once, however many calls come before it is mended.

    Anything that replaces the file in one step (`mv`, most editors, a Kubernetes ConfigMap) is
    seen whole. A program that writes it in place can be met half-way: a half that does not parse
    is refused like any broken edit, and so is an empty one, and the next call reads again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = _name(path)
        # The working directory may change under a long-lived server.
        self._path = Path(path).absolute()
        self._good: Settings | None = None
        self._start: Settings | None = None
        self._seen: Signature | None = None
        self._reported: tuple[Signature | None, str] | None = None
        self._readings = 0
        self._turn = trio.Lock()
        self._thread = OneThread()
        self._stuck = False

    def load(self) -> Settings:
        """Read the file now, blocking. Raises `ConfigError`; then the last good settings, if
        there were any, stay in force.
        """
        version = _read(self._path, self._name)
        self._good = parse(version.text, self._name)
        self._start = self._start or self._good
        self._seen, self._reported = version.seen, None
        return self._good

    async def current(self) -> Settings:
        """The settings in force, after a look whether the file changed.

        Takes `READ_SECONDS` at most, and the file cannot make it raise: see the class. Calls that
        ask while the file is being read share that reading. Cancelling one is safe; those that
        wait with it go on. A file system that hangs costs the calls of the first moment their
        deadline, and later ones nothing until it answers.
        """
        if self._good is None:
            raise RuntimeError("load() comes first, and its settings are good")
        arrived = self._readings
        with trio.move_on_after(READ_SECONDS) as deadline:
            async with self._turn:
                if self._readings == arrived and not self._is_stuck():
                    await self._refresh()
        if deadline.cancelled_caught and not self._is_stuck():
            self._stuck = True
            _log.error(
                "configuration cannot be read; the last good one stays in force",
                file=self._name,
                error=f"no answer from the file system within {READ_SECONDS:g} s",
            )
        return self._good

    def _is_stuck(self) -> bool:
        self._stuck = self._stuck and self._thread.is_stuck
        return self._stuck

    async def _refresh(self) -> None:
        found = await self._thread.run(partial(self._look, self._seen))
        self._readings += 1
        if found is None:
            return
        self._seen = found.seen
        if found.settings is None:
            if found.problem != self._reported:
                self._reported = found.problem
                _log.error(
                    "configuration not usable; the last good one stays in force",
                    error=found.problem[1],
                )
            return
        self._reported = None
        if found.settings != self._good:
            waits = [
                key
                for key in AT_THE_START
                if attrgetter(key)(found.settings) != attrgetter(key)(self._start)
            ]
            self._good = found.settings
            more = {"with_the_next_start": waits} if waits else {}
            _log.info("configuration read again", file=self._name, **more)

    def _look(self, seen: Signature | None) -> _Look | None:
        """What is new in the file since `seen`, None for nothing. Runs in a thread, and changes
        nothing that others see.
        """
        signature = None
        try:
            signature = _signature(self._path.stat())
            if signature == seen:
                return None
            version = _read(self._path, self._name)
        except (OSError, ValueError) as error:
            return _Look(None, problem=(None, str(_unreadable(self._name, error))))
        except ConfigError as error:
            # Not `seen`: what could not be read this time (no file descriptors left, a server
            # that restarts) may be readable the next, with no new signature to tell.
            return _Look(None, problem=(signature, str(error)))
        try:
            if not version.text.strip():
                # To a program half-way through writing the file, all defaults is the wrong answer.
                raise ConfigError(f"{self._name}: empty; write it again")
            return _Look(version.seen, settings=parse(version.text, self._name))
        except ConfigError as error:
            return _Look(version.seen, problem=(version.signature, str(error)))


@dataclass(frozen=True, slots=True)
class _Version:
    """The file's text, and the signature it had before it was read."""

    text: str
    signature: Signature
    is_fresh: bool

    @property
    def seen(self) -> Signature | None:
        """What to compare with next time; None to read it again in any case."""
        return None if self.is_fresh else self.signature


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look found: settings, or a problem and the version that has it."""

    seen: Signature | None
    settings: Settings | None = None
    problem: tuple[Signature | None, str] = (None, "")


def _read(path: Path, name: str | None = None) -> _Version:
    name = _name(path) if name is None else name
    try:
        # Before opening: opening a pipe waits for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{name}: not a file; name a TOML file in BRIDGE_CONFIG")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    if len(data) > SIZE_LIMIT:
        raise ConfigError(
            f"{name}: larger than {SIZE_LIMIT // 1024} KiB; is it the file you meant? "
            "BRIDGE_CONFIG names it"
        )
    try:
        # Windows' editors begin UTF-8 with a mark that TOML does not know.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}: line {line}: not UTF-8 text; save it as UTF-8") from None
    age = time.time_ns() - status.st_mtime_ns
    return _Version(text, _signature(status), is_fresh=age < FRESH_SECONDS * 1e9)


def _signature(status: os.stat_result) -> Signature:
    # ctime besides mtime: `cp -p` and `rsync -t` set mtime back.
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def _unreadable(name: str, error: Exception) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        return ConfigError(
            f"{name}: no such file; run bridge where it is, or name another in BRIDGE_CONFIG"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigError(f"{name}: cannot be read ({reason}); mend that, or set BRIDGE_CONFIG")


def _name(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)
