"""Checks that records and recordings can be written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import trio

from bridge.check.finding import Finding, ok, skipped, wrong
from bridge.config.settings import RecordSettings
from bridge.records.store import Store, StoreError, StoreUnavailable

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


async def check_records(settings: RecordSettings) -> Iterable[Finding]:
    """Open the database as the server does, its tables included, and write to it."""
    if not settings.url:
        return [skipped("records", "not stored (records.url is empty)")]
    try:
        name = await trio.to_thread.run_sync(_write, settings.url, abandon_on_cancel=True)
    except StoreError as error:
        return [wrong("records", "no call can be recorded", str(error))]
    except StoreUnavailable as error:
        return [
            wrong(
                "records",
                "the database cannot be written",
                str(error),
                "give the server's user write access, or set another records.url",
            )
        ]
    return [ok("records", f"{name} can be written")]


def _write(url: str) -> str:
    store = Store(url)
    try:
        store.prepare()
        # Checks the permission to delete; no record is that old, so nothing is deleted.
        store.purge(_LONG_AGO)
    finally:
        store.close()
    return store.name


async def check_recordings(folder: str) -> Iterable[Finding]:
    """Create the folder of recordings as the server does, and write to it."""
    if not folder:
        return []
    try:
        await trio.to_thread.run_sync(_touch, Path(folder), abandon_on_cancel=True)
    except OSError as error:
        return [
            wrong(
                "recordings",
                f"{folder} cannot be written",
                error.strerror or str(error),
                "give the server's user write access, or set another records.recordings",
            )
        ]
    return [ok("recordings", f"{folder} can be written")]


def _touch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
