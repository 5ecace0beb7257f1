"""The configuration file on disk: found, read, and reloaded when it was edited.

Each call asks for the settings, so that an edit takes effect with the next call. Asking must never
cost a call: the file is read in a thread, with a deadline, and if that fails after a good start,
the last good settings stay in force.
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

# Far above any real file; a wrong one (a log, a disk image) must not be read whole for each call.
SIZE_LIMIT = 1_048_576

# Two edits within one tick of a file system's clock can leave the same signature, so a file this
# fresh is read again (FAT's tick, the coarsest in use, is two seconds).
FRESH_SECONDS = 2.0

# Settings that a server reads at its start only. An edit of one is logged as needing a restart.
# `records.recordings` is one, although each call records into the folder that it names then: old
# recordings are deleted from the folder of the start.
AT_THE_START = (
    *("server.bind", "server.workers"),
    *("records.url", "records.retention_days", "records.recordings"),
    *("logging.format", "logging.level", "logging.mask_numbers"),
)

Signature = tuple[int, int, int, int]

_log = get_logger(__name__)


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file that `BRIDGE_CONFIG` names, else `config.toml` in the working directory."""
    return Path(environ.get("BRIDGE_CONFIG", "").strip() or "config.toml")


def load(path: str | os.PathLike[str]) -> Settings:
    """Read and check the file, blocking. Raises `ConfigError`."""
    return parse(_read(Path(path)).text, _name(path))


class SettingsSource(Protocol):
    """The source of settings for calls: `ConfigFile` or `FixedConfig`."""

    def load(self) -> Settings: ...

    async def current(self) -> Settings: ...


class FixedConfig:
    """Settings that never change, for tests and for programs that embed bridge. It uses no file and
    no threads, so that a virtual clock works.
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

    Call `load` once at the start, which is strict, and `current` for each call. An edit that cannot
    be used is logged once, however many calls come before it is fixed.

    A file that is replaced in one step (`mv`, most editors, a Kubernetes ConfigMap) is always read
    whole. A program that writes it in place can be caught halfway: a half that does not parse is
    refused like any broken edit, and so is an empty file, and the next call reads again.
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
        """Read the file now, blocking. Raises `ConfigError`; the last good settings, if there were
        any, then stay in force.
        """
        version = _read(self._path, self._name)
        self._good = parse(version.text, self._name)
        self._start = self._start or self._good
        self._seen, self._reported = version.seen, None
        return self._good

    async def current(self) -> Settings:
        """Return the settings in force, after checking whether the file has changed.

        Takes `READ_SECONDS` at most, and no content of the file makes it raise: see the class.
        Calls that ask while the file is being read share that reading. Cancelling one of them is
        safe for the others. If the file system hangs, the calls that ask at that moment wait for
        `READ_SECONDS`, and later ones do not wait until it answers.
        """
        if self._good is None:
            raise RuntimeError("load() must have succeeded before current()")
        arrived = self._readings
        with trio.move_on_after(READ_SECONDS) as deadline:
            async with self._turn:
                if self._readings == arrived and not self._is_stuck():
                    await self._refresh()
        if deadline.cancelled_caught and not self._is_stuck():
            self._stuck = True
            _log.error(
                "configuration cannot be read; keeping the previous one",
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
                    "configuration not usable; keeping the previous one",
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
            more = {"needs_restart": waits} if waits else {}
            _log.info("configuration reloaded", file=self._name, **more)

    def _look(self, seen: Signature | None) -> _Look | None:
        """Read the file if it has changed since `seen`; None if it has not. Runs in a thread, and
        changes no state that other threads use.
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
            # Not `seen`: a file that could not be read this time (no descriptors left, a file
            # server that restarts) may be readable next time, with the same signature.
            return _Look(None, problem=(signature, str(error)))
        try:
            if not version.text.strip():
                # A program is halfway through writing the file; all defaults would be wrong.
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
    """The result of a look: settings, or a problem and the version of the file that has it."""

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
        # Editors on Windows begin UTF-8 with a byte order mark, which TOML does not allow.
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
    return ConfigError(f"{name}: cannot be read ({reason}); fix that, or set BRIDGE_CONFIG")


def _name(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)
